"""The cases of the Autobahn test suite for WebSocket servers, over both engines.

The suite itself (https://github.com/crossbario/autobahn-testsuite) needs Python 2. Its cases are written here
as tables: the bytes that a client sends, and the frames that it gets back. A failed connection may end before
the echoes of earlier messages are sent, as in the suite ("non-strict").
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock as Clock
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Opcode

from tests.http.harness import Server, serving
from tests.http.native.sockets import open_socket

TEXT, BINARY, CONT = Opcode.TEXT, Opcode.BINARY, Opcode.CONT
PING, PONG, CLOSE = Opcode.PING, Opcode.PONG, Opcode.CLOSE

HELLO = b"Hello, world!"
FAILURES = frozenset({1002, 1007})
NORMAL = struct.pack("!H", 1000)


def frame(opcode: int, data: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    """Return a client's frame; unlike ``websockets`` it may break every rule."""
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    size = len(data)
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += bytes([0xFE]) + size.to_bytes(2, "big")
    else:
        head += bytes([0xFF]) + size.to_bytes(8, "big")
    return head + b"\x00\x00\x00\x00" + data


def fragments(opcode: int, *parts: bytes) -> list[bytes]:
    """Return one message in fragments."""
    last = len(parts) - 1
    return [frame(CONT if n else opcode, part, fin=n == last) for n, part in enumerate(parts)]


def pieces(data: bytes, size: int) -> list[bytes]:
    """Cut bytes into pieces."""
    return [data[start : start + size] for start in range(0, len(data), size)]


@attrs.frozen
class Case:
    """One case of the suite."""

    number: str
    sent: Sequence[bytes]
    """Pieces of the stream, each sent in a write of its own."""
    echoes: Sequence[tuple[int, bytes]] = ()
    """Frames that the server sends before the close."""
    codes: frozenset[int] = frozenset()
    """The server's close codes that are right; empty: the client closes with 1000, and the server answers."""


def case(number: str, sent: Iterable[bytes], echoes: Sequence[tuple[int, bytes]] = (), *codes: int) -> Case:
    return Case(number, [*sent], echoes, frozenset(codes))


def framing() -> list[Case]:
    """Section 1: messages of the sizes at which a frame's head changes."""
    cases = []
    for section, opcode, filler in ((1, TEXT, b"*"), (2, BINARY, b"\xfe")):
        for number, size in enumerate([0, 125, 126, 127, 128, 65535, 65536], 1):
            data = filler * size
            cases.append(case(f"1.{section}.{number}", [frame(opcode, data)], [(opcode, data)]))
        data = filler * 65536
        cases.append(case(f"1.{section}.8", pieces(frame(opcode, data), 997), [(opcode, data)]))
    return cases


def pings() -> list[Case]:
    """Section 2: pings and pongs."""
    binary = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
    ten = [b"payload-%d" % n for n in range(10)]
    pongs = [(PONG, data) for data in ten]
    return [
        case("2.1", [frame(PING)], [(PONG, b"")]),
        case("2.2", [frame(PING, HELLO)], [(PONG, HELLO)]),
        case("2.3", [frame(PING, binary)], [(PONG, binary)]),
        case("2.4", [frame(PING, b"\xfe" * 125)], [(PONG, b"\xfe" * 125)]),
        case("2.5", [frame(PING, b"\xfe" * 126)], [], 1002),
        case("2.6", pieces(frame(PING, b"\xfe" * 125), 1), [(PONG, b"\xfe" * 125)]),
        case("2.7", [frame(PONG)]),
        case("2.8", [frame(PONG, b"unsolicited")]),
        case("2.9", [frame(PONG, b"unsolicited"), frame(PING, b"ping")], [(PONG, b"ping")]),
        case("2.10", [frame(PING, data) for data in ten], pongs),
        case("2.11", pieces(b"".join(frame(PING, data) for data in ten), 1), pongs),
    ]


