"""``SystemExit`` in an existing plugin is a crash of it, and does not end the server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from importlib import import_module

import pytest
import trio

from tangram.compat.names import has_fastapi
from tangram.compat.plugin import Plugin
from tangram.compat.state import BackendState
from tangram.testing import open_tangram

pytestmark = pytest.mark.slow

STATUS = 4
"""An exit status that no code of tangram uses."""


async def leave_in_the_service() -> None:
    sys.exit(STATUS)


async def leave_in_a_task() -> None:
    task = asyncio.create_task(leave_in_the_service())
    await asyncio.wait([task])


async def leave_in_a_callback() -> None:
    asyncio.get_running_loop().call_soon(sys.exit, STATUS)
    await asyncio.sleep(1000)


async def leave_in_a_worker_thread() -> None:
    await asyncio.to_thread(sys.exit, STATUS)


WAYS = [leave_in_the_service, leave_in_a_task, leave_in_a_callback, leave_in_a_worker_thread]


@pytest.mark.parametrize("islands", ["each", "one"])
@pytest.mark.parametrize("leave", WAYS, ids=lambda way: way.__name__)
async def test_sys_exit_is_a_crash_of_the_plugin(leave: Callable[[], object], islands: str) -> None:
    """The plugin comes back, also where all existing plugins share one loop."""
    plugin, runs = Plugin(), 0
    plugin.name = "demo"

    @plugin.register_service()
    async def service(_state: BackendState) -> None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.05)
        if runs == 1:
            await leave()  # type: ignore[misc]
        await asyncio.sleep(1000)

    async with open_tangram([plugin], {"compat": {"islands": islands}}) as running:
        with trio.fail_after(60):
            while runs < 2:  # noqa: ASYNC110 - a service reports its second run to no event
                await trio.sleep(0.01)
        causes = [str(event.cause) for event in running.events if event.kind == "crashed"]

    assert any(f"SystemExit({STATUS})" in cause for cause in causes)
    assert running.status == 0


@pytest.mark.skipif(not has_fastapi(), reason="FastAPI is not installed here: make test-downstream")
async def test_sys_exit_in_a_handler_costs_only_its_request() -> None:
    """The answer is 500, for an async and a sync handler, and the plugin goes on."""
    plugin = Plugin()
    plugin.name = "demo"
    router = import_module("fastapi").APIRouter(prefix="/demo")
    plugin.routers.append(router)

    @router.get("/async")  # type: ignore[untyped-decorator]
    async def leave() -> None:
        sys.exit(STATUS)

    @router.get("/sync")  # type: ignore[untyped-decorator]
    def leave_in_a_thread() -> None:
        sys.exit(STATUS)

    async with open_tangram([plugin]) as running:
        answers = [await running.http.get(path) for path in ("/demo/async", "/demo/sync")]
        (shown,) = (await running.http.get("/-/plugins", headers=running.operator)).json()

    assert [answer.status_code for answer in answers] == [500, 500]
    assert (shown["state"], shown["restarts"], running.status) == ("running", 0, 0)
