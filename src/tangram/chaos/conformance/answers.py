"""Requests to a broker and their answers, recorded from valkey-server 9.1, the reference."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import hiredis
import trio

from tangram.bus.resp import pack

__all__ = ["GARBAGE", "SCRIPTS", "Error", "Talk", "check_answers"]

ANSWER_SECONDS: Final = 30.0
"""Seconds for one answer; the broker is on this machine, and sends a megabyte at most."""

LATE_SECONDS: Final = 4
"""Tolerance for expiry times: less than the shortest one that is set."""

EXPIRE_SECONDS: Final = 0.05
"""Seconds after which a key that lasts 20 ms has expired."""

GARBAGE: Final = (
    b"*1\r\n*1\r\n$4\r\nPING\r\n",
    b"*nonsense\r\n",
    b"*1\r\n$-1\r\n",
    b"*1\r\n$nonsense\r\n",
    b"*2\r\n$2\r\n\xff\r\n$1\r\na\r\n",
    b'PING "a\r\n',
    b"a" * 70_000,
)
"""Invalid requests: each is answered with an error, and the connection ends."""


@attrs.frozen
class Error:
    """An expected error; its text begins like this."""

    text: str = "ERR "


WRONG: Final = Error("WRONGTYPE ")
NOT_HERE: Final = Error("ERR Can't execute")
NO_INTEGER: Final = Error("ERR value is not an integer")


@attrs.frozen
class About:
    """An expected number of seconds, or fewer by the delay of a busy machine."""

    seconds: int


Script = tuple[tuple[str, object], ...]

STRINGS: Final[Script] = (
    ("SET k v", b"OK"),
    ("set k w NX", None),
    ("GET k", b"v"),
    ("SET k w XX GET", b"v"),
    ("SET none w XX", None),
    ("EXISTS k k none", 2),
    ("SET k v NX XX", Error("ERR syntax")),
    ("SET k v EX", Error("ERR syntax")),
    ("SET k v EX 0", Error("ERR invalid expire")),
    ("SET k", Error("ERR wrong number of arguments")),
    ("INCR k", NO_INTEGER),
    ("INCR n", 1),
    ("INCRBY n 4", 5),
    ("DECR n", 4),
    ("DECRBY n 2", 2),
    ("INCRBY n x", NO_INTEGER),
    ("SET z 01", b"OK"),
    ("INCR z", NO_INTEGER),
    ("SET m 9223372036854775807", b"OK"),
    ("INCR m", Error("ERR increment or decrement would overflow")),
    ("MSET a 1 b 2", b"OK"),
    ("MGET a b none", [b"1", b"2", None]),
    ("APPEND a 23", 3),
    ("STRLEN a", 3),
    ("GETDEL a", b"123"),
    ("SETNX b 3", 0),
    ("DEL a b", 1),
    ("TYPE k", b"string"),
    ("LPUSH k x", WRONG),
)

ENDS: Final[Script] = (
    ("SET k v EX 10", b"OK"),
    ("TTL k", About(10)),
    ("SET k v KEEPTTL", b"OK"),
    ("TTL k", About(10)),
    ("EXPIRE k 5 GT", 0),
    ("EXPIRE k 90 LT", 0),
    ("EXPIRE k 20 NX", 0),
    ("EXPIRE k 20", 1),
    ("TTL k", About(20)),
    ("SET k v", b"OK"),
    ("TTL k", -1),
    ("TTL none", -2),
    ("EXPIRE none 5", 0),
    ("EXPIRE k x", NO_INTEGER),
    ("EXPIRE k 5", 1),
    ("PERSIST k", 1),
    ("TTL k", -1),
    ("EXPIRE k 0", 1),
    ("EXISTS k", 0),
    ("SETEX k 0 v", Error("ERR invalid expire")),
)

HASHES: Final[Script] = (
    ("HSET h a 1 b 2", 2),
    ("HSET h a 3", 0),
    ("HSET h a", Error("ERR wrong number of arguments")),
    ("HGET h a", b"3"),
    ("HGETALL h", [b"a", b"3", b"b", b"2"]),
    ("HMGET h a none", [b"3", None]),
    ("HINCRBY h a 4", 7),
    ("HSET h t text", 1),
    ("HINCRBY h t 1", Error("ERR hash value is not an integer")),
    ("HLEN h", 3),
    ("HEXISTS h none", 0),
    ("HDEL h a b t none", 3),
    ("EXISTS h", 0),
    ("HGETALL h", []),
    ("SET h s", b"OK"),
    ("HGET h a", WRONG),
)

LISTS: Final[Script] = (
    ("RPUSH l a b c", 3),
    ("LPUSH l z y", 5),
    ("LRANGE l 0 -1", [b"y", b"z", b"a", b"b", b"c"]),
    ("LRANGE l -2 100", [b"b", b"c"]),
    ("LRANGE l 3 1", []),
    ("LPOP l", b"y"),
    ("RPOP l 2", [b"c", b"b"]),
    ("LPOP l -1", Error("ERR value is out of range")),
    ("LLEN l", 2),
    ("LTRIM l 1 -1", b"OK"),
    ("LINDEX l 0", b"a"),
    ("LREM l 0 a", 1),
    ("EXISTS l", 0),
    ("LPOP l", None),
    ("RPUSH l a", 1),
    ("GET l", WRONG),
    ("MGET l", [None]),
    ("SADD l a", WRONG),
)

SETS: Final[Script] = (
    ("SADD s a b a", 2),
    ("SADD s a", 0),
    ("SISMEMBER s a", 1),
    ("SREM s b none", 1),
    ("SMEMBERS s", [b"a"]),
    ("SCARD s", 1),
    ("INCR s", WRONG),
    ("SREM s a", 1),
    ("EXISTS s", 0),
    ("SMEMBERS s", []),
)

GLOBS: Final[Script] = (
    ("MSET aa 1 ab 1 a^ 1 a* 1 b 1", b"OK"),
    ("KEYS b", [b"b"]),
    ("KEYS a[^ab*]", [b"a^"]),
    ("KEYS a\\*", [b"a*"]),
    ("KEYS a[!a]", [b"aa"]),
    ("KEYS ?", [b"b"]),
    ("KEYS [b-a]", [b"b"]),
    ("KEYS ab*", [b"ab"]),
)

SUBSCRIPTIONS: Final[Script] = (
    ("UNSUBSCRIBE", [b"unsubscribe", None, 0]),
    ("PUNSUBSCRIBE x", [b"punsubscribe", b"x", 0]),
    ("SUBSCRIBE a", [b"subscribe", b"a", 1]),
    ("PSUBSCRIBE a", [b"psubscribe", b"a", 2]),
    ("SUBSCRIBE a", [b"subscribe", b"a", 2]),
    ("GET k", NOT_HERE),
    ("PUBLISH a b", NOT_HERE),
    ("SUBSCRIBE", Error("ERR wrong number of arguments")),
    ("PING", [b"pong", b""]),
    ("PING hello", [b"pong", b"hello"]),
    ("UNSUBSCRIBE", [b"unsubscribe", b"a", 1]),
    ("GET k", NOT_HERE),
    ("PUNSUBSCRIBE", [b"punsubscribe", b"a", 0]),
    ("GET k", None),
    ("SUBSCRIBE a", [b"subscribe", b"a", 1]),
    ("RESET", b"RESET"),
    ("GET k", None),
)

CONNECTIONS: Final[Script] = (
    ("PING", b"PONG"),
    ("PING hello", b"hello"),
    ("ECHO hello", b"hello"),
    ("NOSUCHCOMMAND a", Error("ERR unknown command")),
    ("GET", Error("ERR wrong number of arguments for 'get'")),
    ("AUTH secret", Error("ERR AUTH <password> called without any password")),
    ("AUTH nobody secret", Error("WRONGPASS")),
    ("HELLO 4", Error("NOPROTO")),
    ("SELECT 1", b"OK"),
    ("SET k v", b"OK"),
    ("SELECT 0", b"OK"),
    ("GET k", None),
    ("SELECT 16", Error("ERR DB index")),
    ("CLIENT SETNAME me", b"OK"),
    ("CLIENT GETNAME", b"me"),
)

TRANSACTIONS: Final[Script] = (
    ("MULTI", b"OK"),
    ("SET a 1", b"QUEUED"),
    ("LPUSH a 1", b"QUEUED"),
    ("INCR a", b"QUEUED"),
    ("EXEC", [b"OK", WRONG, 2]),
    ("EXEC", Error("ERR EXEC without MULTI")),
    ("MULTI", b"OK"),
    ("GET", Error("ERR wrong number of arguments")),
    ("EXEC", Error("EXECABORT")),
    ("WATCH a", b"OK"),
    ("SET a 5", b"OK"),
    ("MULTI", b"OK"),
    ("GET a", b"QUEUED"),
    ("EXEC", None),
    ("WATCH a", b"OK"),
    ("RENAME a a", b"OK"),
    ("MULTI", b"OK"),
    ("GET a", b"QUEUED"),
    ("EXEC", [b"5"]),
    ("MULTI", b"OK"),
    ("DISCARD", b"OK"),
)

SCRIPTS: Final[dict[str, Script]] = {
    "strings": STRINGS,
    "ends": ENDS,
    "hashes": HASHES,
    "lists": LISTS,
    "sets": SETS,
    "globs": GLOBS,
    "subscriptions": SUBSCRIPTIONS,
    "connections": CONNECTIONS,
    "transactions": TRANSACTIONS,
}
"""Requests and their answers, each script for an empty broker; words are separated by spaces."""


class Talk:
    """A client that sends requests and reads answers, in RESP2."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._reader = hiredis.Reader()

    async def ask(self, *words: str | bytes) -> object:
        """Send a request and return its answer.

        Raises:
            TooSlowError: there is none within 5 s.
            EOFError: the connection has ended.
        """
        with trio.fail_after(ANSWER_SECONDS):
            await self.stream.send_all(pack(words))
            return await self.read()

    async def read(self) -> object:
        """Return the next answer or message.

        Raises:
            TooSlowError: there is none within 5 s.
            EOFError: the connection has ended.
        """
        with trio.fail_after(ANSWER_SECONDS):
            while (reply := self._reader.gets()) is False:
                chunk = await self.stream.receive_some(65536)
                if not chunk:
                    raise EOFError("the broker has closed the connection")
                self._reader.feed(bytes(chunk))
        answer: object = reply
        return answer

    async def wait_closed(self) -> bytes:
        """Wait until the connection has ended, and return the bytes that came before.

        Raises:
            TooSlowError: it has not within 5 s.
        """
        said = b""
        with trio.fail_after(ANSWER_SECONDS):
            try:
                while chunk := await self.stream.receive_some(65536):
                    said += chunk
            except trio.BrokenResourceError:
                pass  # reset, because the broker had unread bytes
        return said


