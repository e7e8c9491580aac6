"""The operator's view of crashes and outages, and the ways back: whole servers on fakes."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

import tangram
from tangram.channels.codec import encode_json
from tangram.config import BrokerConfig
from tangram.supervision import run_sync_in_thread
from tangram.testing import RunningTangram, TangramEnded, free_port, open_tangram
from tangram.testing.fakes.memory_broker import MemoryBroker
from tests.app.helpers import Journal, make_plugin
from tests.mutants.test_promises import broken_from_the_start, crash


@asynccontextmanager
async def open_shown(
    *plugins: tangram.Plugin, checks: tuple[str, ...] = (), **supervisor: object
) -> AsyncIterator[RunningTangram]:
    """Open a server whose port is in memory as well, so that a request takes no time."""
    chosen = plugins or (make_plugin(Journal()), make_plugin(Journal(), "other"))
    config = {"supervisor": {"strategy": "one_for_one", **supervisor}}
    async with open_tangram(chosen, config, fakes=True, memory_port=True, checks=checks) as running:
        yield running


async def shown(running: RunningTangram) -> Mapping[str, Any]:
    """Return the operator's answer of ``/-/supervision``."""
    answer = await running.http.get("/-/supervision", headers=running.operator)
    told: Mapping[str, Any] = answer.json()
    return told


