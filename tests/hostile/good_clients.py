"""Good clients beside an attack: browsers that push and read, and requests."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import attrs
import httpx
import trio

from tangram.client import ClientSocket, fetch_token, open_socket
from tangram.errors import ChannelClosed, Refused

BROWSERS: Final = 5
EVERY: Final = 0.05
"""Seconds between two pushes of one browser, and between two requests."""

LATENESS_EVERY: Final = 0.01
"""Seconds between two measurements of the machine."""

ANSWER_SECONDS: Final = 10.0
"""Seconds after which an answer counts as missing."""


@attrs.define
class Latencies:
    """Answers in one period."""

    seconds: list[float] = attrs.field(factory=list)
    failed: int = 0
    lateness: list[float] = attrs.field(factory=list)
    """Seconds by which this process woke up late: the share of a busy machine in the latencies."""

    @property
    def p99(self) -> float:
        """Return the 99th percentile in seconds; a missing answer counts as `ANSWER_SECONDS`."""
        values = [*self.seconds, *[ANSWER_SECONDS] * self.failed]
        return _p99(values) if len(values) > 1 else ANSWER_SECONDS

    @property
    def machine(self) -> float:
        """Return the 99th percentile of this process's own lateness, in seconds."""
        return _p99(self.lateness) if len(self.lateness) > 1 else 0.0


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]


@attrs.define
class GoodClients:
    """The good clients, and the answers of the current period."""

    url: str
    latencies: Latencies = attrs.field(factory=Latencies)
    sockets: list[ClientSocket] = attrs.field(factory=list)

    def begin_period(self) -> Latencies:
        """Return the answers so far, and begin a new period."""
        ended, self.latencies = self.latencies, Latencies()
        return ended

    @property
    def closed(self) -> int:
        """Return how many connections of good clients were lost."""
        return sum(socket.connections - 1 for socket in self.sockets)

    async def push_repeatedly(self, topic: str) -> None:
        """Run one browser: each push is answered once Redis has it."""
        token = await fetch_token(self.url, topic)
        async with open_socket(self.url) as socket:
            self.sockets.append(socket)
            channel = await socket.join(topic, token=token.token)
            while True:
                await self._timed(channel.push("good", {"n": 1}))
                await trio.sleep(EVERY)

    async def request_repeatedly(self) -> None:
        """Request a page again and again."""
        async with httpx.AsyncClient(base_url=self.url, timeout=ANSWER_SECONDS) as client:
            while True:
                await self._timed(client.get("/-/healthz"))
                await trio.sleep(EVERY)

    async def measure_lateness(self) -> None:
        """Measure how late this process wakes up, without any server."""
        while True:
            due = time.perf_counter() + LATENESS_EVERY
            await trio.sleep(LATENESS_EVERY)
            self.latencies.lateness.append(time.perf_counter() - due)

    async def _timed(self, call: object) -> None:
        began = trio.current_time()
        latencies = self.latencies
        try:
            with trio.fail_after(ANSWER_SECONDS):
                answer = await call  # type: ignore[misc]  # a coroutine
            if isinstance(answer, httpx.Response):
                answer.raise_for_status()
        except (httpx.HTTPError, trio.TooSlowError, ChannelClosed, Refused):
            latencies.failed += 1
        else:
            latencies.seconds.append(trio.current_time() - began)


@asynccontextmanager
async def open_good_clients(url: str, topic: str) -> AsyncIterator[GoodClients]:
    """Run the good clients for the block."""
    clients = GoodClients(url)
    async with trio.open_nursery() as nursery:
        for _ in range(BROWSERS):
            nursery.start_soon(clients.push_repeatedly, topic)
        nursery.start_soon(clients.request_repeatedly)
        nursery.start_soon(clients.measure_lateness)
        with suppress(trio.TooSlowError), trio.fail_after(ANSWER_SECONDS):
            while len(clients.sockets) < BROWSERS:  # noqa: ASYNC110 - a client has no event for its socket
                await trio.sleep(EVERY)
        yield clients
        nursery.cancel_scope.cancel()
