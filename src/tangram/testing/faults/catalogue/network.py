"""Faults of the network: a proxy stands before the web port or before Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from tangram.client import Channel
from tangram.redis_url import parse_redis_url
from tangram.testing.faults.catalogue.base import Chaos, fault
from tangram.testing.faults.catalogue.witness import (
    REJOIN_SECONDS,
    TOPIC,
    expect_delivery,
    get,
    must_answer,
    timed_publish,
)
from tangram.testing.faults.proxy import Proxy, open_proxy
from tangram.testing.injection.child_faults import NothingToStrike, StruckAlready

__all__ = ["before_redis", "before_web"]

LATENCY, JITTER = 0.02, 0.02
"""Seconds: a mobile network on a good day."""

NARROW: Final = 200_000.0
"""Bytes a second: a slow old line."""

WIDE: Final = 60_000
"""Bytes sent over a narrow line: they take 0.3 s, which a real test can afford."""

DUE: Final = 0.95
"""Share of the time that bytes must have taken: the clock is read before and after."""

SLICE: Final = 7
"""Bytes in one piece: every frame, header and length is cut somewhere."""

HEARTBEAT: Final = 0.5
"""Seconds between a browser's heartbeats: a missing answer tells it that the network is dead."""

HOLE_SECONDS: Final = 8.0
"""Seconds within which the bus notices a silent Redis: it asks after 2 s and waits 3 s for an answer."""

DETOUR_SECONDS: Final = 10.0
"""Seconds within which the bus has dialled through a proxy, and a slow message has arrived."""


@asynccontextmanager
async def before_web(chaos: Chaos) -> AsyncIterator[Proxy]:
    """Open a proxy before the web port; its settings spoil the connections through it.

    Raises:
        NothingToStrike: the web port is in memory.
    """
    chaos.need_network()
    held = chaos.tangram.server.held[0]
    async with open_proxy(held.host, held.port, seed=chaos.rng.randrange(1 << 30)) as proxy:
        yield proxy


@asynccontextmanager
async def before_redis(chaos: Chaos) -> AsyncIterator[Proxy]:
    """Lead the bus to Redis through a proxy for the block; afterwards it dials directly again.

    Raises:
        NothingToStrike: no proxy can stand before this Redis.
        StruckAlready: the bus goes through the proxy of another fault.
    """
    host, port = _redis_address(chaos)
    if chaos.detoured:
        raise StruckAlready("the bus reaches redis through the proxy of another fault")
    chaos.detoured = True
    try:
        async with _through_proxy(chaos, host, port) as proxy:
            yield proxy
    finally:
        chaos.detoured = False
    chaos.tangram.redis_route.cut()
    await chaos.wait_bus()


def _redis_address(chaos: Chaos) -> tuple[str, int]:
    address = parse_redis_url(chaos.tangram.redis_url)
    if address.path:
        raise NothingToStrike("redis is reached through a unix socket, where no proxy can stand")
    if address.tls:
        raise NothingToStrike("redis is reached by TLS, and its certificate does not name a proxy")
    return address.host, address.port


def _server_address(chaos: Chaos) -> tuple[str, int] | str:
    """Return the server's own way to Redis: it may have a Unix socket beside the port."""
    tree = chaos.tangram.server.tree
    assert tree is not None
    assert tree.broker is not None
    address = parse_redis_url(tree.broker.server_url)
    return address.path or (address.host, address.port)


@asynccontextmanager
async def _through_proxy(chaos: Chaos, host: str, port: int) -> AsyncIterator[Proxy]:
    route = chaos.tangram.redis_route
    async with open_proxy(host, port, seed=chaos.rng.randrange(1 << 30)) as proxy:
        for to in _server_address(chaos), (host, port):
            route.detour(to=to, through=(proxy.host, proxy.port))
        try:
            with trio.fail_after(DETOUR_SECONDS):
                while proxy.connections < 2:  # one that listens, one that expect_delivery
                    route.cut()
                    await trio.sleep(0.05)
            await chaos.wait_bus()
            yield proxy
        finally:
            route.clear_detours()


# -- before the web ------------------------------------------------------------------------------------------


async def _timed_request(proxy: Proxy) -> float:
    """Request a page through the proxy and return the seconds that its answer took."""
    began = trio.current_time()
    answer = await get(proxy.host, proxy.port)
    assert answer.startswith(b"HTTP/1.1 200"), f"a slow network spoilt an answer: {answer[:80]!r}"
    return trio.current_time() - began


def _must_take(what: str, took: float, least: float) -> None:
    """Check that the network really was as slow as it was set to be."""
    assert took >= DUE * least, f"{what} took {took:.3f} s; through this proxy it takes {least:g} s"


def _must_be_sliced(proxy: Proxy) -> None:
    most = max(proxy.pieces, default=0)
    assert 0 < most <= SLICE, f"pieces of {most} bytes passed a proxy that cuts at {SLICE}"


@fault(on="sockets")
async def web_latency(chaos: Chaos) -> None:
    """Latency and jitter before the web port: answers are late, and complete."""
    async with before_web(chaos) as proxy:
        proxy.latency, proxy.jitter = LATENCY, JITTER
        _must_take("an answer", await _timed_request(proxy), 2 * LATENCY)


@fault(on="sockets")
async def web_narrow(chaos: Chaos) -> None:
    """Little bandwidth before the web port: pushes and messages are slow, and complete."""
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
        with trio.fail_after(DETOUR_SECONDS):
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
        await _timed_request(proxy)
        _must_be_sliced(proxy)


