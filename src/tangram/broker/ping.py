"""Ask a Redis whether it is alive, on a connection apart from the bus."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import hiredis
import trio

from tangram.config.tls import redis_tls_context
from tangram.errors import BrokerUnavailable
from tangram.groups import first_leaf
from tangram.primary.answers import require_primary
from tangram.primary.locator import Locator
from tangram.redis_url import RedisAddress, read_redis_url, redact_url

__all__ = ["Probe", "connect", "open_probe", "ping"]

_CHUNK: Final = 16384

_NOT_ALLOWED: Final = "NOPERM"
"""The first word of a refusal for lack of rights."""


class _Refused(BrokerUnavailable):
    """Redis answered a command with an error."""

    def __init__(self, message: str, answer: str) -> None:
        self.answer = answer
        super().__init__(message)


class Probe:
    """One connection to a Redis, for one command at a time."""

    def __init__(self, stream: trio.abc.Stream, address: RedisAddress) -> None:
        self.address = address
        """The address of the Redis at the other end."""
        self._stream = stream
        self._reader = hiredis.Reader()

    async def ask(self, *words: str) -> object:
        """Send one command and return its answer.

        Raises:
            BrokerUnavailable: the answer is an error, or the connection was closed.
        """
        await self._stream.send_all(hiredis.pack_command(words))  # type: ignore[arg-type]  # any number of words
        while True:
            answer = self._reader.gets()
            if isinstance(answer, hiredis.ReplyError):
                raise _Refused(f"{words[0]} was answered with {str(answer)!r}", str(answer))
            if answer is not False:
                return answer
            data = await self._stream.receive_some(_CHUNK)
            if not data:
                raise BrokerUnavailable("the connection was closed")
            self._reader.feed(bytes(data))

    async def ping(self) -> None:
        """Send PING and wait for PONG; a refusal for lack of rights is an answer as well.

        Raises:
            BrokerUnavailable: any other answer, or none.
        """
        answer = await self._ask_or(b"PONG", "PING")
        if answer != b"PONG":
            raise BrokerUnavailable(f"expected PONG, got {answer!r}")

    async def require_primary(self) -> None:
        """Check that the other end is a primary, as far as the account may ask for it.

        Raises:
            BrokerUnavailable: it is a replica.
        """
        require_primary(await self._ask_or(None, "ROLE"))

    async def info(self) -> dict[str, str]:
        """Return the section ``server`` of INFO; empty if Redis refuses the command.

        A refusal is not an outage: the account may lack the right, and managed services rename the command.
        """
        try:
            answer = await self.ask("INFO", "server")
        except _Refused as refused:
            if refused.answer.startswith("NOAUTH"):
                raise
            return {}
        text = answer.decode(errors="replace") if isinstance(answer, bytes) else ""
        pairs = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
        return {key: value.strip() for key, colon, value in pairs if colon}

    async def _ask_or(self, otherwise: object, *words: str) -> object:
        """Return the answer, or ``otherwise`` if the account may not use the command."""
        try:
            return await self.ask(*words)
        except _Refused as refused:
            if refused.answer.startswith(_NOT_ALLOWED):
                return otherwise
            raise

    async def wait_closed(self) -> None:
        """Return when Redis closes the connection, or sends bytes without a command."""
        await self._stream.receive_some(1)


@asynccontextmanager
async def open_probe(address: RedisAddress, locator: Locator | None = None) -> AsyncIterator[Probe]:
    """Connect, and log in if the address has a password; close at the end of the block.

    Args:
        address: the address of Redis.
        locator: finds the primary of the address; one that is kept remembers further sentinels.

    Raises:
        BrokerUnavailable: the network or Redis refused.
    """
    stream: trio.abc.Stream | None = None
    locator = locator or Locator(address)
    try:
        place = await locator.locate(connect) if locator.moves else address
        stream = await connect(place)
        probe = Probe(stream, place)
        if place.password is not None:
            await probe.ask("AUTH", *([place.username] if place.username else []), place.password)
        if locator.moves:
            await probe.require_primary()
        yield probe
    except (OSError, UnicodeError, trio.BrokenResourceError, hiredis.ProtocolError) as error:
        # UnicodeError: a host name with an empty or overlong label.
        raise BrokerUnavailable(_reason(error)) from error
    finally:
        if stream is not None:
            # Without a goodbye: a Redis that hangs must not delay the caller.
            await trio.aclose_forcefully(stream)


async def connect(address: RedisAddress) -> trio.abc.Stream:
    """Return a connected stream to one Redis or sentinel, with TLS if the address asks for it."""
    if address.path:
        return await trio.open_unix_socket(address.path)
    # Before the connection is opened, because a named file may be missing.
    context = redis_tls_context(address.options) if address.tls else None
    stream = await trio.open_tcp_stream(address.host, address.port)
    if context is None:
        return stream
    return trio.SSLStream(stream, context, server_hostname=address.host)


def _reason(error: BaseException) -> str:
    """Return the reason in a few words: the innermost cause, not "all attempts failed"."""
    cause = None if error.__cause__ is None else first_leaf(error.__cause__)
    if isinstance(cause, OSError):
        error = cause
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


async def ping(url: str, deadline: float) -> None:
    """Connect and PING once.

    Args:
        url: the URL of Redis.
        deadline: seconds for all of it.

    Raises:
        BrokerUnavailable: it failed; the message has the URL without the password, and the cause.
    """
    try:
        with trio.fail_after(deadline):
            async with open_probe(read_redis_url(url)) as probe:
                await probe.ping()
    except trio.TooSlowError:
        raise BrokerUnavailable(
            f"redis at {redact_url(url)!r} did not answer within {deadline:g} s"
        ) from None
    except (BrokerUnavailable, ValueError) as error:
        raise BrokerUnavailable(f"redis at {redact_url(url)!r} is away: {error}") from error
