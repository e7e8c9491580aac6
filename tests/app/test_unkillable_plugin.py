"""A plugin whose task ignores cancellation: the server ends."""

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


class UncancellableService:
    """A service that ignores cancellation until it is freed; notes the begin of the stop."""

    def __init__(self) -> None:
        self.free = trio.Event()
        self.ends: list[tuple[float, bool]] = []

    async def __call__(self) -> None:
        with trio.CancelScope(shield=True):
            await self.free.wait()

    def listen(self, running: RunningTangram) -> None:
        """Handle ``on_server``: note the call with which ``serve`` arms its forced exit."""

        def on_stopping(_seconds: float, *, asked_for: bool) -> None:
            self.ends.append((trio.current_time(), asked_for))
            self.free.set()

        running.server.boot = attrs.evolve(running.server.boot, on_stopping=on_stopping)


def plugin_beside(uncancellable: UncancellableService) -> tuple[tangram.Plugin, trio.Event]:
    """Return a plugin of two services: the given one, and one that crashes on command."""
    router, crash = tangram.APIRouter(prefix="/odd"), trio.Event()
    plugin = tangram.Plugin(routers=[router])
    plugin.name = "odd"

    @router.get("/value")
    async def value() -> int:
        return 1

    @plugin.register_service(priority=1, stop_timeout=2.0)
    async def ignoring(state: tangram.BackendState) -> None:
        await uncancellable()

    @plugin.register_service(priority=2)
    async def crashing(state: tangram.BackendState) -> None:
        await crash.wait()
        raise ValueError("the sibling broke")

    return plugin, crash


@pytest.mark.parametrize("strategy", ["one_for_all", "one_for_one"])
async def test_a_service_that_ignores_the_crash_of_its_sibling(
    autojump_clock: MockClock, strategy: str
) -> None:
    """After three stop times the server ends with status 70 and names the service's line.

    Until then no status page says that the server is ready.
    """
    uncancellable = UncancellableService()
    plugin, crash = plugin_beside(uncancellable)
    limits = {"supervisor": {**LIMITS["supervisor"], "strategy": strategy}}
    async with open_tangram(
        [plugin, make_plugin(Journal())], limits, fakes=True, checks=CHECKS, on_server=uncancellable.listen
    ) as running:
        began = trio.current_time()
        crash.set()
        await trio.sleep(0.5)
        ready = await running.http.get("/-/readyz")
        listed = {
            one["name"]: one["state"]
            for one in (await running.http.get("/-/plugins", headers=running.operator)).json()
        }
        answer = await running.http.get("/odd/value")
        with trio.fail_after(60):
            status = await running.wait_ended()

        assert (ready.status_code, "plugin:odd is stopping" in ready.text) == (503, True)
        assert listed == {"odd": "stopping", "probe": "running"}
        assert answer.status_code == 503
        ((ended, asked_for),) = uncancellable.ends
        assert ended == pytest.approx(began + 6.0)
        assert not asked_for
        assert status == 70

    (found,) = [line for line in running.logs if line["event"].startswith("server ends")]
    assert found["child"] == "incarnation > plugin:odd > ignoring"
    assert "in UncancellableService.__call__" in found["where"]


@pytest.mark.parametrize("where", ["service", "lifespan"])
async def test_a_start_that_ignores_its_cancellation_ends_the_boot(
    autojump_clock: MockClock, where: str
) -> None:
    """A plugin that does not start in time, nor end in three stop times, ends the boot."""
    uncancellable = UncancellableService()

    @asynccontextmanager
    async def lifespan(state: tangram.BackendState) -> AsyncIterator[None]:
        await uncancellable()
        yield

    plugin = tangram.Plugin(lifespan=lifespan if where == "lifespan" else None)
    if where == "service":

        @plugin.register_service(start_timeout=1.0, stop_timeout=1.0)
        async def ignoring(state: tangram.BackendState, *, task_status: trio.TaskStatus[None]) -> None:
            await uncancellable()

    with trio.move_on_after(120) as scope, pytest.raises(TangramEnded) as caught:
        async with open_tangram([plugin], LIMITS, fakes=True, checks=CHECKS, on_server=uncancellable.listen):
            pass
    uncancellable.free.set()

    assert not scope.cancelled_caught
    assert caught.value.status in {1, 70}
    # In time to say so: one start limit and three stop times, of the service or of the plugin.
    ((ended, asked_for),) = uncancellable.ends
    assert ended == pytest.approx(4.0 if where == "service" else 8.0, abs=0.5)
    assert not asked_for
