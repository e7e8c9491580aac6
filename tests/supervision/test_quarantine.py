"""Children in quarantine: requests for them, and other supervisors."""

from __future__ import annotations

import pytest

from tangram.errors import StartFailed
from tangram.supervision import Crash, Window
from tests.supervision.supervisor_harness import World


async def test_a_failed_request_is_quarantine_again(autojump_clock: object, world: World) -> None:
    """A quarantined child whose requested start fails is reported as quarantined once more."""
    await world.open([world.child("p", window=Window(0, 30)), world.child("b")], strategy="one_for_one")
    await world.crash("p")
    world.forget()
    world.starts["p"].append("fail")
    with pytest.raises(StartFailed):
        await world.restart_child("p")

    assert world.states == {"p": "quarantined", "b": "running"}
    assert world.reported("quarantined") == [("quarantined", "p")]


async def test_a_child_may_begin_in_quarantine(autojump_clock: object, world: World) -> None:
    """It is neither started nor reported, keeps its crash of before, and starts on request."""
    known = Crash(path=("p",), exception="ValueError", message="long ago", at=0.0)
    await world.open([world.child("a"), world.child("p", quarantined=known), world.child("c")])
    await world.crash("c")

    assert world.states == {"a": "running", "p": "quarantined", "c": "running"}
    assert "p" not in {child for _, child in world.reported("started", "crashed", "quarantined")}
    assert world.decider.entries["p"].last_crash is known

    await world.restart_child("p")
    assert world.running == ["a", "p", "c"]