def part_of(told: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a part of the incarnation from the answer."""
    incarnation = next(child for child in told["tree"]["children"] if child["name"] == "incarnation")
    found: Mapping[str, Any] = next(
        child for child in incarnation["nested"][0]["children"] if child["name"] == name
    )
    return found


async def state_of(running: RunningTangram, plugin: str) -> str:
    listed = (await running.http.get("/-/plugins", headers=running.operator)).json()
    return str(next(one["state"] for one in listed if one["name"] == plugin))


def plugin_of(run: Any, **more: Any) -> tangram.Plugin:
    """Make a plugin called ``odd`` with one service."""
    plugin = tangram.Plugin()
    plugin.name = "odd"
    plugin.register_service(**more)(run)
    return plugin


async def test_a_plugin_that_fails_to_restart_is_shown(autojump_clock: MockClock) -> None:
    """A plugin that fails to start again and again is shown with its next delay.

    The other plugins come back meanwhile, and a stop is obeyed at once.
    """
    first = [True]

    async def once(state: tangram.BackendState) -> None:
        if not first:
            raise OSError("the device is gone")
        first.clear()
        await trio.sleep_forever()

    async with open_shown(
        plugin_of(once),
        make_plugin(Journal()),
        backoff_initial=3.0,
        backoff_max=3.0,
        backoff_reset=1000.0,
        plugin_restarts=1000,
    ) as running:
        await crash(running, "plugin:odd")
        await trio.sleep(20)
        await crash(running, "plugin:probe")
        await trio.sleep(0.1)
        mark = len(running.events)
        told = await shown(running)
        await running.wait_event("restarting", "plugin:odd", after=mark)

        odd, probe = part_of(told, "plugin:odd"), part_of(told, "plugin:probe")
        assert odd["restarts"] > 5
        assert 0 < odd["next_delay"] <= 3.6
        assert "the device is gone" in odd["last_crash"]["message"]
        assert (probe["state"], probe["incarnation"]) == ("running", 2)
        began = trio.current_time()
    assert trio.current_time() - began < 1.0


async def test_an_event_is_one_record_everywhere(autojump_clock: MockClock) -> None:
    """Listeners and ``/-/supervision`` get the same record of a crash, counted there."""
    async with open_shown() as running:
        await crash(running, "plugin:other")
        assert await running.wait_steady() == "up"
        told = await shown(running)

        heard = [event.to_dict() for event in running.events]
        assert told["events"] == json.loads(encode_json(heard))
        crashed = next(event for event in told["events"] if event["kind"] == "crashed")
        assert crashed["child"] == "plugin:other"
        assert "a test crashed" in crashed["cause"]
        assert (told["counts"]["crashed"], told["counts"]["restarting"]) == (1, 1)


async def test_a_stubborn_plugin_is_shown_with_its_line(autojump_clock: MockClock) -> None:
    """``/-/supervision`` names the line of a plugin that runs past its stop time."""
    free = trio.Event()

    async def deaf(state: tangram.BackendState) -> None:
        with trio.CancelScope(shield=True):
            await free.wait()

    async with open_shown(plugin_of(deaf, stop_timeout=1.0), stop_timeout=1.0) as running:
        async with trio.open_nursery() as nursery:
            assert running.server.tree is not None
            assert running.server.tree.incarnation.supervisor is not None
            nursery.start_soon(running.server.tree.incarnation.supervisor.restart_child, "plugin:odd")
            await running.wait_event("stubborn", "plugin:odd")
            told = str((await shown(running))["tree"])
            free.set()
            nursery.cancel_scope.cancel()

    assert f"{__file__}:{deaf.__code__.co_firstlineno + 2}" in told


async def test_a_thread_that_was_left_behind_is_shown(autojump_clock: MockClock) -> None:
    """``/-/supervision`` counts and names threads that run on after their service."""
    free, began = threading.Event(), threading.Event()

    def deaf() -> None:
        began.set()
        free.wait()

    async with open_shown() as running:
        before = (await shown(running))["threads"]["abandoned"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: run_sync_in_thread(deaf, name="deaf", stop_timeout=0.01))
            await trio.to_thread.run_sync(began.wait)
            nursery.cancel_scope.cancel()
        threads = (await shown(running))["threads"]
        free.set()

    assert threads["abandoned"] == before + 1
    assert [ghost["name"] for ghost in threads["ghosts"]] == ["deaf"]


@pytest.mark.parametrize("way", ["request", "reload"])
async def test_a_plugin_in_quarantine_is_shown_and_may_try_again(autojump_clock: MockClock, way: str) -> None:
    """A quarantined plugin is shown, and starts again by a request or a reload.

    It gets a restart window of its own.
    """
    async with open_shown(plugin_restarts=1) as running:
        for _ in range(2):
            await crash(running, "plugin:other")
            await running.wait_steady()
        assert await state_of(running, "other") == "quarantined"

        if way == "reload":
            await running.server.reload()
        else:
            answer = await running.http.post("/-/plugins/other/restart", headers=running.operator)
            assert answer.status_code == 200
        assert await running.wait_steady() == "up"
        await crash(running, "plugin:other")
        assert await running.wait_steady() == "up"

        running.crash("broker")
        await running.wait_event("crashed", "broker")
        assert await running.wait_steady() == "up"


async def test_a_server_that_cannot_start_logs_the_cause(autojump_clock: MockClock) -> None:
    """A strict server logs the exception of the plugin that could not start."""
    logs: list[RunningTangram] = []
    with pytest.raises(TangramEnded):
        async with open_tangram(
            [broken_from_the_start()], {"core": {"strict": True}}, fakes=True, on_server=logs.append
        ):
            raise AssertionError("it came up")

    told = [line for line in logs[0].logs if line["event"] == "server cannot start"]
    assert len(told) == 1
    assert "the device is not there" in told[0]["cause"]


async def test_waiting_for_redis_is_shown(autojump_clock: MockClock) -> None:
    """A server without its configured Redis comes up, is not ready, and says so.

    It logs when Redis is there, and restarts no child.
    """
    port = free_port()

    def stand_in(running: RunningTangram) -> None:
        running.memory = MemoryBroker(BrokerConfig(port=port))

    def said(running: RunningTangram) -> list[str]:
        return [line["event"] for line in running.logs if line["event"].startswith("tangram ready")]

    config = {"core": {"redis_url": f"redis://127.0.0.1:{port}"}}
    async with (
        trio.open_nursery() as nursery,
        open_tangram(
            [make_plugin(Journal())], config, fakes=True, memory_port=True, checks=(), on_server=stand_in
        ) as running,
    ):
        away: httpx.Response = await running.http.get("/-/readyz")
        first = said(running)
        assert running.memory is not None
        await nursery.start(running.memory.run)
        assert await running.wait_steady() == "up"
        there = await running.http.get("/-/readyz")

        assert (away.status_code, away.json()["reasons"]) == (503, ["redis is away"])
        assert first == ["tangram ready, but redis is away"]
        assert said(running)[1:] == ["tangram ready"]
        assert there.status_code == 200
        assert [event.child for event in running.events if event.kind == "restarting"] == []
        nursery.cancel_scope.cancel()
