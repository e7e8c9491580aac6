"""A bad network, before the web port and before Redis: a proxy stands there while the fault lasts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tangram.client import Channel
from tangram.redis_url import parse_redis_url
from tangram.testing.faults.catalogue.base import Chaos, fault
from tangram.testing.faults.catalogue.witness import (
    REJOIN_SECONDS,
    TOPIC,
    get,
    must_answer,
    publishes,
    timed_publish,
)
from tangram.testing.faults.proxy import Proxy, open_proxy
from tangram.testing.seams.injection import NothingToStrike, StruckAlready

__all__ = ["before_redis", "before_web"]

LATENCY, JITTER = 0.02, 0.02
"""Seconds: a mobile network of a good day."""

NARROW = 200_000.0
"""Bytes a second: an old line."""

WIDE = 60_000
"""Bytes that are sent over a narrow line: it is held up for 0.3 s, and a real test can wait that long."""

DUE = 0.95
"""Of the time that bytes must have taken: clocks are read before and after."""

SLICE = 7
"""Bytes: every frame, header and length is cut somewhere."""

HEARTBEAT = 0.5
"""Seconds between a browser's signs of life: by a missing answer it knows that the network is a hole."""

HOLE_SECONDS = 8.0
"""Within which the bus has to notice a Redis that is silent: it asks after 2 s, and waits 3 for an answer."""

WAY_SECONDS = 10.0
"""Within which the bus has taken the way through a proxy, and a slow message has come: both take a moment."""


@asynccontextmanager
async def before_web(chaos: Chaos) -> AsyncIterator[Proxy]:
    """A proxy before the web port; who connects to it is spoilt.

    Raises:
        NothingToStrike: the web port is one in memory.
    """
    chaos.need_network()
    held = chaos.tangram.server.held[0]
    async with open_proxy(held.host, held.port, seed=chaos.rng.randrange(1 << 30)) as proxy:
        yield proxy


@asynccontextmanager
async def before_redis(chaos: Chaos) -> AsyncIterator[Proxy]:
    """The bus reaches Redis through a proxy; at the end it dials directly again.

    Raises:
        NothingToStrike: no proxy can stand before this Redis.
        StruckAlready: the bus goes through one of another fault.
    """
    way = _way_to_redis(chaos)
    if chaos.detoured:
        raise StruckAlready("the way to redis leads through the proxy of another fault")
    chaos.detoured = True
    try:
        async with _on_the_way(chaos, *way) as proxy:
            yield proxy
    finally:
        chaos.detoured = False
    chaos.tangram.line.cut()
    await chaos.wait_bus()


def _way_to_redis(chaos: Chaos) -> tuple[str, int]:
    address = parse_redis_url(chaos.tangram.redis_url)
    if address.path:
        raise NothingToStrike("redis is reached through a unix socket: there is no network before it")
    if address.tls:
        raise NothingToStrike("redis is reached by TLS: a proxy's name is not in its certificate")
    return address.host, address.port


@asynccontextmanager
async def _on_the_way(chaos: Chaos, host: str, port: int) -> AsyncIterator[Proxy]:
    line = chaos.tangram.line
    async with open_proxy(host, port, seed=chaos.rng.randrange(1 << 30)) as proxy:
        line.lead(to=(host, port), through=(proxy.host, proxy.port))
        try:
            with trio.fail_after(WAY_SECONDS):
                while proxy.connections < 2:  # one that listens, one that publishes
                    line.cut()
                    await trio.sleep(0.05)
            await chaos.wait_bus()
            yield proxy
        finally:
            line.lead_directly()


# -- before the web ------------------------------------------------------------------------------------------


async def _is_served(proxy: Proxy) -> float:
    """A request through the proxy is answered; in so many seconds."""
    began = trio.current_time()
    answer = await get(proxy.host, proxy.port)
    assert answer.startswith(b"HTTP/1.1 200"), f"a slow network spoilt an answer: {answer[:80]!r}"
    return trio.current_time() - began


