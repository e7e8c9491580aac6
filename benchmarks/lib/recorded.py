"""Publish numbers with positions, as ``state.publish`` does, until this program is ended.

    python -m benchmarks.lib.recorded REDIS_PORT RATE

Messages of plain ``PUBLISH`` need a recorder: while the only server is away their epoch would end.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import redis

from tangram.history import History
from tangram.history.rules import Rule, Rules

SIZE = 5000
"""Messages of the history: more than any crash lasts."""


def main(port: int, rate: float) -> None:
    """Publish ``{"n": NUMBER, "t": NANOSECONDS}`` on ``to:bench:tick``."""
    rules = Rules([Rule("bench*", History(size=SIZE))])
    client: Any = redis.Redis(port=port)
    number, due = 0, time.monotonic()
    while True:
        call = rules.publishing("to:bench:tick", b'{"n":%d,"t":%d}' % (number, time.monotonic_ns()))
        assert call is not None
        client.execute_command("FCALL", call.function, len(call.keys), *call.keys, *call.arguments)
        number, due = number + 1, due + 1 / rate
        time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
