"""One open connection to Redis: dial, greeting, reading in chunks, pings.

The protocol is RESP2, parsed by hiredis.

Every error that ends a connection is in ``LOST``. The tasks that share a connection end together when one of
them gets such an error (``Link.share``). ``reconnect`` then reads ``Link.cause`` and dials again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Final, TypeVar, cast

import hiredis
import trio

from tangram.bus.sockets import NowaitStream, PlainStream
from tangram.config.tls import redis_tls_context
from tangram.errors import BrokerRefused, BrokerUnavailable
from tangram.groups import first_leaf
from tangram.primary.answers import MOVED, require_primary
from tangram.primary.locator import Locator
from tangram.readiness import current_readiness
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

T = TypeVar("T")

Dial = Callable[[RedisAddress], Awaitable[trio.abc.Stream]]

current_dial: Final[ContextVar[Dial | None]] = ContextVar("tangram_dial", default=None)
"""The function that dials Redis in this context instead of a socket, for example a broker in memory. It
applies to the bus and to every ``Subscriber`` of a plugin.
"""

LOST: Final = (
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    hiredis.HiredisError,
    BrokerUnavailable,
)
"""The errors with which a connection ends; any other exception is a bug."""

CONNECT_TIMEOUT: Final = 2.0
"""Seconds for the dial and the greeting. A Redis on the same continent answers in 0.1 s; one that swaps or
loads, in about 1 s.
"""

STAGGER: Final = 0.15
"""Seconds after which a second dial starts beside one that hangs. TCP sends a dropped packet again after 1
s at the earliest; a new dial sends one at once.
"""

RECEIVE_SIZE: Final = 65536
"""Bytes of a full read: about 250 messages of 200 bytes. Twice as much in an object of its own exceeds the
mmap threshold of malloc, and each read would then cost fresh pages."""

RECEIVE_BUFFER: Final = 458_752
"""Bytes of the buffer of a plain connection, for the read after a full one: together half a megabyte, which
takes a millisecond. It is mapped, because a ``bytearray`` is written when it is made: pages that no read has
reached take no memory."""

READER_BUFFER: Final = 2 * 1024 * 1024
"""Bytes that the reader keeps between messages. By default it keeps 16 KiB, and grows again at each message
of a map: that many fresh pages cost as much as the message."""

PING_EVERY: Final = 2.0
"""Seconds of silence after which a ping is sent."""

PING_TIMEOUT: Final = 3.0
"""Seconds for its answer. A Redis that runs a slow script is late by one or two."""

# The stub says "a tuple of one"; the function takes any number.
pack = cast("Callable[[tuple[str | bytes, ...]], bytes]", hiredis.pack_command)


PASSING: Final = MOVED | {"BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "OOM", "TRYAGAIN"}
"""The first words of Redis's temporary errors: a repetition may succeed."""


def refusal(what: str, answer: object) -> BrokerUnavailable:
    """Return the error for an answer of Redis.

    It is ``BrokerUnavailable`` for a temporary error, and ``BrokerRefused`` for any other.
    """
    message = f"redis refuses {what}: {answer}"
    if not isinstance(answer, hiredis.ReplyError) or str(answer).partition(" ")[0] in PASSING:
        return BrokerUnavailable(message)
    return BrokerRefused(message)


def describe(exc: BaseException) -> str:
    """Return an exception in one line: the operating system's reason, or the text."""
    exc = first_leaf(exc)
    while exc.__cause__ is not None:
        exc = first_leaf(exc.__cause__)
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror.lower()
    return str(exc) or type(exc).__name__


async def dial(address: RedisAddress) -> trio.abc.Stream:
    """Return a connected stream to an address; the caller sets the deadline."""
    instead = current_dial.get()
    if instead is not None:
        return await instead(address)
    return await dial_socket(address)


