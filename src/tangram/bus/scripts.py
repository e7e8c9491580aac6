"""Calls of functions on Redis over the publisher connection, in order with all messages.

Which words call a function is known only once a connection is open: ``FCALL`` with its name, or ``EVALSHA``
with a digest. So a call has its last words ready, and gets the first ones when it is written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import hiredis

from tangram.bus.resp import Link, pack
from tangram.errors import BrokerUnavailable

__all__ = [
    "Fence",
    "FunctionCall",
    "LoadFunctions",
    "MessageHistory",
    "Prefixes",
    "Words",
    "is_publication",
    "load_all",
    "require_functions",
]

Words = tuple[str | bytes, ...]
Prefixes = Mapping[str, Words]
"""The first words of the call of each function."""
LoadFunctions = Callable[[Link], Awaitable[Prefixes]]
"""Loads the functions on a new connection."""


class FunctionCall(NamedTuple):
    """A call of one function on Redis."""

    function: str
    keys: Sequence[str]
    arguments: Sequence[str | bytes]
    instead: Words | None = None
    """The command that is sent to a Redis without the function; None if the call then fails."""

    def pack_tail(self) -> bytes:
        """Return the call's bytes behind its first words."""
        return pack((str(len(self.keys)), *self.keys, *self.arguments)).partition(b"\r\n")[2]

    @property
    def tail_words(self) -> int:
        """The number of words behind the first ones."""
        return 1 + len(self.keys) + len(self.arguments)


def is_publication(words: Sequence[object]) -> bool:
    """Return whether a command is PUBLISH with its two arguments."""
    first = words[0] if len(words) == 3 else None
    return isinstance(first, bytes | str) and first.upper() in {"PUBLISH", b"PUBLISH"}


def pack_head(first: Words, count: int) -> bytes:
    """Return the bytes of a call up to its tail."""
    words = pack(first).partition(b"\r\n")[2]
    return b"*%d\r\n%b" % (len(first) + count, words)


def load_all(loads: Sequence[LoadFunctions]) -> LoadFunctions | None:
    """Return the function that calls all of these one after the other; None if there are none."""
    if not loads:
        return None

    async def load(link: Link) -> Prefixes:
        prefixes: dict[str, Words] = {}
        for one in loads:
            prefixes.update(await one(link))
        return prefixes

    return load


class Fence(NamedTuple):
    """The right of a placed plugin to publish, which ends when another node runs it."""

    key: str
    """The key of the newest token on Redis."""
    token: str
    """The token of this node."""

    def guard(
        self, channel: str | bytes, payload: bytes | str, recording: FunctionCall | None
    ) -> FunctionCall:
        """Return the call that publishes unless the token is too old.

        Args:
            channel: the channel.
            payload: the payload.
            recording: the call that would publish and record; None for a channel without history.
        """
        if recording is None:
            return FunctionCall("tangram_fenced", (self.key,), (self.token, channel, payload))
        return recording._replace(
            keys=(*recording.keys, self.key), arguments=(*recording.arguments, self.token), instead=None
        )


class MessageHistory(Protocol):
    """The history, as far as the bus needs it."""

    async def load(self, link: Link) -> Prefixes:
        """Load the functions on a new connection."""

    def publishing(self, channel: str | bytes, payload: bytes | str) -> FunctionCall | None:
        """Return the call that publishes and records; None for a channel without history."""

    def published(self, answer: Any) -> int:
        """Return the outcome of such a call from Redis' answer."""


def require_functions(reply: object) -> None:
    """End the connection if Redis has lost the functions, because the next one loads them.

    Raises:
        BrokerUnavailable: the answer says so.
    """
    if isinstance(reply, hiredis.ReplyError):
        text = str(reply)
        if text.startswith("NOSCRIPT") or "Function not found" in text:
            raise BrokerUnavailable(f"redis has lost the functions: {text}")
