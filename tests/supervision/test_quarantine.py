"""Children that are left stopped: what a request, or another supervisor, makes of that."""

from __future__ import annotations

import pytest

from tangram.errors import StartFailed
from tangram.supervision import Crash, Window
from tests.supervision.supervisor_harness import World


async def test_a_failed_request_is_quarantine_again(autojump_clock: object, world: World) -> None:
    """A quarantined child whose requested start fails is told as quarantined once more, not only left so."""
    await world.open([world.child("p", window=Window(0, 30)), world.child("b")], strategy="one_for_one")
    await world.crash("p")
    world.forget()
    world.starts["p"].append("fail")
    with pytest.raises(StartFailed):
        await world.restart_child("p")

    assert world.states == {"p": "quarantined", "b": "running"}
    assert world.told("quarantined") == [("quarantined", "p")]


async def test_a_child_may_begin_in_quarantine(autojump_clock: object, world: World) -> None:
    """It is not started and nothing is told of it, its crash is the one it came with; a request starts it."""
    known = Crash(path=("p",), exception="ValueError", message="long ago", at=0.0)
    await world.open([world.child("a"), world.child("p", quarantined=known), world.child("c")])
    await world.crash("c")

    assert world.states == {"a": "running", "p": "quarantined", "c": "running"}
    assert "p" not in {child for _, child in world.told("started", "crashed", "quarantined")}
    assert world.decider.entries["p"].last_crash is known

    await world.restart_child("p")
    assert world.running == ["a", "p", "c"]