def reserved_bits() -> list[Case]:
    """Section 3: reserved bits without an extension that defines them."""
    echo = [(TEXT, HELLO)]
    first, ping = frame(TEXT, HELLO), frame(PING)
    # With compression the first bit is defined, and the payload is no deflated data.
    return [
        case("3.1", [frame(TEXT, HELLO, rsv=4)], [], 1002, 1007),
        case("3.2", [first + frame(TEXT, HELLO, rsv=2) + ping], echo, 1002),
        case("3.3", [first, frame(TEXT, HELLO, rsv=3), ping], echo, 1002),
        case("3.4", pieces(first + frame(TEXT, HELLO, rsv=1) + ping, 1), echo, 1002),
        case("3.5", [frame(BINARY, HELLO, rsv=5)], [], 1002),
        case("3.6", [frame(PING, HELLO, rsv=6)], [], 1002),
        case("3.7", [frame(CLOSE, rsv=7)], [], 1002),
    ]


def opcodes() -> list[Case]:
    """Section 4: reserved opcodes."""
    cases = []
    for section, base in ((1, 3), (2, 11)):
        first, ping = frame(TEXT, HELLO), frame(PING)
        cases += [
            case(f"4.{section}.1", [frame(base)], [], 1002),
            case(f"4.{section}.2", [frame(base + 1, HELLO)], [], 1002),
            case(f"4.{section}.3", [first + frame(base + 2) + ping], [(TEXT, HELLO)], 1002),
            case(f"4.{section}.4", [first, frame(base + 3, HELLO), ping], [(TEXT, HELLO)], 1002),
            case(f"4.{section}.5", pieces(first + frame(base + 4, HELLO) + ping, 1), [(TEXT, HELLO)], 1002),
        ]
    return cases


def fragmentation() -> list[Case]:
    """Section 5: messages in fragments, with control frames between them."""
    two, both = fragments(TEXT, b"fragment1", b"fragment2"), [(TEXT, b"fragment1fragment2")]
    with_ping = [two[0], frame(PING, b"ping"), two[1]]
    pong_and_both = [(PONG, b"ping"), *both]
    stray, text = frame(CONT, b"non-continuation"), frame(TEXT, HELLO)
    open_stray = frame(CONT, b"non-continuation", fin=False)
    five = fragments(TEXT, *(b"fragment%d" % n for n in range(1, 6)))
    five_echoes = [
        (PONG, b"pong1"),
        (PONG, b"pong2"),
        (TEXT, b"".join(b"fragment%d" % n for n in range(1, 6))),
    ]
    five_sent = [*five[:2], frame(PING, b"pong1"), *five[2:4], frame(PING, b"pong2"), five[4]]
    return [
        case("5.1", fragments(PING, b"fragment1", b"fragment2"), [], 1002),
        case("5.2", fragments(PONG, b"fragment1", b"fragment2"), [], 1002),
        case("5.3", [b"".join(two)], both),
        case("5.4", two, both),
        case("5.5", pieces(b"".join(two), 1), both),
        case("5.6", [b"".join(with_ping)], pong_and_both),
        case("5.7", with_ping, pong_and_both),
        case("5.8", pieces(b"".join(with_ping), 1), pong_and_both),
        case("5.9", [stray + text], [], 1002),
        case("5.10", [stray, text], [], 1002),
        case("5.11", pieces(stray + text, 1), [], 1002),
        case("5.12", [open_stray + text], [], 1002),
        case("5.13", [open_stray, text], [], 1002),
        case("5.14", pieces(open_stray + text, 1), [], 1002),
        case("5.15", [*two, open_stray, text], both, 1002),
        case("5.16", [open_stray, frame(TEXT, b"a", fin=False), frame(CONT, b"b")] * 2, [], 1002),
        case("5.17", [stray, frame(TEXT, b"a", fin=False), frame(CONT, b"b")] * 2, [], 1002),
        case("5.18", [frame(TEXT, b"fragment1", fin=False), frame(TEXT, b"fragment2")], [], 1002),
        case("5.19", five_sent, five_echoes),
        case("5.20", [b"".join(five_sent)], five_echoes),
    ]