def _must_take(what: str, took: float, least: float) -> None:
    """The network really was as bad as it was to be."""
    assert took >= DUE * least, f"{what} took {took:.3f} s; through this proxy it takes {least:g} s"


def _must_be_sliced(proxy: Proxy) -> None:
    most = max(proxy.pieces, default=0)
    assert 0 < most <= SLICE, f"pieces of {most} bytes passed a proxy that cuts at {SLICE}"


@fault(on="sockets")
async def web_latency(chaos: Chaos) -> None:
    """Latency and jitter before the web port: answers are late, and whole."""
    async with before_web(chaos) as proxy:
        proxy.latency, proxy.jitter = LATENCY, JITTER
        _must_take("an answer", await _is_served(proxy), 2 * LATENCY)


@fault(on="sockets")
async def web_narrow(chaos: Chaos) -> None:
    """Little bandwidth before the web port: what a browser sends and gets is slow, and whole."""
    async with before_web(chaos) as proxy, _browser(chaos, proxy) as channel:
        proxy.bandwidth = NARROW
        began = trio.current_time()
        await channel.push("wide", "x" * WIDE)
        _must_take("a push", trio.current_time() - began, WIDE / NARROW)
        tree = chaos.tangram.server.tree
        assert tree is not None
        assert tree.incarnation.bus is not None
        began = trio.current_time()
        await tree.incarnation.bus.publish(f"to:{TOPIC}:wide", b'{"wide":"%b"}' % (b"x" * WIDE))
        with trio.fail_after(WAY_SECONDS):
            event = await channel.receive()
            while event.name != "wide":
                event = await channel.receive()
        _must_take("a message", trio.current_time() - began, WIDE / NARROW)
        whole = event.payload == {"wide": "x" * WIDE}
        assert whole, f"a narrow network spoilt a message: {str(event.payload)[:80]!r}"


@fault(on="sockets")
async def web_sliced(chaos: Chaos) -> None:
    """Seven bytes at a time before the web port: requests and answers are put together again."""
    async with before_web(chaos) as proxy:
        proxy.slice = SLICE
        await _is_served(proxy)
        _must_be_sliced(proxy)


@asynccontextmanager
async def _browser(chaos: Chaos, proxy: Proxy) -> AsyncIterator[Channel]:
    """A browser is joined through the proxy."""
    from tangram.client import fetch_token, open_socket

    token = await fetch_token(chaos.tangram.url, TOPIC)
    through = f"http://{proxy.host}:{proxy.port}"
    async with open_socket(through, heartbeat=HEARTBEAT, rng=chaos.rng) as client:
        yield await client.join(TOPIC, token=token.token)


@asynccontextmanager
async def _browser_comes_back(chaos: Chaos, proxy: Proxy) -> AsyncIterator[None]:
    """A browser is joined through the proxy; after the block it has come back and joined again."""
    async with _browser(chaos, proxy) as channel:
        yield
        seconds = chaos.heal_bound + REJOIN_SECONDS
        with trio.move_on_after(seconds):
            while channel.joins < 2:  # noqa: ASYNC110 - the channel tells its events, not its joins
                await trio.sleep(0.02)
            return
        raise AssertionError(f"the browser was not back within {seconds:g} s")


async def _must_be_a_hole(proxy: Proxy) -> None:
    """Who asks through the proxy hears nothing."""
    answer = b""
    with trio.move_on_after(HEARTBEAT):
        answer = await get(proxy.host, proxy.port, seconds=2 * HEARTBEAT)
    assert not answer, f"nothing should pass, and somebody was answered {answer[:80]!r}"


@fault(on="sockets")
async def web_reset(chaos: Chaos) -> None:
    """The network resets all connections before the web port: browsers come back and join again."""
    async with before_web(chaos) as proxy, _browser_comes_back(chaos, proxy):
        proxy.reset_all()


