"""The recorder's commands: of a node that does not hold the lease, and the steps of the one that does."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tangram.bus.scripts import FunctionCall
from tangram.errors import BrokerUnavailable
from tangram.history import recording
from tangram.history.recorder import STEP_MESSAGES, Recorder
from tangram.history.recording import Recording
from tangram.history.rules import History, Rule, Rules
from tangram.testing import RunningTangram, open_tangram
from tangram.testing.fakes.valkey import functions


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


# Steps, on a whole server with a broker in memory.


@pytest.fixture
async def running() -> AsyncIterator[RunningTangram]:
    """A server whose topic ``kept`` has a history, and whose recorder has the lease."""
    tables = {"channel": {"history": [{"topics": "kept"}]}}
    async with open_tangram([], tables, fakes=True, memory_port=True, seed=1) as running:
        publish(running, 0)
        await wait_recorded(running, 1)
        yield running


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times at which messages were recorded."""
    times: list[float] = []

    def noted(run: Any, keys: Any, args: Any) -> Any:
        times.append(trio.current_time())
        return record(run, keys, args)

    record = functions._FUNCTIONS[b"tangram_record"]
    monkeypatch.setitem(functions._FUNCTIONS, b"tangram_record", noted)
    return times


def publish(running: RunningTangram, number: int) -> None:
    """Publish a number as any program does."""
    assert running.memory is not None
    running.memory.publish(b"to:kept:n", b"%d" % number)


async def wait_recorded(running: RunningTangram, count: int) -> None:
    """Return once that many messages are recorded."""
    with trio.fail_after(20):
        while (await running.state.position("kept")).rpartition(".")[2] != str(count):  # noqa: ASYNC110 - Redis tells nobody
            await trio.sleep(0.001)


async def test_messages_gather_between_two_steps(
    autojump_clock: MockClock, running: RunningTangram, steps: list[float]
) -> None:
    """A step is due after the pause, and taken with the next message of the bus."""
    await trio.sleep(1)
    for number in range(400):
        publish(running, number)
        await trio.sleep(0.005)
    during = steps[:]
    await wait_recorded(running, 401)

    # Looks by the clock alone would be 70 ms apart.
    assert 37 <= len(during) <= 41


async def test_the_last_message_does_not_wait_for_another(
    autojump_clock: MockClock, running: RunningTangram, steps: list[float]
) -> None:
    """The look behind the pause is taken without a message of the bus."""
    await trio.sleep(1)
    publish(running, 1)
    await trio.sleep(0.01)
    publish(running, 2)
    began = trio.current_time()
    await wait_recorded(running, 3)

    assert len(steps) == 3, "one of the first message, and two of these"
    assert steps[-1] - began <= recording.GATHER + recording.SLACK


async def test_a_flood_is_recorded_without_pauses(autojump_clock: MockClock, running: RunningTangram) -> None:
    """The recorder keeps up with more than one step of messages in each pause."""
    began = trio.current_time()
    for number in range(20 * STEP_MESSAGES):
        publish(running, number)
    await wait_recorded(running, 1 + 20 * STEP_MESSAGES)

    assert trio.current_time() - began <= 2 * recording.GATHER


async def test_an_error_in_a_nudge_is_the_recorders(
    autojump_clock: MockClock, running: RunningTangram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It crashes the recorder also where a message of the bus has caused the look."""
    take = Recorder.take
    looks: list[str] = []

    def broken(self: Recorder, pattern: bytes, channel: bytes, payload: bytes) -> None:
        if payload == b"9":
            looks.extend(one.name for one in traceback.extract_stack() if one.name == "nudge")
            raise ZeroDivisionError
        take(self, pattern, channel, payload)

    monkeypatch.setattr(Recorder, "take", broken)
    for number in range(1, 20):
        publish(running, number)
        await trio.sleep(0.02)
    await running.wait_event("crashed", "recorder")
    await running.wait_steady()

    assert looks
    assert {event.child for event in running.events if event.kind == "crashed"} == {"recorder"}


def test_a_nudge_without_a_feed_does_nothing() -> None:
    """There may be none yet, or none any more."""
    Recording("redis://fake", Rules([Rule("kept", History())]), "node").nudge()
