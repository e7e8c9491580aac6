"""Promises of whole servers on fakes and a virtual clock; most mutants are caught here.

Each test is green for the unchanged server. ``test_mutants`` shows that it goes red without its guard.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import structlog
import trio
from trio.testing import MockClock

import tangram
from tangram.http.native.channels import ChannelSocket
from tangram.http.native.connection import HttpConnection
from tangram.testing import INVARIANTS, Chaos, RunningTangram, TangramEnded, open_broker, open_tangram
from tests.app.helpers import Journal, make_impatient, make_plugin

ALL = tuple(INVARIANTS)
PATIENT: dict[str, Any] = {"root_restarts": 100, "plugin_restarts": 100}
CRASHES = ("crash_plugin", "crash_in_cleanup", "crash_channels", "crash_web", "crash_bus", "broker_kill")


@asynccontextmanager
async def open_checked(
    *plugins: tangram.Plugin, core: dict[str, object] | None = None, **supervisor: object
) -> AsyncIterator[RunningTangram]:
    """Open a server with two plugins, or the given ones, under all invariants."""
    chosen = plugins or (make_plugin(Journal()), make_plugin(Journal(), "other"))
    async with open_tangram(
        chosen, {"core": core or {}, "supervisor": supervisor}, fakes=True, checks=ALL
    ) as running:
        yield running


async def crash(running: RunningTangram, child: str) -> None:
    """Crash a child, and wait for the event."""
    mark = len(running.events)
    running.crash(child)
    await running.wait_event("crashed", child, after=mark)


async def crash_at(running: RunningTangram, child: str, *times: float) -> None:
    """Crash a child at these times from now on, each time after the tree is up again."""
    began = trio.current_time()
    for at in times:
        await trio.sleep_until(began + at)
        assert await running.wait_steady() == "up"
        await crash(running, child)


def broken_from_the_start() -> tangram.Plugin:
    plugin = tangram.Plugin()
    plugin.name = "broken"

    @plugin.register_service()
    async def never(state: tangram.BackendState, *, task_status: trio.TaskStatus[None]) -> None:
        raise OSError("the device is not there")

    return plugin


async def test_an_idle_server_keeps_every_promise(autojump_clock: MockClock) -> None:
    """A server that boots, serves, restarts cleanly and stops keeps every promise."""
    async with open_checked() as running:
        await running.server.restart()
        assert (await running.http.get("/-/readyz")).status_code == 200


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one", "one_for_one"])
async def test_a_server_with_crashes_keeps_every_promise(autojump_clock: MockClock, strategy: str) -> None:
    """Each part crashes once, then a planned restart follows: every promise holds."""
    async with open_checked(strategy=strategy, **PATIENT) as running:
        chaos = Chaos(running)
        for name in (*CRASHES, "planned_restart"):
            await chaos.strike(name)
        assert running.server.ready_count > len(CRASHES) / 2


async def test_a_slow_plugin_is_waited_for(autojump_clock: MockClock) -> None:
    """Children that were started before a plugin are not stopped before it has cleaned up."""
    slow = tangram.Plugin()
    slow.name = "slow"

    @slow.register_service()
    async def service(state: tangram.BackendState) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(1, shield=True):
                await trio.sleep_forever()

    async with open_checked(make_plugin(Journal()), slow):
        pass


async def test_a_plugin_that_cannot_start_is_left_out(autojump_clock: MockClock) -> None:
    """A plugin that fails at first boot is quarantined; the server and the others run."""
    async with open_checked(broken_from_the_start(), make_plugin(Journal())) as running:
        assert await running.wait_steady() == "quarantined"
        assert (await running.http.get("/probe/value")).status_code == 200


async def test_strict_ends_a_server_whose_plugin_cannot_start(autojump_clock: MockClock) -> None:
    """A plugin that cannot start ends a strict server with status 1."""
    with pytest.raises(TangramEnded) as caught:
        async with open_checked(broken_from_the_start(), core={"strict": True}):
            raise AssertionError("it came up")

    assert caught.value.status == 1


async def test_an_outage_crashes_no_plugin(autojump_clock: MockClock) -> None:
    """A plugin that fails because Redis is away waits for it and is not charged."""
    seen: list[RunningTangram] = []
    async with open_checked(make_plugin(Journal()), make_impatient(seen)) as running:
        seen.append(running)
        assert running.memory is not None
        running.faulty_dial.fails = lambda operation: operation == "dial"
        running.memory.drop()
        await trio.sleep(0.3)
        running.faulty_dial.fails = None
        await trio.sleep(1)

        assert await running.wait_steady() == "up"
        fallen = [event.child for event in running.events if event.kind == "restarting"]
        assert fallen == []


async def test_an_exception_in_a_connection_ends_only_that_connection(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in one connection ends that one: no child crashes, and the next is served."""

    async def fail(connection: HttpConnection) -> None:
        monkeypatch.undo()
        raise RuntimeError("a bug in one connection")

    async with open_checked() as running:
        monkeypatch.setattr(HttpConnection, "run", fail)
        with pytest.raises(httpx.TransportError):
            await running.http.get("/-/readyz")

        assert (await running.http.get("/-/readyz")).status_code == 200
        assert [event.child for event in running.events if event.kind == "crashed"] == []