async def check_answers(dial: Callable[[], Awaitable[Talk]]) -> None:
    """Check every answer of every script, and that a key expires.

    Raises:
        AssertionError: an answer differs; the message says which.
    """
    for name, script in SCRIPTS.items():
        talk = await dial()
        async with talk.stream:
            await talk.ask("FLUSHALL")
            for request, expected in script:
                answer = await talk.ask(*request.split(" "))
                assert _agree(answer, expected), (
                    f"{name}: {request!r} is answered {answer!r}, expected {expected!r}"
                )
    talk = await dial()
    async with talk.stream:
        await talk.ask("SET", "lock", "mine", "NX", "PX", "60000")
        assert await talk.ask("SET", "lock", "other", "NX") is None, "a lock of another client was taken"
        await talk.ask("SET", "lock", "mine", "XX", "PX", "20")
        await trio.sleep(EXPIRE_SECONDS)
        assert await talk.ask("GET", "lock") is None, "a key exists 30 ms after its expiry"


def _agree(answer: object, expected: object) -> bool:
    if isinstance(expected, Error):
        return isinstance(answer, hiredis.ReplyError) and str(answer).startswith(expected.text)
    if isinstance(expected, About):
        return isinstance(answer, int) and 0 <= expected.seconds - answer <= LATE_SECONDS
    if isinstance(expected, list) and isinstance(answer, list):
        return len(answer) == len(expected) and all(map(_agree, answer, expected))
    return type(answer) is type(expected) and answer == expected