@asynccontextmanager
async def _browser(chaos: Chaos, proxy: Proxy) -> AsyncIterator[Channel]:
    """Join a browser through the proxy."""
    from tangram.client import fetch_token, open_socket

    token = await fetch_token(chaos.tangram.url, TOPIC)
    through = f"http://{proxy.host}:{proxy.port}"
    async with open_socket(through, heartbeat=HEARTBEAT, rng=chaos.rng) as client:
        yield await client.join(TOPIC, token=token.token)


@asynccontextmanager
async def _browser_comes_back(chaos: Chaos, proxy: Proxy) -> AsyncIterator[None]:
    """Join a browser through the proxy, and check that it joins again after the block."""
    async with _browser(chaos, proxy) as channel:
        yield
        seconds = chaos.heal_bound + REJOIN_SECONDS
        with trio.move_on_after(seconds):
            while channel.joins < 2:  # noqa: ASYNC110 - a channel has no event for a rejoin
                await trio.sleep(0.02)
            return
        raise AssertionError(f"the browser was not back within {seconds:g} s")


async def _must_be_a_hole(proxy: Proxy) -> None:
    """Check that a request through the proxy gets no answer."""
    answer = b""
    with trio.move_on_after(HEARTBEAT):
        answer = await get(proxy.host, proxy.port, seconds=2 * HEARTBEAT)
    assert not answer, f"nothing should pass, but a request was answered {answer[:80]!r}"


@fault(on="sockets")
async def web_reset(chaos: Chaos) -> None:
    """The network resets all connections before the web port: browsers join again."""
    async with before_web(chaos) as proxy, _browser_comes_back(chaos, proxy):
        proxy.reset_all()


@fault(on="sockets")
async def web_half_close(chaos: Chaos) -> None:
    """Both ends of connections before the web port get the end of the stream: browsers rejoin."""
    async with before_web(chaos) as proxy, _browser_comes_back(chaos, proxy):
        proxy.half_close_all()


@fault(on="sockets")
async def web_black_hole(chaos: Chaos) -> None:
    """The network before the web port swallows everything silently: other clients are served.

    When the network is back, so are the browsers behind it.
    """
    async with before_web(chaos) as proxy, _browser_comes_back(chaos, proxy):
        proxy.black_hole = True
        await _must_be_a_hole(proxy)
        await trio.sleep(2 * HEARTBEAT)
        await must_answer(chaos)
        # Swallowed bytes are lost: the network that is back does not know these connections.
        proxy.black_hole = False
        proxy.reset_all()


# -- before Redis --------------------------------------------------------------------------------------------


@fault(on="sockets")
async def redis_latency(chaos: Chaos) -> None:
    """Latency and jitter before Redis: messages are late, in order, and none is lost."""
    async with before_redis(chaos) as proxy, expect_delivery(chaos, meanwhile=20, lossless=True):
        proxy.latency, proxy.jitter = LATENCY, JITTER
        _must_take("a message", await timed_publish(chaos, 0), 2 * LATENCY)
        proxy.restore()


@fault(on="sockets")
async def redis_narrow(chaos: Chaos) -> None:
    """Little bandwidth before Redis: messages are slow, in order, and none is lost."""
    async with before_redis(chaos) as proxy, expect_delivery(chaos, meanwhile=20, lossless=True):
        proxy.bandwidth = NARROW
        _must_take("a message", await timed_publish(chaos, WIDE), WIDE / NARROW)
        proxy.restore()


@fault(on="sockets")
async def redis_sliced(chaos: Chaos) -> None:
    """Seven bytes at a time before Redis: messages are put together again, and none is lost."""
    async with before_redis(chaos) as proxy, expect_delivery(chaos, meanwhile=20, lossless=True):
        proxy.slice = SLICE
        proxy.pieces.clear()
        await timed_publish(chaos, 0)
        _must_be_sliced(proxy)
        proxy.restore()


@fault(on="sockets")
async def redis_reset(chaos: Chaos) -> None:
    """The network resets the connections to Redis: no child crashes, browsers rejoin."""
    async with before_redis(chaos) as proxy, expect_delivery(chaos):
        before = proxy.connections
        proxy.reset_all()
        await _wait_redialled(chaos, proxy, before)


@fault(on="sockets")
async def redis_half_close(chaos: Chaos) -> None:
    """Both ends of the connections to Redis get the end of the stream: the bus dials again."""
    async with before_redis(chaos) as proxy, expect_delivery(chaos):
        before = proxy.connections
        proxy.half_close_all()
        await _wait_redialled(chaos, proxy, before)


async def _wait_redialled(chaos: Chaos, proxy: Proxy, before: int) -> None:
    """Wait until both connections to Redis were made again."""
    with trio.move_on_after(chaos.heal_bound):
        while proxy.connections < before + 2:  # noqa: ASYNC110 - a proxy has no event for it
            await trio.sleep(0.01)
    made = proxy.connections - before
    assert made >= 2, f"both connections to redis were lost, but {made} were made again"
    await chaos.wait_bus()


@fault(on="sockets")
async def redis_black_hole(chaos: Chaos) -> None:
    """The network before Redis swallows everything silently: the bus notices and reports it.

    No child crashes, requests are answered, and the bus is back once the network is.
    """
    async with before_redis(chaos) as proxy:
        async with expect_delivery(chaos):
            proxy.black_hole = True
            await chaos.wait_bus(up=False, seconds=HOLE_SECONDS)
            await must_answer(chaos)
            proxy.black_hole = False
            proxy.reset_all()
            await chaos.wait_bus()
