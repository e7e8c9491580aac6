"""One open connection to Redis: dialled, greeted, read in chunks, watched for silence. RESP2, parsed by
hiredis.

What may go wrong with a connection is one family, `LOST`; the tasks that share a connection end together
when one of them meets it (`Link.share`), and whoever keeps the connection reads `Link.cause` and dials
again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Final, cast

import hiredis
import trio

from tangram.bus.sockets import PlainStream
from tangram.config.tls import redis_tls_context
from tangram.errors import BrokerRefused, BrokerUnavailable
from tangram.groups import first_leaf
from tangram.redis_url import RedisAddress

__all__ = [
    "CONNECT_TIMEOUT",
    "LOST",
    "Dial",
    "Link",
    "current_dial",
    "describe",
    "dial",
    "dial_socket",
    "open_link",
    "pack",
    "refusal",
]

Dial = Callable[[RedisAddress], Awaitable[trio.abc.Stream]]

current_dial: ContextVar[Dial | None] = ContextVar("tangram_dial", default=None)
"""How Redis is dialled in this context instead of by a socket: the seam behind which a broker in memory
stands. It reaches the bus and every `Subscriber` of a plugin alike."""

LOST: Final = (
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    hiredis.HiredisError,
    BrokerUnavailable,
)
"""Everything by which a connection ends that is not a bug of ours."""

CONNECT_TIMEOUT = 2.0
"""Seconds for dialling and for the greeting. A Redis on the same continent answers in 0.1; one that swaps
or loads, in about 1."""

STAGGER = 0.15
"""Seconds after which a dial that hangs gets company: TCP sends a dropped packet again after 1 s at the
earliest, a new dial sends one now."""

RECEIVE_SIZE = 65536
"""Bytes asked for at once: about 250 messages of 200 bytes. Twice as much is past malloc's mmap threshold,
and each read would then pay for fresh pages."""

PING_EVERY = 2.0
"""Seconds of silence after which the other end is asked for a sign of life."""

PING_TIMEOUT = 3.0
"""Seconds for that sign. A Redis busy with a slow script is late by one or two; a dead one never answers."""

# Its stub says "a tuple of one"; it takes any number.
pack = cast("Callable[[tuple[str | bytes, ...]], bytes]", hiredis.pack_command)


PASSING: Final = frozenset(
    {"BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "OOM", "READONLY", "TRYAGAIN"}
)
"""How errors begin by which Redis says not now, rather than no."""


def refusal(what: str, answer: object) -> BrokerUnavailable:
    """The error for what Redis answered instead of doing it: a `BrokerRefused`, unless it will pass."""
    message = f"redis refuses {what}: {answer}"
    if not isinstance(answer, hiredis.ReplyError) or str(answer).partition(" ")[0] in PASSING:
        return BrokerUnavailable(message)
    return BrokerRefused(message)


def describe(exc: BaseException) -> str:
    """*exc* in one line without jargon: the reason of the operating system where there is one."""
    exc = first_leaf(exc)
    while exc.__cause__ is not None:
        exc = first_leaf(exc.__cause__)
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror.lower()
    return str(exc) or type(exc).__name__


async def dial(address: RedisAddress) -> trio.abc.Stream:
    """A connected stream to *address*; the caller sets the deadline."""
    instead = current_dial.get()
    if instead is not None:
        return await instead(address)
    return await dial_socket(address)


async def dial_socket(address: RedisAddress) -> trio.abc.Stream:
    """A connected socket to *address*, under TLS where the address says so.

    Raises:
        BrokerUnavailable: the host's name is one that cannot be looked up.
        OSError: it was refused by the operating system.
    """
    if address.path:
        return PlainStream(await trio.open_unix_socket(address.path))
    try:
        stream = await trio.open_tcp_stream(address.host, address.port)
    except UnicodeError as error:  # a part of it is empty or too long, or has what no name may have
        raise BrokerUnavailable(f"{address.host!r} is no name of a host: {error}") from None
    if not address.tls:
        return PlainStream(stream)
    try:
        secured = trio.SSLStream(stream, redis_tls_context(address.options), server_hostname=address.host)
        await secured.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secured


async def _first(address: RedisAddress, dial: Dial) -> trio.abc.Stream:
    """The first dial to come through; one is begun every `STAGGER` seconds, an error ends them all."""
    streams: list[trio.abc.Stream] = []
    errors: list[Exception] = []

    async def attempt() -> None:
        try:
            streams.append(await dial(address))
        except LOST as exc:
            errors.append(exc)
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(attempt)
                await trio.sleep(STAGGER)
    except BaseException:
        await _drop(streams)
        raise
    await _drop(streams[1:])  # came through in the same moment
    if not streams:
        raise errors[0]
    return streams[0]


async def _drop(streams: Sequence[trio.abc.Stream]) -> None:
    # Under a cancellation the first close would raise, and the others stay open. None of them waits.
    with trio.move_on_after(1.0, shield=True):
        for stream in streams:
            await trio.aclose_forcefully(stream)


class Link:
    """A greeted connection. `cause` tells, once it is over, what ended it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.reader = hiredis.Reader()
        self.heard = 0
        self.cause = ""

    async def receive(self) -> int:
        """Wait for the next chunk, feed it to `reader` and return its size: `RECEIVE_SIZE` at most.

        Raises:
            BrokerUnavailable: the other end has closed.
        """
        chunk = await self.stream.receive_some(RECEIVE_SIZE)
        if not chunk:
            raise BrokerUnavailable("redis closed the connection")
        self.heard += 1
        self.reader.feed(cast("bytes", chunk))
        return len(chunk)

    async def share(self, *tasks: Callable[[Link], Awaitable[None]]) -> None:
        """Run *tasks* side by side until one of them returns or meets a loss; then end the others and
        return.
        """
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(self._guard, task, nursery.cancel_scope)

    async def _guard(self, task: Callable[[Link], Awaitable[None]], scope: trio.CancelScope) -> None:
        try:
            await task(self)
        except LOST as exc:
            self.cause = self.cause or describe(exc)
        scope.cancel()

    async def watch(self, ping: Callable[[], None]) -> None:
        """Ask for a sign of life by *ping* whenever it has been quiet.

        This counts chunks and looks at the count now and then, so that the reading side pays nothing for it.

        Raises:
            BrokerUnavailable: nothing came within `PING_TIMEOUT`: the connection is half open, or the other
                end hangs.
        """
        while True:
            heard = self.heard
            await trio.sleep(PING_EVERY)
            if self.heard != heard:
                continue
            ping()
            await trio.sleep(PING_TIMEOUT)
            # If the whole process stood still (a plugin that blocks the loop), the answer lies in the
            # socket by now and the reader has merely not had its turn: let it have one before judging.
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            if self.heard == heard:
                raise BrokerUnavailable(f"redis did not answer a ping within {PING_TIMEOUT:g} s")