async def test_an_exception_in_a_websocket_ends_only_that_websocket(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in one channel's connection ends that one; its client comes back."""
    failed: list[ChannelSocket] = []
    run = ChannelSocket.run

    async def fail_once(socket: ChannelSocket) -> None:
        if failed:
            return await run(socket)
        failed.append(socket)
        raise RuntimeError("a bug in one connection")

    monkeypatch.setattr(ChannelSocket, "run", fail_once)
    async with open_checked() as running, running.open_socket() as socket:
        token = await tangram.fetch_token(running.url, "probe")
        with trio.fail_after(20):
            with pytest.raises(tangram.ChannelClosed):
                await socket.join("probe", token=token.token)
            while not socket.connected:  # noqa: ASYNC110 - it has no event for that
                await trio.sleep(0.01)
            channel = await socket.join("probe", token=token.token)
            await channel.receive()

        assert len(failed) == 1
        assert [event.child for event in running.events if event.kind == "crashed"] == []


async def test_a_lifespan_may_await_while_the_server_stops(autojump_clock: MockClock) -> None:
    """A lifespan's clean-up may await, within its time, although the server is stopping."""
    left: list[float] = []

    @asynccontextmanager
    async def lifespan(state: tangram.BackendState) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await trio.sleep(1)
            left.append(trio.current_time())

    async with open_checked(tangram.Plugin(lifespan=lifespan)):
        pass

    assert len(left) == 1


async def test_secrets_do_not_show(autojump_clock: MockClock) -> None:
    """Logging the record that holds the secrets shows none of them."""
    async with open_checked() as running:
        assert running.server.tree is not None
        structlog.get_logger().info("secrets of the server", secrets=running.server.tree.secrets)


@pytest.mark.slow
async def test_a_back_off_ends_when_redis_is_back() -> None:
    """A plugin in a long back-off starts at once when the configured Redis is back."""
    waits = {"backoff_initial": 60.0, "backoff_max": 60.0, "strategy": "one_for_one"}
    with open_broker() as redis:
        core = {"redis_url": redis.url}
        async with open_tangram([make_plugin(Journal())], {"core": core, "supervisor": waits}) as running:
            await _until_broker(running, up=True)
            for _ in range(2):
                assert await running.wait_steady() == "up"
                await crash(running, "plugin:probe")
            mark = len(running.events)
            redis.kill()
            await _until_broker(running, up=False)
            redis.start()

            await running.wait_event("started", "plugin:probe", after=mark, seconds=30.0)


async def test_the_waits_between_restarts_are_the_operators(autojump_clock: MockClock) -> None:
    """The incarnation's parts and the broker wait as the back-off settings say."""
    waits: dict[str, Any] = {"backoff_initial": 1.0, "backoff_max": 7.0, "backoff_reset": 20.0}
    async with open_checked(tangram.Plugin(), **waits, **PATIENT) as running:
        for child in ("web", "broker"):
            await crash_at(running, child, 0, 1, 4, 10, 20, 60)
            assert await running.wait_steady() == "up"
            waits_seen = [
                one.delay for one in running.events if (one.kind, one.child) == ("restarting", child)
            ]

            assert waits_seen[0] == waits_seen[5] == 0.0
            wide = [
                abs((wait or 0.0) / plain - 1)
                for wait, plain in zip(waits_seen[1:5], (1, 2, 4, 7), strict=True)
            ]
            assert max(wide) <= 0.2


async def test_the_default_waits_between_restarts(autojump_clock: MockClock) -> None:
    """The first wait is 0, then 50 ms doubling to 5 s, with 20 % jitter.

    No two waits are alike, and 60 s without a crash, not 58, begin anew.
    """
    async with open_checked(tangram.Plugin(), **PATIENT) as running:
        await crash_at(running, "web", *range(8), 12, 18, 76, 137)
        assert await running.wait_steady() == "up"
        told = [one.delay or 0.0 for one in running.events if one.kind == "restarting"]

    plain = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0)
    shares = [wait / each for wait, each in zip(told[1:-1], plain, strict=True)]
    assert told[0] == told[-1] == 0.0
    assert all(0.8 <= round(share, 6) <= 1.2 for share in shares)
    assert len(set(shares)) == len(shares)


