"""Mutants of histories in a whole server, which ``nothing_missed`` finds."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import msgspec
import pytest
import trio
from trio.testing import MockClock

from tangram.app.tree import Tree
from tangram.channels.hub import Hub
from tangram.chaos.observers import KEPT, OBSERVED_INVARIANTS, Observations, open_observers
from tangram.gateway import recovery
from tangram.gateway.recovery import Recovery
from tangram.history import recording
from tangram.history.recorder import Recorder
from tangram.history.replay import parse_replay
from tangram.history.rules import STAMPS
from tangram.testing import RunningTangram, open_tangram
from tangram.testing.checks.invariants import broken
from tangram.testing.fakes.memory_broker import MemoryBroker
from tangram.testing.fakes.valkey import functions
from tangram.testing.faults.steps import scheduled_from

pytestmark = pytest.mark.slow

UNLIMITED = {"root_restarts": 1000, "plugin_restarts": 1000}
DELAY = 0.35
"""Seconds of a slow answer: some messages come meanwhile."""

Deed = Callable[[RunningTangram], Awaitable[None]]


async def drop_connections(running: RunningTangram) -> None:
    """Break all connections to the broker until the delays before the next one are long."""
    assert running.memory is not None
    for _ in range(4):
        for _ in range(60):
            running.memory.drop()
            await trio.sleep(0.02)
        await trio.sleep(2)


async def crash_recorder(running: RunningTangram) -> None:
    """Crash the recorder until its back-off is long enough to miss messages."""
    for _ in range(7):
        running.crash("recorder")
        await running.wait_steady()
        await trio.sleep(1)


async def crash_bus(running: RunningTangram) -> None:
    """Crash the bus until its back-off is long enough to miss messages."""
    for _ in range(6):
        running.crash("bus")
        await running.wait_steady()


async def reset_browsers(running: RunningTangram) -> None:
    """Keep all clients away for some messages, again and again."""
    for pause in range(4):
        await keep_away(running, 0.4)
        await trio.sleep(2 + pause * 0.33)


async def keep_away(running: RunningTangram, seconds: float) -> None:
    """Break the connections of all clients for a time."""
    assert running.port is not None
    for _ in range(round(seconds / 0.04)):
        running.port.reset()
        await trio.sleep(0.04)


async def kill_broker(running: RunningTangram) -> None:
    """Kill the broker, and keep clients away until there are more messages than before."""
    assert running.memory is not None
    for _ in range(2):
        running.memory.kill()
        await running.wait_event("crashed", "broker")
        await keep_away(running, 4)
        await running.wait_steady()


def lost(deed: Deed) -> list[str]:
    """Return the broken invariants of a server with histories, after a deed."""
    with scheduled_from(1):
        return trio.run(_lost, deed, clock=MockClock(autojump_threshold=0))


async def _lost(deed: Deed) -> list[str]:
    seen = Observations()
    tables = {
        "supervisor": {"strategy": "one_for_one", **UNLIMITED},
        "channel": {"history": [{"topics": KEPT}]},
    }
    async with open_tangram([], tables, fakes=True, memory_port=True, seed=1, checks=()) as running:
        async with open_observers(running, seen, every=0.1, seed=1):
            await trio.sleep(2)
            await deed(running)
            await seen.wait_message_after_faults(running)
        return [one.invariant for one in broken(seen.evidence(running), OBSERVED_INVARIANTS)]


def slow_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the answers to reads come late: after messages that follow the marker."""
    init = Recovery.__init__

    def slow(self: Recovery, rules: Any, call: Any, *more: Any, **named: Any) -> None:
        async def late(function: Any) -> Any:
            answer = await call(function)
            await trio.sleep(DELAY)
            return answer

        init(self, rules, late, *more, **named)

    monkeypatch.setattr(Recovery, "__init__", slow)


