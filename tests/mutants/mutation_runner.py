"""A process that runs tests for others: it has imported what every run needs, and forks for each.

Importing pytest with its plugins takes longer than most runs. What is under test is imported by the
fork alone, from the copy that its order names.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import sys
import time
from typing import Any

import psutil

LOOK_EVERY = 0.02
"""Seconds between two looks whether a run is over."""

BEFOREHAND = (
    "pytest_trio.plugin",
    "hypothesis",
    "httpx",
    "msgspec",
    "attrs",
    "cattrs",
    "structlog",
    "trio.testing",
)
"""What most runs import, and nothing of ours."""


PR_SET_CHILD_SUBREAPER = 36
"""Of Linux' ``prctl``: orphans below us become our children."""


def main() -> None:
    """An order is a line of JSON: ``root``, ``arguments``, ``environ``, ``output`` and ``limit``. The answer
    is a line that says whether it ended in time.
    """
    del sys.path[0]  # our own folder, whose names are nobody's modules
    # What a mutant leaves behind (a broker that nobody guards, say) becomes our child, and is ended by us.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for name in BEFOREHAND:
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(order)
        sys.stdout.write(json.dumps({"in_time": _wait(pid, order["limit"])}) + "\n")
        sys.stdout.flush()


def _wait(pid: int, limit: float) -> bool:
    end = time.monotonic() + limit
    while not _reaped(pid) and time.monotonic() < end:
        time.sleep(LOOK_EVERY)
    in_time = time.monotonic() < end
    while left := psutil.Process().children(recursive=True):
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        _reaped(0)
        time.sleep(LOOK_EVERY)
    return in_time


def _reaped(pid: int) -> bool:
    """Take notice of every child that has ended; whether ``pid`` is among them."""
    found = False
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitpid(-1, os.WNOHANG)[0]:
            found |= ended == pid
    return found


def _run(order: dict[str, Any]) -> None:
    status = 1
    try:
        os.setsid()
        out = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, file in enumerate((nothing, out, out)):
            os.dup2(file, number)
        os.chdir(order["root"])
        os.environ.update(order["environ"])
        sys.path[:0] = order["environ"]["PYTHONPATH"].split(os.pathsep)
        importlib.invalidate_caches()
        import pytest

        status = pytest.main(order["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
