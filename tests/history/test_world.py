"""Nothing is missed, whatever crashes: thousands of drawn runs, and planted faults that must be found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest

from tangram.channels.hub import POSITION
from tangram.gateway import recovery
from tangram.history.feed import Delivery, Feed, Live
from tangram.history.recorder import Recorder
from tangram.history.unrecorded import Unrecorded
from tangram.testing.fakes.valkey import functions
from tests.history import world
from tests.history.world import World

SEEDS = 60
"""Runs of the suite: two seconds. ``python -m tests.history 0 10000`` plays more."""


def test_no_client_misses_a_message_unnoticed() -> None:
    """In no run does a client miss a message, unless the reply of a join has told it so."""
    recovered = told = 0
    for seed in range(SEEDS):
        run = World(seed)
        assert run.run() == [], f"seed {seed}"
        recovered += sum(client.recovered for client in run.clients)
        told += sum(client.told for client in run.clients)

    assert recovered > 5 * SEEDS
    assert told > SEEDS


def _lease_without_gap(run: Any, keys: Sequence[bytes], args: Sequence[bytes]) -> Any:
    number = run.fields(keys[1]).get(b"f", b"0")
    return functions_lease(run, keys, [args[0], args[1], number, *args[3:]])


functions_lease = functions._lease


def _drop_at_takeover(self: Unrecorded, number: int, *, broke: bool, mine: bool = False) -> None:
    if mine:
        self._drop(len(self))
    heard_lease(self, number, broke=broke, mine=mine)


heard_lease = Unrecorded.heard_lease


def _marker_before_the_read(self: world.Node, client: world.Client) -> None:
    self.world.nonces += 1
    self.world.publish(
        b"to:phoenix:at",
        b'{"t":"%b","e":"x","o":0,"m":"n%d"}' % (client.topic.encode(), self.world.nonces),
    )
    self.world.message()
    self.world.nonces -= 1
    node_join(self, client)


node_join = world.Node.join


def _trimmed_is_recovered(
    run: Any, key: bytes, topic: Any, since: int, *, everything: bool
) -> tuple[Any, bytes]:
    found, _ = functions_missed(run, key, topic, since, everything=True)
    return found, b"ok"


functions_missed = functions._missed


def _without_waiting(group: Any, replay: Any, live: Live) -> Any:
    return recovery_catchup(group, replay, live._replace(waiting=()))


def _position_before_events(group: Any, replay: Any, live: Live) -> Any:
    catchup = recovery_catchup(group, replay, live)
    return attrs.evolve(catchup, response={**catchup.response, "position": catchup.position})


recovery_catchup = recovery._catchup


def _positions_first(self: Feed, batch: Sequence[tuple[bytes, bytes]]) -> Any:
    return [
        Delivery(sorted(step.batch, key=lambda one: one[0] != POSITION))
        if isinstance(step, Delivery)
        else step
        for step in feed_take(self, batch)
    ]


feed_take = Feed.take


def _always_in_step(self: Feed, batch: Sequence[tuple[bytes, bytes]]) -> Any:
    return [
        step._replace(in_step=True) if isinstance(step, Live) else step for step in feed_take(self, batch)
    ]


def _forget_the_rest(self: Unrecorded, nonce: str, number: int, after: int) -> None:
    heard_in_step(self, nonce, number, 0)


heard_in_step = Unrecorded.heard_in_step


def _keep_the_lease(self: Recorder) -> None:
    self.unrecorded._drop(len(self.unrecorded))


def _epoch_over_an_empty_redis(self: World) -> str:
    return "e1"


MUTANTS: dict[str, tuple[object, str, object]] = {
    "a time without recorder keeps the epoch": (functions._FUNCTIONS, "tangram_lease", _lease_without_gap),
    "the queue is dropped at a take-over": (Unrecorded, "heard_lease", _drop_at_takeover),
    "the marker is published before the read": (world.Node, "join", _marker_before_the_read),
    "a trimmed history counts as recovered": (functions, "_missed", _trimmed_is_recovered),
    "messages that wait for the recorder are not sent": (world, "_catchup", _without_waiting),
    "the reply has the position behind the events": (world, "_catchup", _position_before_events),
    "positions come before their messages": (Feed, "take", _positions_first),
    "a feed is always in step": (Feed, "take", _always_in_step),
    "records after the hello are all taken for later ones": (Unrecorded, "heard_in_step", _forget_the_rest),
    "an interrupted recorder keeps its number": (Recorder, "interrupted", _keep_the_lease),
    "a new epoch has the name of an old one": (World, "new_epoch", _epoch_over_an_empty_redis),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each of these faults makes a client miss a message within a few runs."""
    target, attribute, replacement = MUTANTS[name]
    if isinstance(target, dict):
        monkeypatch.setitem(target, attribute.encode(), replacement)
    else:
        monkeypatch.setattr(target, attribute, replacement)

    assert any(World(seed).run() for seed in range(300))