@fault(on="sockets")
async def web_half_close(chaos: Chaos) -> None:
    """Both ends of all connections before the web port hear the end of the stream: they close, and browsers
    come back.
    """
    async with before_web(chaos) as proxy, _browser_comes_back(chaos, proxy):
        proxy.half_close_all()


@fault(on="sockets")
async def web_black_hole(chaos: Chaos) -> None:
    """Nothing passes before the web port, and nobody is told: others are served, and when the network is back
    so are the browsers behind it.
    """
    async with before_web(chaos) as proxy, _browser_comes_back(chaos, proxy):
        proxy.black_hole = True
        await _must_be_a_hole(proxy)
        await trio.sleep(2 * HEARTBEAT)
        await must_answer(chaos)
        # What was swallowed is gone: the network that is back knows nothing of these connections.
        proxy.black_hole = False
        proxy.reset_all()


# -- before Redis --------------------------------------------------------------------------------------------


@fault(on="sockets")
async def redis_latency(chaos: Chaos) -> None:
    """Latency and jitter before Redis: messages are late, in order, and none is lost."""
    async with before_redis(chaos) as proxy, publishes(chaos, meanwhile=20, lossless=True):
        proxy.latency, proxy.jitter = LATENCY, JITTER
        _must_take("a message", await timed_publish(chaos, 0), 2 * LATENCY)


@fault(on="sockets")
async def redis_narrow(chaos: Chaos) -> None:
    """Little bandwidth before Redis: messages are slow, in order, and none is lost."""
    async with before_redis(chaos) as proxy, publishes(chaos, meanwhile=20, lossless=True):
        proxy.bandwidth = NARROW
        _must_take("a message", await timed_publish(chaos, WIDE), WIDE / NARROW)


@fault(on="sockets")
async def redis_sliced(chaos: Chaos) -> None:
    """Seven bytes at a time before Redis: messages are put together again, and none is lost."""
    async with before_redis(chaos) as proxy, publishes(chaos, meanwhile=20, lossless=True):
        proxy.slice = SLICE
        proxy.pieces.clear()
        await timed_publish(chaos, 0)
        _must_be_sliced(proxy)


@fault(on="sockets")
async def redis_reset(chaos: Chaos) -> None:
    """The network resets the connections to Redis: nobody crashes, the bus is back, browsers rejoin."""
    async with before_redis(chaos) as proxy, publishes(chaos):
        before = proxy.connections
        proxy.reset_all()
        await _dials_anew(chaos, proxy, before)


@fault(on="sockets")
async def redis_half_close(chaos: Chaos) -> None:
    """Both ends of the connections to Redis hear the end of the stream: the bus dials anew."""
    async with before_redis(chaos) as proxy, publishes(chaos):
        before = proxy.connections
        proxy.half_close_all()
        await _dials_anew(chaos, proxy, before)


async def _dials_anew(chaos: Chaos, proxy: Proxy, before: int) -> None:
    """Both connections to Redis are made anew."""
    with trio.move_on_after(chaos.heal_bound):
        while proxy.connections < before + 2:  # noqa: ASYNC110 - a proxy has no event for it
            await trio.sleep(0.01)
    made = proxy.connections - before
    assert made >= 2, f"both connections to Redis were lost, and {made} were made anew"
    await chaos.wait_bus()


@fault(on="sockets")
async def redis_black_hole(chaos: Chaos) -> None:
    """Nothing passes before Redis, and nobody is told: the bus notices, says so, crashes nobody, requests are
    answered, and it is back once the network is.
    """
    async with before_redis(chaos) as proxy:
        async with publishes(chaos):
            proxy.black_hole = True
            await chaos.wait_bus(up=False, seconds=HOLE_SECONDS)
            await must_answer(chaos)
            proxy.black_hole = False
            proxy.reset_all()
            await chaos.wait_bus()
