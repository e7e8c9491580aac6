"""The commands of a node that is not the recorder."""

from __future__ import annotations

from typing import Any

import trio

from tangram.bus.scripts import FunctionCall
from tangram.errors import BrokerUnavailable
from tangram.history.recording import Recording
from tangram.history.rules import History, Rule, Rules


class Redis:
    """Answers calls of functions from a script, and records their names."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.answers: list[Any] = []

    async def call(self, function: FunctionCall) -> Any:
        await trio.lowlevel.checkpoint()
        self.calls.append(function.function.removeprefix("tangram_"))
        answer = 1 if function.function == "tangram_release" else self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_a_node_without_the_lease_gives_it_away_once(autojump_clock: trio.testing.MockClock) -> None:
    """It would cost each node two commands a second; after a call of unknown outcome it is due again."""
    redis = Redis()
    recording = Recording("redis://fake", Rules([Rule("kept", History())]), "node")
    recording._publisher.call = redis.call  # type: ignore[method-assign, assignment]
    other = [0, b"1", 0]

    async def look(*answers: Any) -> list[str]:
        redis.calls, redis.answers = [], list(answers)
        for _ in answers:
            recording._alone = True
            try:
                await recording._look_at_lease()
            except BrokerUnavailable:
                continue
        return redis.calls

    assert await look(other, other, other) == ["release", "lease", "lease", "lease"]
    assert await look(BrokerUnavailable("away"), other, other) == ["lease", "release", "lease", "lease"]
