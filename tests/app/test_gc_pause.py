"""The pause of the garbage collector during restarts."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import trio

from tangram.app.gc_pause import ANSWER_TIME, MAX_RESTARTS, CollectorPause
from tangram.supervision import SupervisionEvent
from tangram.supervision.spec import Kind
from tangram.testing import open_tangram


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    yield
    gc.enable()


def event(kind: Kind, supervisor: str = "incarnation") -> SupervisionEvent:
    return SupervisionEvent(kind=kind, supervisor=supervisor, child=None, at=0.0)


def test_the_pause_lasts_from_the_begin_of_a_restart_to_its_end() -> None:
    """The collector is off while the tree restarts, and on afterwards."""
    pause = CollectorPause()
    pause(event("restarting"))
    pause(event("restarting"))
    pause(event("ready", "plugin:probe"))
    during = gc.isenabled()
    pause(event("ready"))

    assert not during
    assert gc.isenabled()


def test_a_restart_that_follows_at_once_prolongs_the_pause() -> None:
    """The end that the first restart has planned does not come within the second one."""
    calls: list[Callable[[], None]] = []
    pause = CollectorPause(calls.append)
    pause(event("restarting"))
    pause(event("ready"))
    pause(event("restarting"))
    calls.pop()()
    during = gc.isenabled()
    pause(event("ready"))
    calls.pop()()

    assert not during
    assert gc.isenabled()


def test_the_pause_ends_after_many_restarts() -> None:
    """After `MAX_RESTARTS` the collector runs once, and the next restart begins a new pause."""
    pause = CollectorPause(lambda _call: None)
    on = []
    for _ in range(3 * (MAX_RESTARTS + 1)):
        pause(event("restarting"))
        assert not gc.isenabled()
        pause(event("ready"))
        on.append(gc.isenabled())

    assert on == ([False] * MAX_RESTARTS + [True]) * 3


def test_a_restart_inside_a_plugin_begins_no_pause() -> None:
    """Only restarts of the tree begin a pause."""
    pause = CollectorPause()
    pause(event("restarting", "probe"))

    assert gc.isenabled()


def test_a_disabled_collector_stays_disabled() -> None:
    """A program that disabled the collector does not find it enabled after a restart."""
    gc.disable()
    pause = CollectorPause()
    pause(event("planned"))
    pause(event("ready"))
    pause.end()

    assert not gc.isenabled()


@pytest.mark.slow
async def test_the_collector_is_enabled_after_crash_and_end() -> None:
    """A whole server leaves the collector as it was before the start."""
    async with open_tangram() as running:
        seen: list[bool] = []
        running.server.event_log.listen(
            lambda event: seen.append(gc.isenabled()) if event.kind in {"started", "ready"} else None
        )
        running.crash("bus")
        await running.wait_ready(2)
        with trio.fail_after(30):
            while not gc.isenabled():  # noqa: ASYNC110 - the collector has no event
                await trio.sleep(ANSWER_TIME)
        running.crash("bus")

    assert seen
    assert not any(seen)  # also when it is ready: waiting requests are answered first
    assert gc.isenabled()