async def _greet(link: Link, address: RedisAddress) -> None:
    """Say who we are, choose the database, and see that somebody answers."""
    commands: list[tuple[str, ...]] = []
    if address.password is not None:
        commands.append(("AUTH", *([address.username] if address.username else []), address.password))
    if address.db:
        commands.append(("SELECT", str(address.db)))
    commands.append(("PING",))
    await link.stream.send_all(b"".join(map(pack, commands)))
    for name, *_ in commands:
        while (reply := link.reader.gets()) is False:
            await link.receive()
        # An account that may publish and subscribe only may not ping; that it says so is sign of life enough.
        refused = isinstance(reply, hiredis.ReplyError)
        if refused and not (name == "PING" and str(reply).startswith("NOPERM")):
            raise refusal(name, reply)


@asynccontextmanager
async def open_link(
    address: RedisAddress, *, dial: Dial = dial, timeout: float = CONNECT_TIMEOUT
) -> AsyncGenerator[Link, None]:
    """A connection that is greeted and ready; closed, without ceremony, on the way out.

    Raises:
        BrokerUnavailable: it did not come about within *timeout* seconds, or Redis refused it.
        OSError: it was refused by the operating system.
    """
    link: Link | None = None
    try:
        with trio.move_on_after(timeout) as scope:
            link = Link(await _first(address, dial))
            await _greet(link, address)
        if link is None or scope.cancelled_caught:
            raise BrokerUnavailable(f"redis did not answer within {timeout:g} s")
        yield link
    finally:
        if link is not None:
            await trio.aclose_forcefully(link.stream)
