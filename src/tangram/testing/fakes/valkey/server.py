"""Execute the requests of a connection, and deliver messages to others.

The order of checks is that of Valkey's ``processCommand``: known, enough words, a replica, a
subscriber, a transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Final

import attrs

from tangram.testing.fakes.valkey.containers import CONTAINERS
from tangram.testing.fakes.valkey.functions import call_function, load_library
from tangram.testing.fakes.valkey.globs import matches
from tangram.testing.fakes.valkey.keys import KEYS
from tangram.testing.fakes.valkey.keyspace import SYNTAX, Keyspace, Table, integer, within
from tangram.testing.fakes.valkey.session import ClientState, OutputLimit
from tangram.testing.fakes.valkey.strings import STRINGS
from tangram.testing.fakes.valkey.wire import (
    NIL_ARRAY,
    OK,
    Pairs,
    Push,
    Reply,
    ReplyError,
    Several,
    Simple,
)

__all__ = ["Valkey"]

DATABASES: Final = 16
"""Number of databases of the embedded broker."""

VERSION: Final = b"9.1.2"
"""Version of Valkey whose answers these are."""

REDIS_VERSION: Final = b"7.2.4"
"""Version that Valkey reports to clients of Redis."""

_starts: Final = count(1)
"""Numbers of the incarnations of all brokers, in place of random names."""

_DATA: Final[Table] = {**STRINGS, **KEYS, **CONTAINERS}


class Valkey:
    """All sessions and databases of one incarnation.

    Args:
        now: returns seconds.
        publish: delivers messages of sessions and returns the number of receivers; ``deliver`` unless
            given.
        limit: on unread output of subscribers.
    """

    def __init__(
        self,
        now: Callable[[], float],
        publish: Callable[[bytes, bytes], int] | None = None,
        limit: OutputLimit | None = None,
    ) -> None:
        self.readonly = False
        """Whether writes are refused, as by a replica."""
        self.libraries: set[bytes] = set()
        """Whether the library of histories is loaded."""
        self.run_id = b"%040x" % next(_starts)
        """A name of this incarnation."""
        self.sessions: dict[ClientState, None] = {}
        self.publish = publish or self.deliver
        self._limit = limit or OutputLimit()
        self._now = now
        self._spaces = [Keyspace(now) for _ in range(DATABASES)]
        self._numbers = 0

    def connect(self, wake: Callable[[], object], drop: Callable[[], object]) -> ClientState:
        """Return a new session.

        Args:
            wake: called when the session has output.
            drop: called when the session must be disconnected.
        """
        self._numbers += 1
        session = ClientState(self._numbers, wake, drop)
        self.sessions[session] = None
        return session

    def disconnect(self, session: ClientState) -> None:
        """Forget a session."""
        del self.sessions[session]

    def deliver(self, channel: bytes, payload: bytes) -> int:
        """Deliver a message to all subscribers, and return the number of subscriptions."""
        receivers = 0
        now = self._now()
        for session in self.sessions:
            if channel in session.channels:
                session.push(Push([b"message", channel, payload]), self._limit, now)
                receivers += 1
            for pattern in session.patterns:
                if matches(pattern, channel):
                    session.push(Push([b"pmessage", pattern, channel, payload]), self._limit, now)
                    receivers += 1
        return receivers

    def execute(self, session: ClientState, words: list[bytes]) -> None:
        """Execute a request: the answer goes to the session, messages to other sessions."""
        session.hold()
        try:
            reply = self._checked(session, words)
        except ReplyError as error:
            session.spoilt = session.queue is not None
            reply = error
        session.emit(reply)
        for message in session.release():
            session.push(message, self._limit, self._now())
        if words[0].upper() == b"QUIT" and reply is OK:
            session.close()

    def space(self, session: ClientState) -> Keyspace:
        """Return the database that a session has selected."""
        return self._spaces[session.database]

    def clear(self) -> None:
        """Remove all keys of all databases."""
        for space in self._spaces:
            space.clear()

    def take_data(self, before: Valkey) -> None:
        """Go on with the data of an incarnation that has ended."""
        self._spaces = before._spaces

    def changes(self, database: int, key: bytes) -> int:
        """Return how often a key has changed."""
        return self._spaces[database].changes(key)

    def _checked(self, session: ClientState, words: list[bytes]) -> Reply:
        name = words[0].upper().decode("latin-1")
        command = _SESSION.get(name) or _DATA.get(name)
        shown = name.lower()
        if command is None:
            raise ReplyError(f"ERR unknown command '{name[:128]}' for the broker in memory")
        if not within(command.arity, len(words)):
            raise ReplyError(f"ERR wrong number of arguments for '{shown}' command")
        if self.readonly and command.writes:
            raise ReplyError("READONLY You can't write against a read only replica.")
        if session.subscribed and session.protocol == 2 and name not in _WHILE_SUBSCRIBED:
            raise ReplyError(
                f"ERR Can't execute '{shown}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET "
                "are allowed in this context"
            )
        if session.queue is not None and name not in _NEVER_QUEUED:
            if name in _NOT_IN_TRANSACTIONS:
                raise ReplyError(f"ERR Command '{shown}' not allowed inside a transaction")
            session.queue.append(words)
            return Simple(b"QUEUED")
        return self.run(session, words)

    def run(self, session: ClientState, words: Sequence[bytes]) -> Reply:
        """Execute a request without checks of the session's state.

        Raises:
            ReplyError: it cannot be executed.
        """
        name = words[0].upper().decode("latin-1")
        if name in _SESSION:
            return _SESSION[name].run(self, session, words[1:])
        return _DATA[name].run(self.space(session), words[1:])


@attrs.frozen
class _OfSession:
    """A command on the connection or the whole server."""

    run: Callable[[Valkey, ClientState, Sequence[bytes]], Reply]
    arity: int
    writes: bool = False


def _ping(_server: Valkey, session: ClientState, words: Sequence[bytes]) -> Reply:
    if len(words) > 1:
        raise ReplyError("ERR wrong number of arguments for 'ping' command")
    if session.subscribed and session.protocol == 2:
        return [b"pong", words[0] if words else b""]
    return words[0] if words else Simple(b"PONG")


def _echo(_server: Valkey, _session: ClientState, words: Sequence[bytes]) -> Reply:
    return words[0]


def _quit(_server: Valkey, _session: ClientState, _words: Sequence[bytes]) -> Reply:
    return OK


def _reset(_server: Valkey, session: ClientState, _words: Sequence[bytes]) -> Reply:
    session.reset()
    return Simple(b"RESET")


def _auth(_server: Valkey, _session: ClientState, words: Sequence[bytes]) -> Reply:
    """Without a password the default user may log in with any; other users are unknown."""
    if len(words) > 2:
        raise ReplyError(SYNTAX)
    if len(words) == 1:
        raise ReplyError(
            "ERR AUTH <password> called without any password configured for the default user. Are you sure "
            "your configuration is correct?"
        )
    if words[0] != b"default":
        raise ReplyError("WRONGPASS invalid username-password pair or user is disabled.")
    return OK


def _hello(server: Valkey, session: ClientState, words: Sequence[bytes]) -> Reply:
    protocol = session.protocol
    if words:
        protocol = integer(words[0], "ERR Protocol version is not an integer or out of range")
        if protocol not in {2, 3}:
            raise ReplyError("NOPROTO unsupported protocol version")
    rest, name = [*words[1:]], session.name
    while rest:
        option, *rest = rest
        if option.upper() == b"AUTH" and len(rest) >= 2:
            _auth(server, session, rest[:2])
            rest = rest[2:]
        elif option.upper() == b"SETNAME" and rest:
            name, *rest = rest
        else:
            raise ReplyError(f"ERR Syntax error in HELLO option '{option.decode('latin-1')}'")
    session.protocol, session.name = protocol, name
    answer: dict[bytes, Reply] = {b"server": b"valkey", b"version": VERSION, b"proto": protocol}
    answer |= {b"id": session.number, b"mode": b"standalone", b"role": b"master", b"modules": []}
    return Pairs(answer)


def _select(_server: Valkey, session: ClientState, words: Sequence[bytes]) -> Reply:
    number = integer(words[0])
    if not 0 <= number < DATABASES:
        raise ReplyError("ERR DB index is out of range")
    session.database = number
    return OK


def _client(_server: Valkey, session: ClientState, words: Sequence[bytes]) -> Reply:
    match words[0].upper(), len(words):
        case b"ID", 1:
            return session.number
        case b"GETNAME", 1:
            return session.name or None
        case b"SETNAME", 2:
            session.name = words[1]
            return OK
        case (b"SETINFO", 3) | (b"NO-EVICT", 2) | (b"NO-TOUCH", 2):
            return OK
        case _:
            raise _no_subcommand("client", words[0])


def _no_subcommand(name: str, word: bytes) -> ReplyError:
    return ReplyError(
        f"ERR unknown subcommand '{word.decode('latin-1')[:128]}' of '{name}' for the broker in memory"
    )


def _info(server: Valkey, _session: ClientState, _words: Sequence[bytes]) -> Reply:
    return b"# Server\r\nredis_version:%b\r\nserver_name:valkey\r\nvalkey_version:%b\r\nrun_id:%b\r\n" % (
        REDIS_VERSION,
        VERSION,
        server.run_id,
    )


def _flush(server: Valkey, session: ClientState, words: Sequence[bytes], *, everything: bool) -> Reply:
    if len(words) > 1 or (words and words[0].upper() not in {b"SYNC", b"ASYNC"}):
        raise ReplyError(SYNTAX)
    if everything:
        server.clear()
    else:
        server.space(session).clear()
    return OK


def _publish(server: Valkey, _session: ClientState, words: Sequence[bytes]) -> Reply:
    return server.publish(words[0], words[1])


def _join(word: bytes, _server: Valkey, session: ClientState, words: Sequence[bytes]) -> Reply:
    names = _names_of(session, word)
    replies = Several()
    for name in words:
        names[name] = None
        replies.append(Push([word, name, session.subscribed]))
    return replies


def _part(word: bytes, _server: Valkey, session: ClientState, words: Sequence[bytes]) -> Reply:
    names = _names_of(session, word)
    replies = Several()
    for name in words or list(names):
        names.pop(name, None)
        replies.append(Push([word, name, session.subscribed]))
    # Without a name and without a subscription there is still one answer.
    return replies or Several([Push([word, None, session.subscribed])])


def _names_of(session: ClientState, word: bytes) -> dict[bytes, None]:
    """Return the channels of a session, or its patterns for commands that begin with ``p``."""
    return session.patterns if word.startswith(b"p") else session.channels


def _pubsub(server: Valkey, _session: ClientState, words: Sequence[bytes]) -> Reply:
    channels = {channel: None for session in server.sessions for channel in session.channels}
    match words[0].upper(), len(words):
        case b"CHANNELS", (1 | 2):
            return [channel for channel in channels if matches(words[1] if words[1:] else b"*", channel)]
        case b"NUMSUB", _:
            counts = ((one, sum(one in session.channels for session in server.sessions)) for one in words[1:])
            return [part for pair in counts for part in pair]
        case b"NUMPAT", 1:
            return len({pattern for session in server.sessions for pattern in session.patterns})
        case _:
            raise _no_subcommand("pubsub", words[0])


def _multi(_server: Valkey, session: ClientState, _words: Sequence[bytes]) -> Reply:
    session.queue, session.spoilt = [], False
    return OK


def _discard(_server: Valkey, session: ClientState, _words: Sequence[bytes]) -> Reply:
    if session.queue is None:
        raise ReplyError("ERR DISCARD without MULTI")
    session.leave()
    return OK


def _watch(server: Valkey, session: ClientState, words: Sequence[bytes]) -> Reply:
    for key in words:
        session.watched.setdefault((session.database, key), server.changes(session.database, key))
    return OK


def _unwatch(_server: Valkey, session: ClientState, _words: Sequence[bytes]) -> Reply:
    session.watched.clear()
    return OK


def _exec(server: Valkey, session: ClientState, _words: Sequence[bytes]) -> Reply:
    queue, spoilt = session.queue, session.spoilt
    if queue is None:
        raise ReplyError("ERR EXEC without MULTI")
    changed = any(server.changes(*which) != count for which, count in session.watched.items())
    session.leave()
    if spoilt:
        raise ReplyError("EXECABORT Transaction discarded because of previous errors.")
    return NIL_ARRAY if changed else [_one(server, session, words) for words in queue]


def _one(server: Valkey, session: ClientState, words: list[bytes]) -> Reply:
    try:
        return server.run(session, words)
    except ReplyError as error:
        return error


_SESSION: Final[dict[str, _OfSession]] = {
    "AUTH": _OfSession(_auth, -2),
    "CLIENT": _OfSession(_client, -2),
    "DISCARD": _OfSession(_discard, 1),
    "ECHO": _OfSession(_echo, 2),
    "EXEC": _OfSession(_exec, 1),
    "FCALL": _OfSession(call_function, -3, writes=True),
    "FLUSHALL": _OfSession(partial(_flush, everything=True), -1, writes=True),
    "FLUSHDB": _OfSession(partial(_flush, everything=False), -1, writes=True),
    "FUNCTION": _OfSession(load_library, -2),
    "HELLO": _OfSession(_hello, -1),
    "INFO": _OfSession(_info, -1),
    "MULTI": _OfSession(_multi, 1),
    "PING": _OfSession(_ping, -1),
    "PSUBSCRIBE": _OfSession(partial(_join, b"psubscribe"), -2),
    "PUBLISH": _OfSession(_publish, 3),
    "PUBSUB": _OfSession(_pubsub, -2),
    "PUNSUBSCRIBE": _OfSession(partial(_part, b"punsubscribe"), -1),
    "QUIT": _OfSession(_quit, -1),
    "RESET": _OfSession(_reset, 1),
    "SELECT": _OfSession(_select, 2),
    "SUBSCRIBE": _OfSession(partial(_join, b"subscribe"), -2),
    "UNSUBSCRIBE": _OfSession(partial(_part, b"unsubscribe"), -1),
    "UNWATCH": _OfSession(_unwatch, 1),
    "WATCH": _OfSession(_watch, -2),
}

_WHILE_SUBSCRIBED: Final = {"SUBSCRIBE", "PSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "PING", "QUIT", "RESET"}
_NEVER_QUEUED: Final = {"EXEC", "DISCARD", "QUIT", "RESET"}
_NOT_IN_TRANSACTIONS: Final = {"MULTI", "WATCH"}