async def dial_socket(address: RedisAddress) -> trio.abc.Stream:
    """Return a connected socket to an address, with TLS if the address asks for it.

    Raises:
        BrokerUnavailable: the host's name cannot be encoded for a look-up.
        OSError: the operating system refused.
    """
    if address.path:
        return PlainStream(await trio.open_unix_socket(address.path))
    try:
        stream = await trio.open_tcp_stream(address.host, address.port)
    except UnicodeError as error:  # a label is empty, too long, or has a forbidden character
        raise BrokerUnavailable(f"{address.host!r} is not a valid host name: {error}") from None
    if not address.tls:
        return PlainStream(stream)
    try:
        secured = trio.SSLStream(stream, redis_tls_context(address.options), server_hostname=address.host)
        await secured.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secured


async def _dial_staggered(address: RedisAddress, dial: Dial) -> trio.abc.Stream:
    """Start a dial every ``STAGGER`` seconds, and return the first stream.

    The first error ends all dials.
    """
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
        await _close_all(streams)
        raise
    await _close_all(streams[1:])  # they were connected in the same moment
    if not streams:
        raise errors[0]
    return streams[0]


async def _close_all(streams: Sequence[trio.abc.Stream]) -> None:
    # Shielded: under a cancellation the first close would raise and leave the others open. No close waits.
    with trio.move_on_after(1.0, shield=True):
        for stream in streams:
            await trio.aclose_forcefully(stream)


class Link:
    """An open connection that has been greeted."""

    def __init__(
        self, stream: trio.abc.Stream, address: RedisAddress | None = None, *, located: bool = False
    ) -> None:
        self.stream = stream
        self.address = address or RedisAddress("")
        """The address of the Redis at the other end."""
        self.located = located
        """Whether sentinels or a cluster named it as the primary, so that another one may be named later."""
        self.reader = hiredis.Reader()
        self.reader.setmaxbuf(READER_BUFFER)
        self._plain = stream if isinstance(stream, PlainStream) else None
        self._nowait = stream if isinstance(stream, NowaitStream) else None
        self.send_nowait: Callable[[bytes], int] = _send_nothing
        """Sends bytes at once, and returns how many; the caller sends the others by ``stream``."""
        if self._nowait is not None:
            self.send_nowait = self._nowait.send_nowait
        self.nowait = self._nowait is not None
        """Whether ``receive_nowait`` and ``send_nowait`` can do anything: not with TLS."""
        self._buffer = mmap(-1, RECEIVE_BUFFER, MAP_PRIVATE | MAP_ANONYMOUS)
        self.readiness = current_readiness() if self._plain is not None else None
        """Reads from this connection in ``receive_each``; None if its task does."""
        self.chunks = 0
        """Chunks that were received."""
        self.cause = ""
        """Why the connection ended; empty while it is open."""

    async def receive(self) -> int:
        """Wait for the next chunk, feed it to ``reader``, and return its size in bytes.

        Raises:
            BrokerUnavailable: Redis closed the connection.
        """
        if self._plain is not None:
            size = await self._plain.receive_into(self._buffer)
            self._feed(size)
            return size
        chunk = await self.stream.receive_some(RECEIVE_SIZE)
        self.reader.feed(bytes(chunk))
        self._count(len(chunk))
        return len(chunk)

    def _feed(self, size: int) -> None:
        self.reader.feed(cast("bytes", self._buffer), 0, size)  # the stub knows no other buffers
        self._count(size)

    def _count(self, size: int) -> None:
        if not size:
            raise BrokerUnavailable("redis closed the connection")
        self.chunks += 1

    async def receive_each(self, handle: Callable[[int], T | None]) -> T:
        """Call ``handle`` after each chunk, and return its first result that is not None.

        Args:
            handle: gets the size of the chunk, and takes its replies from ``reader``; it must not block.

        Raises:
            BrokerUnavailable: Redis closed the connection.
        """
        if self._plain is None or self.readiness is None:
            while (result := handle(await self.receive())) is None:
                pass
            return result

        feed, buffer = self.reader.feed, cast("bytes", self._buffer)

        def take(size: int) -> T | None:
            if not size:
                self._count(size)
            feed(buffer, 0, size)
            self.chunks += 1
            return handle(size)

        return await self._plain.serve(self.readiness, self._buffer, take)

    def receive_nowait(self) -> int:
        """Feed the bytes that have arrived to ``reader``, and return their number.

        0 means that there are none, or that the stream cannot tell.

        Raises:
            BrokerUnavailable: Redis closed the connection.
        """
        chunk = self._nowait.receive_nowait() if self._nowait is not None else None
        if chunk is None:
            return 0
        if not chunk:
            raise BrokerUnavailable("redis closed the connection")
        self.reader.feed(chunk)
        self.chunks += 1
        return len(chunk)

    async def share(self, *tasks: Callable[[Link], Awaitable[None]]) -> None:
        """Run tasks until one of them returns or loses the connection; then cancel the others."""
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
        """Call ``ping`` after each silence of ``PING_EVERY`` seconds, until Redis does not answer.

        This compares counts of chunks from time to time, so that it costs the reader nothing.

        Raises:
            BrokerUnavailable: nothing came within ``PING_TIMEOUT``: the connection is half open, or Redis
                hangs.
        """
        while True:
            before = self.chunks
            await trio.sleep(PING_EVERY)
            if self.chunks != before:
                continue
            ping()
            await trio.sleep(PING_TIMEOUT)
            # If this process was blocked (a plugin blocks the event loop), the answer lies in the socket
            # and the reader has not run since. Let it run before the check.
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            if self.chunks == before:
                raise BrokerUnavailable(f"redis did not answer a ping within {PING_TIMEOUT:g} s")


