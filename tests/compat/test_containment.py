"""Existing plugins that change shared objects or fail at their end do not affect others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tangram.compat.plugin import Plugin
from tangram.compat.state import BackendState
from tangram.testing import open_tangram

pytestmark = pytest.mark.slow


def named(name: str, **more: Any) -> Plugin:
    plugin = Plugin(**more)
    plugin.name = name
    return plugin


async def test_a_lifespan_that_raises_at_its_exit_is_logged_and_no_crash() -> None:
    """An exception at a lifespan's exit is logged with the plugin's name, and is no crash."""

    @asynccontextmanager
    async def lifespan(_state: BackendState) -> AsyncIterator[None]:
        yield
        raise LookupError("at the exit")

    async with open_tangram([named("leaving", lifespan=lifespan), named("other")], fakes=True) as running:
        await running.server.restart()

        assert await running.wait_steady() == "up"
        assert [event for event in running.events if event.kind == "crashed"] == []
    logged = [one for one in running.logs if "while it was being stopped" in one["event"]]

    assert [one["child"] for one in logged] == ["plugin:leaving"] * 2
    assert all("at the exit" in one["cause"] for one in logged)


@pytest.mark.parametrize("islands", ["each", "one"])
async def test_a_plugins_changes_of_its_copies_stay_its_own(islands: str) -> None:
    """Configuration and list of plugins are copies, new in each incarnation.

    Attributes of the state are shared, as on the published server.
    """
    vandal, witness = named("vandal"), named("witness")
    seen: list[tuple[Any, ...]] = []
    logged = trio.Event()

    def look(state: BackendState) -> tuple[Any, ...]:
        return list(state.config.core.plugins), state.config.server.port, sorted(state.loaded_plugins)

    @vandal.register_service(priority=1)
    async def change(state: BackendState) -> None:
        seen.append(look(state))
        state.config.core.plugins.append("nonsense")
        state.config.server.port = 1
        state.loaded_plugins.clear()
        state.shared_by_all = "a value"
        await asyncio.Future()

    @witness.register_service(priority=2)
    async def watch(state: BackendState) -> None:
        while not hasattr(state, "shared_by_all"):  # noqa: ASYNC110 - plugins share values, not events
            await asyncio.sleep(0.01)
        seen.append((*look(state), state.shared_by_all))
        logged.set()
        await asyncio.Future()

    config = {"compat": {"islands": islands}}
    async with open_tangram([vandal, witness], config, fakes=True) as running:
        for _ in range(2):
            with trio.fail_after(60):
                await logged.wait()
            logged = trio.Event()
            await running.server.restart()
        with trio.fail_after(60):
            await logged.wait()

    theirs, others = seen[0], seen[1]
    assert theirs == ([], theirs[1], ["vandal", "witness"])
    assert theirs[1] != 1
    assert others == (*theirs, "a value")
    assert seen[2:4] == seen[4:6] == seen[0:2]


async def test_a_forgotten_task_ends_with_its_plugin_and_its_error_is_logged() -> None:
    """An exception in a task that is never awaited is logged with the plugin's name.

    The island goes on. A task that never ends is cancelled with its plugin.
    """
    plugin = named("loose")
    tasks: list[asyncio.Task[None]] = []
    failed = trio.Event()

    async def fail() -> None:
        raise LookupError("nobody awaits this")

    @plugin.register_service()
    async def let_go(_state: BackendState) -> None:
        tasks.append(asyncio.create_task(asyncio.sleep(1000)))
        await asyncio.wait([asyncio.create_task(fail())])
        failed.set()
        await asyncio.Future()

    async with open_tangram([plugin], fakes=True) as running:
        with trio.fail_after(60):
            await failed.wait()
        await running.server.restart()
        first = tasks[0]

        assert first.done()
        assert await running.wait_steady() == "up"
        assert [event for event in running.events if event.kind == "crashed"] == []
    (logged,) = [one for one in running.logs if "nobody awaits this" in repr(one)][:1]

    assert logged["plugin"] == "loose"