# Kuhn's and Autobahn's byte sequences: whether each is UTF-8.
SEQUENCES = {
    "ceba": True,
    "cebae1bdb9cf83cebcceb5": True,
    "cebae1bdb9cf83cebcceb5eda080656469746564": False,
    "cebae1bdb9cf83cebcceb5f4908080656469746564": False,
    "00": True,
    "c280": True,
    "e0a080": True,
    "f0908080": True,
    "f888808080": False,
    "fc8480808080": False,
    "7f": True,
    "dfbf": True,
    "efbfbf": True,
    "f48fbfbf": True,
    "f7bfbfbf": False,
    "fbbfbfbfbf": False,
    "fdbfbfbfbfbf": False,
    "ed9fbf": True,
    "ee8080": True,
    "efbfbd": True,
    "f4908080": False,
    "80": False,
    "bf": False,
    "80bf": False,
    "80bf80bf80bf": False,
    "c020c120c220c320": False,
    "e020e120": False,
    "f020f120": False,
    "f820": False,
    "fc20": False,
    "c0": False,
    "e080": False,
    "f08080": False,
    "f8808080": False,
    "dfefbf": False,
    "efbf": False,
    "f7bfbf": False,
    "fe": False,
    "ff": False,
    "fefeffff": False,
    "c0af": False,
    "e080af": False,
    "f08080af": False,
    "f8808080af": False,
    "fc80808080af": False,
    "c1bf": False,
    "e09fbf": False,
    "f08fbfbf": False,
    "f887bfbfbf": False,
    "c080": False,
    "e08080": False,
    "f0808080": False,
    "eda080": False,
    "edadbf": False,
    "edae80": False,
    "edafbf": False,
    "edb080": False,
    "edbfbf": False,
    "eda080edb080": False,
    "edafbfedbfbf": False,
    "efbfbe": True,
    "f09fbfbe": True,
    "f09fbfbf": True,
    "f48fbfbe": True,
}


def utf8() -> list[Case]:
    """Section 6: text that is UTF-8 and text that is not, whole and cut anywhere."""
    cases = [
        case("6.1.1", [frame(TEXT)], [(TEXT, b"")]),
        case("6.1.2", fragments(TEXT, b"", b"", b""), [(TEXT, b"")]),
        case("6.1.3", fragments(TEXT, b"", b"middle", b""), [(TEXT, b"middle")]),
    ]
    greek = "Hello-µ@ßöäüàá-UTF-8!!".encode()
    octets = [greek[n : n + 1] for n in range(len(greek))]
    cases += [
        case("6.2.1", [frame(TEXT, greek)], [(TEXT, greek)]),
        case("6.2.2", fragments(TEXT, greek[:10], greek[10:]), [(TEXT, greek)]),
        case("6.2.3", fragments(TEXT, *octets), [(TEXT, greek)]),
        case("6.2.4", pieces(b"".join(fragments(TEXT, *octets)), 1), [(TEXT, greek)]),
    ]
    for number, (text, valid) in enumerate(SEQUENCES.items(), 1):
        data = bytes.fromhex(text)
        echoes, codes = ([(TEXT, data)], []) if valid else ([], [1007])
        octets = [data[n : n + 1] for n in range(len(data))]
        cases.append(case(f"6.5-23.{number}", [frame(TEXT, data)], echoes, *codes))
        cases.append(case(f"6.5-23.{number} in fragments", fragments(TEXT, *octets), echoes, *codes))
        padded = b"x" * 100 + data + b"y" * 100
        padded_echoes = [(TEXT, padded)] if valid else []
        cases.append(case(f"6.5-23.{number} within text", [frame(TEXT, padded)], padded_echoes, *codes))
    # Fail fast: the message is not UTF-8 before it is whole. A server may also wait for its end.
    bad = bytes.fromhex("cebae1bdb9cf83cebcceb5f4908080")
    cases.append(case("6.4.1", fragments(TEXT, bad[:11], bad[11:], b"edited"), [], 1007))
    cases.append(case("6.4.3", pieces(frame(TEXT, bad + b"edited"), 12), [], 1007))
    return cases