async def _until_broker(running: RunningTangram, *, up: bool) -> None:
    broker = running.server.tree and running.server.tree.broker
    assert broker
    with trio.fail_after(10):
        while broker.statistics().up is not up:  # noqa: ASYNC110 - it has no event for that
            await trio.sleep(0.02)


@pytest.mark.slow
async def test_the_default_budget_of_a_plugin(autojump_clock: MockClock) -> None:
    """Five restarts in 30 s are allowed; the sixth crash quarantines that plugin alone."""
    async with open_checked() as running:
        await crash_at(running, "plugin:other", 0, 7, 14, 21, 28, 35)
        assert await running.wait_steady() == "up"

    async with open_checked() as running:
        await crash_at(running, "plugin:other", 0, 5, 10, 15, 20, 28)
        assert await running.wait_steady() == "quarantined"
        assert (await running.http.get("/probe/value")).status_code == 200


@pytest.mark.slow
async def test_the_default_budget_of_the_core(autojump_clock: MockClock) -> None:
    """Three restarts in 60 s are allowed; the fourth crash ends the server with status 70."""
    async with open_checked() as running:
        await crash_at(running, "web", 0, 20, 40, 58)
        with trio.fail_after(20):
            await running.wait_ended()

    assert running.status == 70
    assert len([line for line in running.logs if line.get("event") == "crash before the end"]) == 4


async def test_a_quarantine_outlives_the_incarnation(autojump_clock: MockClock) -> None:
    """A quarantined plugin stays stopped after a crash of the broker."""
    async with open_checked(plugin_restarts=0) as running:
        await crash(running, "plugin:other")
        assert await running.wait_steady() == "quarantined"
        mark = len(running.events)
        await Chaos(running).strike("broker_kill")

        assert await running.wait_steady() == "quarantined"
        again = {event.child for event in running.events[mark:] if event.kind == "started"}
        assert "plugin:probe" in again
        assert "plugin:other" not in again


async def test_exhausted_exit_ends_the_server(autojump_clock: MockClock) -> None:
    """With ``exhausted = "exit"`` too many crashes of a plugin end the server, status 70."""
    async with open_checked(plugin_restarts=0, exhausted="exit") as running:
        await crash(running, "plugin:other")
        with trio.fail_after(20):
            await running.wait_ended()

    assert running.status == 70


async def test_the_topic_admin_receives_a_crash(autojump_clock: MockClock) -> None:
    """Members of the topic ``admin`` receive a crash, with child and cause."""
    async with open_checked(strategy="one_for_one") as running, running.open_socket() as socket:
        bearer = running.operator["authorization"].removeprefix("Bearer ")
        token = await tangram.fetch_token(running.url, "admin", bearer=bearer)
        channel = await socket.join("admin", token=token.token)
        await crash(running, "plugin:other")
        with trio.fail_after(5):
            while (event := await channel.receive()).name != "supervisor.crashed":
                pass

        assert event.payload["child"] == "plugin:other"
        assert "a test crashed" in event.payload["cause"]
