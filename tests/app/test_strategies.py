"""The children that restart after each crash, under each strategy, in the whole server."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

import tangram
from tangram.client import Channel
from tangram.errors import Refused
from tangram.redis_url import redact_url
from tangram.supervision import Strategy
from tangram.testing import RealBroker, RunningTangram, open_broker, open_tangram
from tests.app.helpers import Journal, make_plugin

pytestmark = pytest.mark.slow

PARTS = ["state", "bus", "plugin:probe", "plugin:other", "channels", "web"]
STRATEGIES: list[Strategy] = ["one_for_all", "rest_for_one", "one_for_one"]
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


@asynccontextmanager
async def open_two(strategy: Strategy, **core: str) -> AsyncIterator[RunningTangram]:
    plugins = [make_plugin(Journal()), make_plugin(Journal(), "other")]
    async with open_tangram(plugins, {"supervisor": {"strategy": strategy}, "core": core}) as running:
        yield running


def expected(strategy: Strategy, crashed: str) -> list[str]:
    """Return the children that must be started again, in order."""
    at = PARTS.index(crashed)
    return {"one_for_all": PARTS, "rest_for_one": PARTS[at:], "one_for_one": [crashed]}[strategy]


def started(running: RunningTangram, after: int) -> list[str]:
    return [
        str(event.child)
        for event in running.events[after:]
        if (event.supervisor, event.kind) == ("incarnation", "started")
    ]


async def until(condition: Callable[[], bool]) -> None:
    """Poll until a condition holds that no event reports."""
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await trio.sleep(0.01)


async def crash(running: RunningTangram, child: str) -> list[str]:
    """Crash a part, and return the children that are started until all are up."""
    mark = len(running.events)
    running.crash(child)
    await running.wait_event("crashed", child, after=mark)
    await until(
        lambda: any((one.kind, one.supervisor) == ("ready", "incarnation") for one in running.events[mark:])
    )
    return started(running, mark)


async def charged(running: RunningTangram) -> dict[str, int]:
    """Return the restarts in each window that has any."""
    tree = running.server.tree
    assert tree is not None
    await until(lambda: tree.incarnation.supervisor is not None)
    assert tree.incarnation.supervisor is not None
    statistics = tree.incarnation.supervisor.statistics()
    windows = {child.name: child.window for child in statistics.children} | {"root": statistics.window}
    return {name: window.used for name, window in windows.items() if window is not None and window.used}


@every_strategy
async def test_row_of_a_plugin(strategy: Strategy) -> None:
    """A plugin's crash restarts the children of the strategy, and is charged to that plugin."""
    async with open_two(strategy) as running:
        assert await crash(running, "plugin:probe") == expected(strategy, "plugin:probe")
        assert await charged(running) == {"plugin:probe": 1}
        assert (await running.http.get("/probe/value")).json()["value"] == 42
        assert (await running.http.get("/other/value")).json()["value"] == 42


@every_strategy
@pytest.mark.parametrize("part", ["bus", "channels", "web"])
async def test_row_of_the_core(strategy: Strategy, part: str) -> None:
    """A crash of bus, channels or web restarts the strategy's children, charged to the root.

    Messages flow again afterwards.
    """
    async with open_two(strategy) as running, joined(running) as channel:
        await channel.receive()
        assert await crash(running, part) == expected(strategy, part)
        assert await charged(running) == {"root": 1}
        assert (await running.http.get("/-/readyz")).status_code == 200
        await receive_again(running, channel)


async def test_a_bus_that_restarts_alone_sends_phx_error_to_members() -> None:
    """Under ``one_for_one`` members keep their connection, and phx_error reports the gap."""
    async with open_two("one_for_one") as running, joined(running) as channel:
        await channel.receive()
        joins = channel.joins
        await crash(running, "bus")
        with trio.fail_after(20):
            while channel.joins == joins:
                await channel.receive()

        assert channel.joins == joins + 1


@every_strategy
async def test_row_of_the_embedded_broker(strategy: Strategy) -> None:
    """The broker's end restarts it and the incarnation, and is charged to the root."""
    async with open_two(strategy) as running, joined(running) as channel:
        await channel.receive()
        tree = running.server.tree
        assert tree is not None
        assert tree.broker is not None
        pid = tree.broker.statistics().pid
        assert pid is not None
        mark = len(running.events)
        os.kill(pid, signal.SIGKILL)
        await running.wait_ready(2)

        assert started(running, mark) == PARTS
        assert await charged(running) == {"root": 1}
        await receive_again(running, channel)


@every_strategy
async def test_row_of_an_external_redis(strategy: Strategy) -> None:
    """An outage of an external Redis restarts no part.

    Plugins wait, pushes are answered with an error, and members get phx_error and then messages again.
    """
    async with open_outage(strategy) as (running, channel, redis):
        # A plugin's own supervisor sees its service fail; the tree is found of no crash.
        found = [event for event in running.events if event.supervisor in {"root", "incarnation"}]
        assert [event.kind for event in found if event.kind in {"crashed", "quarantined"}] == []
        with pytest.raises(Refused, match="unavailable"):
            await channel.push("hello", {})
        readyz = await running.http.get("/-/readyz")
        answer = await running.http.get("/other/value")
        joins = channel.joins
        redis.start()
        await receive_again(running, channel)
        with trio.fail_after(20):
            while channel.joins == joins:  # phx_error made it join anew
                await channel.receive()

        assert readyz.status_code == 503
        assert answer.status_code in {200, 503}
        assert await charged(running) == {}
        assert started(running, 0) == [*PARTS[:2], "internal", *PARTS[2:]]
        assert running.redis_url == redact_url(redis.url)


@asynccontextmanager
async def open_outage(strategy: Strategy) -> AsyncIterator[tuple[RunningTangram, Channel, RealBroker]]:
    """Start a server, and take its Redis away."""
    with open_broker() as redis:
        async with open_two(strategy, redis_url=redis.url) as running, joined(running) as channel:
            await channel.receive()
            redis.kill()
            tree = running.server.tree
            assert tree is not None
            bus = tree.incarnation.bus
            assert bus is not None
            await until(lambda: not bus.up)
            await trio.sleep(0.5)
            yield running, channel, redis


@asynccontextmanager
async def joined(running: RunningTangram) -> AsyncIterator[Channel]:
    """Open a client that is a member of the topic ``probe`` and reconnects."""
    token = await tangram.fetch_token(running.url, "probe")
    async with running.open_socket() as socket:
        yield await socket.join("probe", token=token.token)


async def receive_again(running: RunningTangram, channel: Channel) -> None:
    """Wait until a message that is published from now on arrives."""
    number = len(running.events) + 1000
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_publish, running, number)
            while True:
                event = await channel.receive()
                if event.name == "mark" and event.payload == {"n": number}:
                    break
            nursery.cancel_scope.cancel()


async def _publish(running: RunningTangram, number: int) -> None:
    tree = running.server.tree
    assert tree is not None
    while True:
        if tree.incarnation.bus is not None and tree.incarnation.bus.up:
            tree.incarnation.bus.publish_nowait("to:probe:mark", b'{"n":%d}' % number)
        await trio.sleep(0.02)