def closing() -> list[Case]:
    """Section 7: the closing handshake, its codes and reasons."""
    close = frame(CLOSE, NORMAL)
    large = b"*" * 262_144
    cases = [
        case("7.1.1", [frame(TEXT, HELLO) + close], [(TEXT, HELLO)], 1000),
        case("7.1.2", [close, close], [], 1000),
        case("7.1.3", [close, frame(PING)], [], 1000),
        case("7.1.4", [close, frame(TEXT, HELLO)], [], 1000),
        case("7.1.5", [frame(TEXT, b"fragment1", fin=False), close, frame(CONT, b"fragment2")], [], 1000),
        case("7.1.5 at once", [frame(TEXT, b"1", fin=False) + close + frame(CONT, b"2")], [], 1000),
        case("7.1.6", [frame(TEXT, large), close, frame(PING)], [(TEXT, large)], 1000),
        case("7.3.1", [frame(CLOSE)], [], 1000, 1005),
        case("7.3.2", [frame(CLOSE, b"a")], [], 1002),
        case("7.3.3", [close], [], 1000),
        case("7.3.4", [frame(CLOSE, NORMAL + HELLO)], [], 1000),
        case("7.3.5", [frame(CLOSE, NORMAL + b"*" * 123)], [], 1000),
        case("7.3.6", [frame(CLOSE, NORMAL + b"*" * 124)], [], 1002),
        case("7.5.1", [frame(CLOSE, NORMAL + b"\xce\xba\xe1\xbd\xb9\xf4\x90\x80\x80")], [], 1007, 1002),
    ]
    valid = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
    wrong = (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65535)
    codes = {code: struct.pack("!H", code) for code in (*valid, *wrong)}
    cases += [case(f"7.7 {code}", [frame(CLOSE, codes[code])], [], code, 1000) for code in valid]
    cases += [case(f"7.9 {code}", [frame(CLOSE, codes[code])], [], 1002) for code in wrong]
    return cases


def limits() -> list[Case]:
    """Sections 9 and 10: large messages, in one frame, in fragments and in small writes."""
    cases = []
    for opcode, filler in ((TEXT, b"*"), (BINARY, b"\xfe")):
        data = filler * (1 << 20)
        name, part = opcode.name.lower(), data[:262_144]
        cases += [
            case(f"9.1-2 {name}", [frame(opcode, data)], [(opcode, data)]),
            case(f"9.3-4 {name} 4096", fragments(opcode, *pieces(data, 4096)), [(opcode, data)]),
            case(f"9.3-4 {name} 262144", fragments(opcode, *pieces(data, 262_144)), [(opcode, data)]),
            case(f"9.5-6 {name} 2048", pieces(frame(opcode, part), 2048), [(opcode, part)]),
        ]
        small = [frame(opcode, b"%d" % n) for n in range(200)]
        cases.append(case(f"9.7-8 {name}", small, [(opcode, b"%d" % n) for n in range(200)]))
    data = b"*" * 65536
    cases.append(case("10.1.1", fragments(TEXT, *pieces(data, 1300)), [(TEXT, data)]))
    return cases


SECTIONS = [
    pings,
    reserved_bits,
    opcodes,
    fragmentation,
    *(pytest.param(section, marks=pytest.mark.slow) for section in (framing, utf8, closing, limits)),
]
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
DEFLATE = "permessage-deflate; client_no_context_takeover; client_max_window_bits"


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Accept, and send each message back."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        kept = {key: value for key, value in message.items() if key != "type" and value is not None}
        try:
            await send({"type": "websocket.send", **kept})
        except OSError:
            return


@asynccontextmanager
async def echo_server(engine: str, *, compression: bool) -> AsyncIterator[Server]:
    options = {"compression": True} if compression and engine == "native" else {}
    async with serving(engine, echo, **options) as server:
        yield server


async def connect(server: Server, *, compression: bool) -> trio.SocketStream:
    """Open a WebSocket by hand."""
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    offer = f"Sec-WebSocket-Extensions: {DEFLATE}\r\n" if compression else ""
    await stream.send_all(UPGRADE + offer.encode() + b"\r\n")
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await stream.receive_some(1)
    assert head.startswith(b"HTTP/1.1 101"), head
    return stream


class FrameReader:
    """Reads a server's frames, compressed ones inflated."""

    def __init__(self, stream: trio.SocketStream, *, compression: bool) -> None:
        self._stream = stream
        self._data = bytearray()
        self._compression = compression

    async def next(self) -> tuple[int, bytes] | None:
        """Return the next frame, or None at the end of the stream."""
        while (found := self._cut()) is None:
            try:
                data = await self._stream.receive_some(65536)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                return None
            self._data += data
        return found

    def _cut(self) -> tuple[int, bytes] | None:
        data = self._data
        if len(data) < 2:
            return None
        size, start = data[1] & 127, 2
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(data) < start:
                return None
            size = int.from_bytes(data[2:start], "big")
        if len(data) < start + size:
            return None
        opcode, payload = data[0] & 15, bytes(data[start : start + size])
        if self._compression and data[0] & 0x40:
            # RFC 7692, section 7.2.2; the server keeps no context between two messages.
            payload = zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")
        del data[: start + size]
        return opcode, payload


