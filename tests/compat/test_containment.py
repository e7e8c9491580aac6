"""Existing plugins that break what they were lent, or their own end: their neighbours notice nothing."""

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


async def test_a_lifespan_that_raises_at_its_exit_is_named_and_no_crash() -> None:
    """What is raised while its plugin is being stopped is logged with the plugin's name, each time; it is
    charged to nobody, and everything is up again.
    """

    @asynccontextmanager
    async def lifespan(_state: BackendState) -> AsyncIterator[None]:
        yield
        raise LookupError("at the exit")

    async with open_tangram([named("leaving", lifespan=lifespan), named("other")], fakes=True) as running:
        await running.server.restart()

        assert await running.wait_steady() == "up"
        assert [event for event in running.events if event.kind == "crashed"] == []
    told = [one for one in running.logs if "while it was being stopped" in one["event"]]

    assert [one["child"] for one in told] == ["plugin:leaving"] * 2
    assert all("at the exit" in one["cause"] for one in told)


@pytest.mark.parametrize("islands", ["each", "one"])
async def test_what_a_plugin_changes_in_what_it_is_given_is_its_own(islands: str) -> None:
    """Configuration and the list of plugins are copies, in each incarnation anew: its neighbours, and its own
    next life, see what the file says. Attributes of the state are shared, as they always were.
    """
    vandal, witness = named("vandal"), named("witness")
    seen: list[tuple[Any, ...]] = []
    told = trio.Event()

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
        told.set()
        await asyncio.Future()

    config = {"compat": {"islands": islands}}
    async with open_tangram([vandal, witness], config, fakes=True) as running:
        for _ in range(2):
            with trio.fail_after(10):
                await told.wait()
            told = trio.Event()
            await running.server.restart()
        with trio.fail_after(10):
            await told.wait()

    theirs, others = seen[0], seen[1]
    assert theirs == ([], theirs[1], ["vandal", "witness"])
    assert theirs[1] != 1
    assert others == (*theirs, "a value")
    assert seen[2:4] == seen[4:6] == seen[0:2]


async def test_a_task_that_is_let_go_ends_with_its_plugin_and_its_error_is_named() -> None:
    """A task that nobody awaits fails: the plugin's name is in the log, and the island goes on. One that
    never ends, ends with its plugin.
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
        with trio.fail_after(10):
            await failed.wait()
        await running.server.restart()
        first = tasks[0]

        assert first.done()
        assert await running.wait_steady() == "up"
        assert [event for event in running.events if event.kind == "crashed"] == []
    (told,) = [one for one in running.logs if "nobody awaits this" in repr(one)][:1]

    assert told["plugin"] == "loose"