def slow_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the recorder gather for so long that messages wait for it."""
    monkeypatch.setattr(recording, "GATHER", DELAY)
    monkeypatch.setattr(recording.Recording, "nudge", lambda _self: None)


def empty_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a killed broker come back without its data."""
    run = MemoryBroker.run

    async def forget(self: MemoryBroker, **more: Any) -> None:
        self.keeps = False
        await run(self, **more)

    monkeypatch.setattr(MemoryBroker, "run", forget)


CONDITIONS: dict[str, tuple[Deed, Callable[[pytest.MonkeyPatch], None]]] = {
    "connections to the broker break": (drop_connections, lambda _: None),
    "the recorder crashes": (crash_recorder, lambda _: None),
    "the bus crashes": (crash_bus, lambda _: None),
    "clients are cut off": (reset_browsers, lambda _: None),
    "clients are cut off, and answers are slow": (reset_browsers, slow_answers),
    "clients are cut off, and the recorder is slow": (reset_browsers, slow_recorder),
    "the broker is killed": (kill_broker, lambda _: None),
    "the broker is killed, and comes back empty": (kill_broker, empty_redis),
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_without_a_mutant_nothing_is_missed(monkeypatch: pytest.MonkeyPatch, condition: str) -> None:
    """All invariants hold in each of these conditions."""
    deed, prepare = CONDITIONS[condition]
    prepare(monkeypatch)

    assert lost(deed) == []


def stamp_after_message(patch: pytest.MonkeyPatch) -> None:
    """Mutant: the function publishes the position behind the message, and not before it."""

    def publish(run: Any, keys: Sequence[bytes], args: Sequence[bytes]) -> Any:
        held: list[dict[str, object]] = []
        run.announce = lambda **fields: held.append(fields)
        answer = functions_publish(run, keys, args)
        del run.announce
        for fields in held:
            run.announce(**fields)
        return answer

    functions_publish = functions._publish
    patch.setitem(functions._FUNCTIONS, b"tangram_publish", publish)


def marker_outside_of_the_script(patch: pytest.MonkeyPatch) -> None:
    """Mutant: the node publishes the marker itself, a moment after the read."""

    def planted(self: Recovery, rules: Any, call: Any, *more: Any, **named: Any) -> None:
        async def apart(function: Any) -> Any:
            *words, nonce = function.arguments
            answer = await call(function._replace(arguments=(*words, "")))
            await trio.sleep(DELAY)
            marker = {"t": words[0], "e": answer[1].decode(), "o": int(answer[2]), "m": nonce}
            self._publish([(STAMPS.decode(), msgspec.json.encode(marker))])
            return answer

        init(self, rules, apart, *more, **named)

    init = Recovery.__init__
    patch.setattr(Recovery, "__init__", planted)


def epoch_kept_over_an_empty_redis(patch: pytest.MonkeyPatch) -> None:
    """Mutant: every epoch has the same name, also behind a broker that has lost everything."""
    patch.setattr(Tree, "_new_epoch", lambda _self: "e")


def time_without_recorder_keeps_the_epoch(patch: pytest.MonkeyPatch) -> None:
    """Mutant: a recorder that was away goes on as if it had been there."""

    def lease(run: Any, keys: Sequence[bytes], args: Sequence[bytes]) -> Any:
        number = run.fields(keys[1]).get(b"f", b"0")
        return functions_lease(run, keys, [args[0], args[1], number, *args[3:]])

    functions_lease = functions._lease
    patch.setitem(functions._FUNCTIONS, b"tangram_lease", lease)


def interrupted_recorder_goes_on(patch: pytest.MonkeyPatch) -> None:
    """Mutant: a recorder whose feed was interrupted does not notice."""
    patch.setattr(Recorder, "interrupted", lambda _self: None)


def gap_is_not_announced(patch: pytest.MonkeyPatch) -> None:
    """Mutant: members stay where they are when the feed was interrupted."""
    patch.setattr(Hub, "interrupted", lambda _self: [])
    patch.setattr(Hub, "expel_followers", lambda _self, _name: [])


def first_missed_message_is_left_out(patch: pytest.MonkeyPatch) -> None:
    """Mutant: a replay begins one message too late."""

    def missed(run: Any, key: bytes, topic: Any, since: int, *, everything: bool) -> Any:
        found, status = functions_missed(run, key, topic, since, everything=everything)
        return found[1:], status

    functions_missed = functions._missed
    patch.setattr(functions, "_missed", missed)


def everything_counts_as_recovered(patch: pytest.MonkeyPatch) -> None:
    """Mutant: each reply says that nothing was missed."""

    def parse(answer: Any) -> Any:
        return attrs.evolve(parse_replay(answer), recovered=True, reason=None)

    patch.setattr(recovery, "parse_replay", parse)


def unrecorded_messages_are_left_out(patch: pytest.MonkeyPatch) -> None:
    """Mutant: messages that wait for the recorder are not sent to a member that joins."""

    def catchup(group: Any, replay: Any, live: Any) -> Any:
        return recovery_catchup(group, replay, live._replace(waiting=()))

    recovery_catchup = recovery._catchup
    patch.setattr(recovery, "_catchup", catchup)


def messages_behind_the_marker_are_dropped(patch: pytest.MonkeyPatch) -> None:
    """Mutant: messages between the marker and Redis' answer reach no member that joins."""
    patch.setattr(Recovery, "_keep_tails", lambda _self, _batch: None)


def member_goes_live_at_the_answer(patch: pytest.MonkeyPatch) -> None:
    """Mutant: messages between the marker and the answer are forgotten on both sides of it."""

    def go_live(self: Recovery, live: Any) -> None:
        group = self._open.get(live.nonce)
        if group is not None:
            group.tail.clear()
        recovery_go_live(self, live)
        if group is not None:
            group.tail = _Forgetful()

    recovery_go_live = Recovery._go_live
    patch.setattr(Recovery, "_go_live", go_live)


class _Forgetful(list[tuple[str, bytes]]):
    def append(self, _one: tuple[str, bytes]) -> None:
        """Forget it."""


def offsets_are_not_followed(patch: pytest.MonkeyPatch) -> None:
    """Mutant: a hole in the offsets of the feed is no gap."""

    def deliver(self: Recovery, batch: Sequence[tuple[bytes, bytes]]) -> None:
        drawn = [
            one for one in batch if not (one[0].startswith(b"to:tangram-chaos-kept") and rng.random() < 0.1)
        ]
        recovery_deliver(self, drawn)

    rng = random.Random(0)
    recovery_deliver = Recovery.deliver
    patch.setattr(Recovery, "deliver", deliver)
    patch.setattr(Recovery, "_report_gap", lambda _self, _gap: None)


MUTANTS: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    stamp_after_message: "clients are cut off",
    marker_outside_of_the_script: "clients are cut off",
    epoch_kept_over_an_empty_redis: "the broker is killed, and comes back empty",
    time_without_recorder_keeps_the_epoch: "the recorder crashes",
    interrupted_recorder_goes_on: "connections to the broker break",
    gap_is_not_announced: "the bus crashes",
    first_missed_message_is_left_out: "clients are cut off",
    everything_counts_as_recovered: "the broker is killed, and comes back empty",
    unrecorded_messages_are_left_out: "clients are cut off, and the recorder is slow",
    messages_behind_the_marker_are_dropped: "clients are cut off, and answers are slow",
    member_goes_live_at_the_answer: "clients are cut off, and answers are slow",
    offsets_are_not_followed: "clients are cut off",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_planted_fault_of_a_history_is_found(
    monkeypatch: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The invariant goes red where nothing is missed without the mutant."""
    deed, prepare = CONDITIONS[MUTANTS[mutant]]
    prepare(monkeypatch)
    mutant(monkeypatch)

    assert "nothing_missed" in lost(deed)