Outcome = tuple[list[tuple[int, bytes]], int | None]


async def play(server: Server, case: Case, *, compression: bool) -> Outcome:
    """Play one case; return the frames before the close frame, and its code or None."""
    stream = await connect(server, compression=compression)
    reader = FrameReader(stream, compression=compression)
    got: list[tuple[int, bytes]] = []
    code: int | None = None
    enough = trio.Event()

    async def send() -> None:
        try:
            for piece in case.sent:
                await stream.send_all(piece)
            if not case.codes:
                await enough.wait()
                await stream.send_all(frame(CLOSE, NORMAL))
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        with trio.move_on_after(30):
            while True:
                if len(got) >= len(case.echoes):
                    enough.set()
                found = await reader.next()
                if found is None:
                    break
                if found[0] == CLOSE:
                    code = int.from_bytes(found[1][:2], "big") if found[1] else 1005
                    break
                got.append(found)
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)
    return got, code


def judge(case: Case, got: list[tuple[int, bytes]], code: int | None, engine: str) -> str | None:
    """Return the difference between the expected and the received frames."""
    expected = [(int(opcode), data) for opcode, data in case.echoes]
    # A failed connection may end before earlier messages are echoed.
    if got != expected[: len(got)] or (not case.codes and len(got) != len(expected)):
        return f"{case.number}: frames {[(kind, data[:20]) for kind, data in got]}"
    if code is None and engine == "hypercorn" and case.codes and case.codes <= FAILURES:
        return None  # the suite lets a server end a failed connection without a close frame
    if code not in (case.codes or {1000}):
        return f"{case.number}: closed with {code}, not {sorted(case.codes or {1000})}"
    return None


@pytest.mark.parametrize("compression", [False, True], ids=["plain", "deflate"])
@pytest.mark.parametrize("section", SECTIONS)
async def test_autobahn(section: Any, compression: bool, engine: str, clock: Clock) -> None:
    """Each case of a section gets the frames and the close code of the suite.

    With ``deflate`` the client offers compression, which Hypercorn declines, and sends plain frames.
    """
    failures: list[str] = []
    async with echo_server(engine, compression=compression) as server:
        for one in section():
            got, code = await play(server, one, compression=compression and engine == "native")
            failures += filter(None, [judge(one, got, code, engine)])

    assert failures == []


OFFERS: dict[str, dict[str, Any]] = {
    "13.1": {},
    "13.2": {"client_no_context_takeover": True, "server_no_context_takeover": True},
    "13.3": {"server_max_window_bits": 9, "client_max_window_bits": 9},
    "13.4": {"server_max_window_bits": 15},
    "13.5": {"server_max_window_bits": 9, "server_no_context_takeover": True},
    "13.6": {"server_max_window_bits": 15, "server_no_context_takeover": True},
}


@pytest.mark.parametrize("number", OFFERS)
async def test_autobahn_compression(number: str, clock: Clock) -> None:
    """Sections 12 and 13: compressed messages come back, for each way to offer compression."""
    async with echo_server("native", compression=True) as server:
        socket = await open_socket(
            server, "/ws", extensions=[ClientPerMessageDeflateFactory(**OFFERS[number])]
        )
        assert socket.protocol.extensions
        for size in (16, 64, 256, 1024, 4096, 16384, 65536, 131_072):
            for message in (b"*" * size, (b'{"id":17,"value":0.5}' * size)[:size]):
                await socket.send(message)
                assert await socket.receive() == message
        await socket.aclose()


async def test_several_offers_of_compression(clock: Clock) -> None:
    """13.7: of several offers the first that can be met is taken."""
    offers = (
        "permessage-deflate; unknown=1, permessage-deflate; server_max_window_bits=10, permessage-deflate"
    )
    async with echo_server("native", compression=True) as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        await stream.send_all(UPGRADE + f"Sec-WebSocket-Extensions: {offers}\r\n\r\n".encode())
        head = (await stream.receive_some(65536)).decode()
        await stream.aclose()

    assert "sec-websocket-extensions: permessage-deflate; " in head
    assert "server_max_window_bits=10" in head
