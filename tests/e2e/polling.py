"""A client that asks every 10 ms on a new connection, and remembers how each was answered."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from tests.e2e.harness import LONG, Home, Server

EVERY = 0.010  # seconds
ANSWER_WITHIN = LONG  # seconds: a slow answer is no lost connection


@dataclass
class Polls:
    """The results of polling. Times are seconds of Trio's clock."""

    good: list[float] = field(default_factory=list)
    """When each answer with status 200 was complete."""
    refused: int = 0
    """Connections that were refused, because the listening socket was gone."""
    reset: int = 0
    """Connections that were accepted and lost, because something crashed meanwhile."""
    other: list[str] = field(default_factory=list)
    """Other answers, as they came."""

    async def wait_good(self, more: int) -> None:
        """Wait until so many more requests were answered well."""
        wanted = len(self.good) + more
        with trio.fail_after(LONG):
            while len(self.good) < wanted:  # noqa: ASYNC110 - a list has no event
                await trio.sleep(EVERY)

    def gap(self) -> float:
        """The longest time between two good answers, in seconds."""
        ordered = sorted(self.good)
        return max(later - earlier for earlier, later in itertools.pairwise(ordered))


async def _ask(polls: Polls, port: int, request: bytes) -> None:
    try:
        with trio.fail_after(ANSWER_WITHIN):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            async with stream:
                await stream.send_all(request)
                answer = b""
                async for chunk in stream:
                    answer += chunk
    except OSError:  # how Trio tells that a connection was not taken
        polls.refused += 1
        return
    except (trio.BrokenResourceError, trio.TooSlowError):
        polls.reset += 1
        return
    words = answer.split(None, 2)
    if len(words) < 2:
        polls.reset += 1
    elif words[1] == b"200":
        polls.good.append(trio.current_time())
    else:
        polls.other.append(answer.decode(errors="replace"))


async def _poll(polls: Polls, port: int, request: bytes) -> None:
    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(_ask, polls, port, request)
            await trio.sleep(EVERY)


@asynccontextmanager
async def polling(server: Server | Home, path: str, *, method: str = "GET") -> AsyncIterator[Polls]:
    """Poll for the duration of the block, and until the last request is answered."""
    polls = Polls()
    port = (server if isinstance(server, Home) else server.home).port
    length = "" if method == "GET" else "Content-Length: 0\r\n"
    request = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{length}Connection: close\r\n\r\n".encode()
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_poll, polls, port, request)
        yield polls
        nursery.cancel_scope.cancel()
