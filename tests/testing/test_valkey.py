"""Answers of the broker in memory, without I/O, compared with valkey-server."""

from __future__ import annotations

import random
import socket
from typing import Self

import hiredis
import pytest

from tangram.bus.resp import pack
from tangram.testing import open_broker
from tangram.testing.fakes.valkey import ProtocolFault, Requests, Valkey
from tangram.testing.fakes.valkey.globs import matches


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Client:
    """A session, used as by a connection."""

    def __init__(self, server: Valkey) -> None:
        self.server = server
        self.dropped = False
        self.session = server.connect(lambda: None, self.drop)

    def drop(self) -> None:
        self.dropped = True

    def heard(self) -> bytes:
        said = b""
        while data := self.session.take():
            self.session.sent(len(data))
            said += data
        return said

    def ask(self, request: str) -> bytes:
        self.server.execute(self.session, request.encode("latin-1").split(b" "))
        return self.heard()


def requests_in(data: bytes, step: int) -> list[list[bytes]]:
    requests = Requests()
    found = []
    for at in range(0, len(data), step):
        requests.feed(data[at : at + step])
        found += list(requests)
    return found


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_requests_are_parsed_in_any_pieces(step: int) -> None:
    """Words of any bytes, inline requests and empty ones are parsed."""
    data = pack(("SET", b"\r\n$3\xff", b"")) + b"\r\n*0\r\n*-1\r\nPING\r\nget  a\n" + pack(("PING",))

    assert requests_in(data, step) == [
        [b"SET", b"\r\n$3\xff", b""],
        [b"PING"],
        [b"get", b"a"],
        [b"PING"],
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"set 'a b' \"c d\"", [b"set", b"a b", b"c d"]),
        (rb'"\x41\n\"" x' + b"'it\\'s'", [b'A\n"', b"xit's"]),
        (b"  a   ''", [b"a", b""]),
        (b"\xff", [b"\xff"]),
    ],
)
def test_quotes_hold_words_together(line: bytes, words: list[bytes]) -> None:
    """Quotes work nearly as in a shell."""
    assert requests_in(line + b"\r\n", 100) == [words]


@pytest.mark.parametrize("line", [b"a 'b", b"a 'b\\'", b'a "b', b"'a'b", b'"a"b', b"a 'b'c"])
def test_quotes_that_do_not_close_are_a_fault(line: bytes) -> None:
    """A character directly behind a closing quote is a fault too."""
    with pytest.raises(ProtocolFault, match="unbalanced"):
        requests_in(line + b"\r\n", 100)


@pytest.mark.parametrize(
    "data",
    [b"a" * 70_000, b"*" + b"1" * 70_000, b"*1\r\n$" + b"1" * 70_000, b"*9999999999\r\n", b"*\xb2\r\n"],
)
def test_a_line_without_an_end_is_a_fault(data: bytes) -> None:
    """The bytes that wait for the end of a line are bounded, and so are numbers."""
    with pytest.raises(ProtocolFault):
        requests_in(data, 65536)


def test_an_error_is_one_line() -> None:
    """Bytes of a client that an error quotes cannot begin another answer."""
    client = Client(Valkey(Clock()))
    client.server.execute(client.session, [b"NO\r\n+OK"])

    assert client.heard() == b"-ERR unknown command 'NO  +OK' for the broker in memory\r\n"


def test_a_publish_is_answered_before_its_message() -> None:
    """A RESP3 client that publishes to itself gets the answer first."""
    client = Client(Valkey(Clock()))
    client.ask("HELLO 3")
    client.ask("SUBSCRIBE a")

    assert client.ask("PUBLISH a b") == b":1\r\n>3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nb\r\n"


def test_a_subscriber_that_does_not_read_is_dropped_at_the_limit() -> None:
    """It is dropped at 32 MB at once; one that reads in between is not."""
    server = Valkey(Clock())
    silent, reading = Client(server), Client(server)
    for client in (silent, reading):
        client.ask("SUBSCRIBE a")
    for _ in range(33):
        server.deliver(b"a", bytes(1024 * 1024))
        reading.heard()

    assert silent.dropped
    assert not reading.dropped


def test_a_subscriber_may_fall_behind_for_a_minute() -> None:
    """More than 8 MB for 60 s without a break is too long."""
    clock = Clock()
    server = Valkey(clock)
    client = Client(server)
    client.ask("SUBSCRIBE a")
    for _ in range(3):
        server.deliver(b"a", bytes(9 * 1024 * 1024))
        clock.now += 50
        client.heard()
        server.deliver(b"a", b"x")
    assert not client.dropped
    server.deliver(b"a", bytes(9 * 1024 * 1024))
    clock.now += 61
    server.deliver(b"a", b"x")

    assert client.dropped


def test_databases_are_separate() -> None:
    """FLUSHDB empties one, FLUSHALL all."""
    client = Client(Valkey(Clock()))
    client.ask("SET a 0")
    client.ask("SELECT 3")
    client.ask("SET a 3")
    client.ask("FLUSHDB")
    client.ask("SELECT 0")
    kept = client.ask("GET a")
    client.ask("SELECT 3")
    client.ask("FLUSHALL")
    client.ask("SELECT 0")

    assert kept == b"$1\r\n0\r\n"
    assert client.ask("GET a") == b"$-1\r\n"


