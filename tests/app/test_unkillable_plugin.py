"""A plugin that gave up and cannot end, because a task of its own ignores cancellation: the server ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock

import tangram
from tangram.testing import RunningTangram, TangramEnded, open_tangram
from tests.app.helpers import Journal, make_plugin

LIMITS = {"supervisor": {"start_timeout": 2.0, "stop_timeout": 2.0, "shutdown_timeout": 20.0}}
CHECKS = ("ends_with_its_status", "starts_in_order", "no_two_incarnations", "each_crash_logged_once")


class Deaf:
    """Ignores cancellation until it is freed; hears when the server begins its end."""

    def __init__(self) -> None:
        self.free = trio.Event()
        self.ends: list[tuple[float, bool]] = []

    async def __call__(self) -> None:
        with trio.CancelScope(shield=True):
            await self.free.wait()

    def listen(self, running: RunningTangram) -> None:
        """For ``on_server``: what ``serve`` arms its last resort with."""

        def on_stopping(_seconds: float, *, asked_for: bool) -> None:
            self.ends.append((trio.current_time(), asked_for))
            self.free.set()

        running.server.boot = attrs.evolve(running.server.boot, on_stopping=on_stopping)


def plugin_beside(deaf: Deaf) -> tuple[tangram.Plugin, trio.Event]:
    """A plugin of two services: one is deaf, one crashes when it is told to."""
    router, crash = tangram.APIRouter(prefix="/odd"), trio.Event()
    plugin = tangram.Plugin(routers=[router])
    plugin.name = "odd"

    @router.get("/value")
    async def value() -> int:
        return 1

    @plugin.register_service(priority=1, stop_timeout=2.0)
    async def ignoring(state: tangram.BackendState) -> None:
        await deaf()

    @plugin.register_service(priority=2)
    async def crashing(state: tangram.BackendState) -> None:
        await crash.wait()
        raise ValueError("the sibling broke")

    return plugin, crash


@pytest.mark.parametrize("strategy", ["one_for_all", "one_for_one"])
async def test_a_service_that_ignores_the_crash_of_its_sibling(
    autojump_clock: MockClock, strategy: str
) -> None:
    """Meanwhile nobody is told that all is well; after three stop times the server ends with status 70 and
    names the service and its line."""
    deaf = Deaf()
    plugin, crash = plugin_beside(deaf)
    limits = {"supervisor": {**LIMITS["supervisor"], "strategy": strategy}}
    async with open_tangram(
        [plugin, make_plugin(Journal())], limits, fakes=True, checks=CHECKS, on_server=deaf.listen
    ) as running:
        began = trio.current_time()
        crash.set()
        await trio.sleep(0.5)
        ready = await running.http.get("/-/readyz")
        listed = {one["name"]: one["state"] for one in (await running.http.get("/-/plugins")).json()}
        answer = await running.http.get("/odd/value")
        with trio.fail_after(60):
            status = await running.wait_ended()

        assert (ready.status_code, "plugin:odd is stopping" in ready.text) == (503, True)
        assert listed == {"odd": "stopping", "probe": "running"}
        assert answer.status_code == 503
        ((ended, asked_for),) = deaf.ends
        assert ended == pytest.approx(began + 6.0)
        assert not asked_for
        assert status == 70

    (told,) = [line for line in running.logs if line["event"].startswith("server ends")]
    assert told["child"] == "incarnation > plugin:odd > ignoring"
    assert "in Deaf.__call__" in told["where"]


@pytest.mark.parametrize("where", ["service", "lifespan"])
async def test_a_first_start_that_ignores_its_end(autojump_clock: MockClock, where: str) -> None:
    """A plugin that does not start in time, nor end in three stop times, ends the boot: nobody waits for
    ever."""
    deaf = Deaf()

    @asynccontextmanager
    async def lifespan(state: tangram.BackendState) -> AsyncIterator[None]:
        await deaf()
        yield

    plugin = tangram.Plugin(lifespan=lifespan if where == "lifespan" else None)
    if where == "service":

        @plugin.register_service(start_timeout=1.0, stop_timeout=1.0)
        async def ignoring(state: tangram.BackendState, *, task_status: trio.TaskStatus[None]) -> None:
            await deaf()

    with trio.move_on_after(120) as scope, pytest.raises(TangramEnded) as caught:
        async with open_tangram([plugin], LIMITS, fakes=True, checks=CHECKS, on_server=deaf.listen):
            pass
    deaf.free.set()

    assert not scope.cancelled_caught
    assert caught.value.status in {1, 70}
    # In time to say so: one start limit and three stop times, of the service or of the plugin.
    ((ended, asked_for),) = deaf.ends
    assert ended == pytest.approx(4.0 if where == "service" else 8.0, abs=0.5)
    assert not asked_for