def _send_nothing(_data: bytes) -> int:
    return 0


async def _greet(link: Link) -> None:
    """Log in, select the database, check the role, and wait for the answer to a ping."""
    address = link.address
    commands: list[tuple[str, ...]] = []
    if address.password is not None:
        commands.append(("AUTH", *([address.username] if address.username else []), address.password))
    if address.db:
        commands.append(("SELECT", str(address.db)))
    if link.located:
        commands.append(("ROLE",))
    commands.append(("PING",))
    await link.stream.send_all(b"".join(map(pack, commands)))
    for name, *_ in commands:
        while (reply := link.reader.gets()) is False:
            await link.receive()
        # An account may lack the right to ping; the refusal shows as well that Redis is alive.
        refused = isinstance(reply, hiredis.ReplyError)
        if refused and not (name in {"PING", "ROLE"} and str(reply).startswith("NOPERM")):
            raise refusal(name, reply)
        if name == "ROLE":
            require_primary(reply)


@asynccontextmanager
async def open_link(
    address: RedisAddress,
    *,
    dial: Dial = dial,
    timeout: float = CONNECT_TIMEOUT,
    locator: Locator | None = None,
) -> AsyncGenerator[Link, None]:
    """Open a connection, log in, and close it at the end of the block.

    Args:
        address: the address of Redis.
        dial: opens the stream.
        timeout: seconds for the dial and the greeting.
        locator: finds the primary of the address; one that is kept remembers further sentinels.

    Raises:
        BrokerUnavailable: Redis did not answer within ``timeout`` seconds, or refused the account.
        OSError: the operating system refused.
    """
    link: Link | None = None
    locator = locator or Locator(address)
    try:
        with trio.move_on_after(timeout) as scope:
            place = await locator.locate(dial) if locator.moves else address
            link = Link(await _dial_staggered(place, dial), place, located=locator.moves)
            await _greet(link)
        if link is None or scope.cancelled_caught:
            raise BrokerUnavailable(f"redis did not answer within {timeout:g} s")
        yield link
    finally:
        if link is not None:
            await trio.aclose_forcefully(link.stream)