def test_unknown_commands_are_refused() -> None:
    """Nothing is accepted and then ignored."""
    client = Client(Valkey(Clock()))
    asked = (
        "ZADD z 1 a",
        "SET a b EXAT 5000000000",
        "CLIENT KILL TYPE normal",
        "EVAL return 0",
        "GETEX a EX 5",
    )

    assert all(client.ask(one).startswith(b"-ERR ") for one in asked)
    assert client.ask("EXISTS a") == b":0\r\n"


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (b"a[^b]c", b"axc", True),
        (b"a[^b]c", b"abc", False),
        (b"a[!b]c", b"axc", False),
        (rb"a\*", b"a*", True),
        (rb"a\*", b"ab", False),
        (rb"[\]]", b"]", True),
        (b"[a-]x", b"]", True),
        (b"*", b"\n\xff", True),
        (b"[", b"a", False),
        (b"[^", b"a", True),
        (b"\\", b"\\", True),
    ],
)
def test_globs_follow_valkey(pattern: bytes, text: bytes, expected: bool) -> None:
    """``^`` negates, a backslash quotes, and a class needs no end."""
    assert matches(pattern, text) is expected


class Wire:
    """A connection to the real server, as bytes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)

    def ask(self, *requests: bytes) -> bytes:
        """Return all answers up to an ECHO that no other request asks for."""
        self.socket.sendall(b"".join(requests) + pack(("ECHO", "the-end")))
        said = b""
        while not said.endswith(b"$7\r\nthe-end\r\n"):
            said += self.socket.recv(1 << 20)
        return said.removesuffix(b"$7\r\nthe-end\r\n")

    def ask_once(self, request: str) -> bytes:
        """Return one answer: in a transaction an ECHO would be queued."""
        reader = hiredis.Reader()
        self.socket.sendall(pack(tuple(request.split(" "))))
        said = b""
        while True:
            chunk = self.socket.recv(1 << 20)
            said += chunk
            reader.feed(chunk)
            if reader.gets() is not False:
                return said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


@pytest.mark.slow
def test_globs_equal_those_of_valkey() -> None:
    """Drawn patterns find the same short keys as valkey-server's KEYS."""
    draw = random.Random(7)
    keys = {bytes(draw.choices(b"ab-]^\\*", k=draw.randint(1, 3))) for _ in range(200)}
    with open_broker() as broker, Wire(broker.port) as wire:
        wire.ask(*(pack(("SET", key, "1")) for key in sorted(keys)))
        for _ in range(1500):
            pattern = bytes(draw.choices(b"ab-]^\\*?[", k=draw.randint(1, 6)))
            found = sum(matches(pattern, key) for key in keys)
            said = wire.ask(pack(("EVAL", "return #redis.call('KEYS', ARGV[1])", "0", pattern)))

            assert said == b":%d\r\n" % found, pattern


DRAWN = """
SET K V | SET K V NX | SET K V XX GET | SET K V EX 100 | SET K V KEEPTTL | SETNX K V | GETSET K V |
GETDEL K | GET K | APPEND K V | STRLEN K | INCR K | INCRBY K N | DECRBY K N | MSET K V K V |
MGET K K | DEL K K | EXISTS K K | TYPE K | EXPIRE K 100 | EXPIRE K 70 NX | EXPIRE K 90 XX |
EXPIRE K 0 | EXPIRE K -1 | EXPIRE K x | EXPIRE K 9223372036854775807 | PERSIST K | RENAME K K |
DBSIZE | HSET K F V F V | HSETNX K F V | HGET K F | HMGET K F F |
HGETALL K | HDEL K F F | HINCRBY K F N | HLEN K |
HEXISTS K F | HKEYS K | LPUSH K V V | RPUSH K V V | LPOP K | RPOP K N | LRANGE K N N | LTRIM K N N |
LINDEX K N | LREM K N V | LLEN K | SADD K W | SREM K W W | SISMEMBER K W | SMISMEMBER K W W |
SCARD K | MULTI | EXEC | DISCARD | WATCH K | GET | SET K | HSET K F | LPOP
"""
"""Commands with words to draw: K a key, V a value, N a number, F a field, W a member. No answer depends on
the speed of the machine.
"""

WORDS = {
    "K": "abc",
    "V": ("1", "x", "-7", "01", "9223372036854775807"),
    "N": ("0", "1", "-1", "2", "-3", "x", "9223372036854775807"),
    "F": "fg",
    "W": "st",
}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [2, 3])
def test_drawn_commands_are_answered_as_by_valkey(protocol: int) -> None:
    """Thousands of commands on few keys have the same answers byte for byte."""
    draw = random.Random(protocol)
    commands = DRAWN.split("|")
    client = Client(Valkey(Clock()))
    client.ask(f"HELLO {protocol}")
    with open_broker() as broker, Wire(broker.port) as wire:
        wire.ask(pack(("HELLO", str(protocol))))
        for _ in range(150):
            script = [
                " ".join(draw.choice(WORDS.get(word, (word,))) for word in draw.choice(commands).split())
                for _ in range(40)
            ]
            script += ["DISCARD", "UNWATCH"]
            if draw.random() < 0.3:
                script.append("FLUSHALL")
            for request in script:
                assert client.ask(request) == wire.ask_once(request), request


def test_pubsub_lists_subscriptions() -> None:
    """It returns channels by name, their numbers of subscribers, and the number of patterns."""
    server = Valkey(Clock())
    one, other, third = Client(server), Client(server), Client(server)
    one.ask("SUBSCRIBE a b")
    other.ask("SUBSCRIBE a")
    other.ask("PSUBSCRIBE x*")

    assert third.ask("PUBSUB CHANNELS [^b]") == b"*1\r\n$1\r\na\r\n"
    assert third.ask("PUBSUB NUMSUB a c") == b"*4\r\n$1\r\na\r\n:2\r\n$1\r\nc\r\n:0\r\n"
    assert third.ask("PUBSUB NUMPAT") == b":1\r\n"
    server.disconnect(other.session)
    assert third.ask("PUBSUB NUMPAT") == b":0\r\n"
