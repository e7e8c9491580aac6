"""Clients that join again and again, each time on a new connection, and remember where an attempt ended."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketConnection, wrap_client_stream

from tangram.channels.disconnects import RESTART, SHUTDOWN
from tangram.testing.run.nursery import open_unwrapped_nursery
from tests.e2e.harness import LONG

EVERY = 0.02  # seconds between two attempts of a client
STOPPED = (SHUTDOWN.code, RESTART.code)


@dataclass
class Joins:
    """The attempts of all clients."""

    joined: int = 0
    """Attempts that led to a join."""
    moved: int = 0
    """Attempts that got the close code of a stop: phoenix.js repeats them after 10 ms."""
    ended: Counter[str] = field(default_factory=Counter)
    """Other attempts, by the place where each ended."""


@asynccontextmanager
async def _open_websocket(port: int) -> AsyncIterator[WebSocketConnection]:
    """Open a WebSocket whose socket is closed at the end.

    trio-websocket leaves it open where the other side closed first.
    """
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream, open_unwrapped_nursery() as nursery:
        yield await wrap_client_stream(nursery, stream, f"127.0.0.1:{port}", "/websocket?vsn=2.0.0")
        nursery.cancel_scope.cancel()


async def _join(joins: Joins, port: int, topic: str, token: str) -> None:
    place = "before the upgrade"
    frame = json.dumps(["1", "1", topic, "phx_join", {"token": token}])
    try:
        with trio.fail_after(LONG):
            async with _open_websocket(port) as socket:
                place = "before the answer to the join"
                await socket.send_message(frame)
                while '"phx_reply"' not in (answer := str(await socket.get_message())):
                    pass
                if '"ok"' in answer:
                    joins.joined += 1
                else:
                    joins.ended[answer] += 1
    except ConnectionClosed as error:
        if error.reason is not None and error.reason.code in STOPPED:
            joins.moved += 1
        else:
            joins.ended[f"{place}: {error!r}"] += 1
    except (HandshakeError, OSError, trio.TooSlowError) as error:
        joins.ended[f"{place}: {error!r}"] += 1


@asynccontextmanager
async def joining(port: int, topic: str, token: str, *, clients: int) -> AsyncIterator[Joins]:
    """Join for the duration of the block, and until the last attempt has ended."""
    joins = Joins()
    over = False

    async def live() -> None:
        while not over:
            await _join(joins, port, topic, token)
            await trio.sleep(EVERY)

    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(live)
        yield joins
        over = True
