"""Request heads, with h11 as the referee.

A head that h11 refuses is refused, and an accepted head is read as h11 reads it.
"""

from __future__ import annotations

from collections.abc import Callable

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tangram.http.native import head as head_module
from tangram.http.native.head import (
    MAX_KNOWN_FIELDS,
    HeadReader,
    RejectedRequest,
    RequestHead,
    parse_head,
    premature_fault,
)
from tests.http.native.referee import Reading, read_by_h11, read_natively

METHODS = [
    b"GET",
    b"POST",
    b"PUT",
    b"DELETE",
    b"HEAD",
    b"OPTIONS",
    b"PATCH",
    b"CONNECT",
    b"TRACE",
    b"get",
    b"G T",
    b"",
]
TARGETS = [
    b"/",
    b"/a?b=c",
    b"*",
    b"http://h/x",
    b"http://",
    b"/\x7f",
    b"/ x",
    b"//",
    b"/%00",
    b"h:80",
    b"",
    b"/\xc3\xa9",
]
VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.2", b"http/1.1", b"HTTP/1.1 ", b""]
FIELDS = [
    b"Host: a",
    b"Host: b",
    b"Host:",
    b"host : a",
    b"Host\t: a",
    b" Host: a",
    b"\tfolded",
    b"Content-Length: 3",
    b"Content-Length: 0",
    b"Content-Length: 3, 3",
    b"Content-Length: +3",
    b"Content-Length: -1",
    b"Content-Length: 0x3",
    b"Content-Length: 3 3",
    b"Content-Length:",
    b"Content-Length: 99999999999999999999999",
    b"content-length:3",
    b"Content_Length: 3",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding: \tchunked \t",
    b"Transfer-Encoding",
    b"Connection: close",
    b"Connection: keep-alive, Upgrade",
    b"Connection: close, keep-alive",
    b"Upgrade: websocket",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"Expect: tea",
    b"X: a\rb",
    b"X: a\x00b",
    b"X: \x01",
    b"X: \xff\x80",
    b"X:  a  ",
    b"X : a",
    b": a",
    b"X\xff: a",
    b"(X): a",
    b"Proxy-Connection: keep-alive",
]
BODIES = [
    b"",
    b"abc",
    b"0\r\n\r\n",
    b"3\r\nabc\r\n0\r\n\r\n",
    b"3;x=y\r\nabc\r\n0\r\n\r\n",
    b"3 \r\nabc\r\n0\r\n\r\n",
    b"3;\x00\r\nabc\r\n0\r\n\r\n",
    b"3\nabc\n0\n\n",
    b"3\r\nabcd\r\n0\r\n\r\n",
    b"3\r\nabc0\r\n\r\n",
    b"0x3\r\nabc\r\n0\r\n\r\n",
    b"-3\r\nabc\r\n0\r\n\r\n",
    b"+3\r\nabc\r\n0\r\n\r\n",
    b"3\r\nabc\r\n0\r\nX: y\r\n\r\n",
    b"3\r\nabc\r\n0\r\nX : y\r\n\r\n",
    b"3\r\nabc\r\n0\r\n folded\r\n\r\n",
    b"3\r\nabc\r\n0\r\n\n",
    b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    b"00000000000000000003\r\nabc\r\n0\r\n\r\n",
    b"FFFFFFFFFFFFFFFFF\r\nabc",
]
ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\n\r"])


@st.composite
def one_request(draw: st.DrawFn) -> bytes:
    line = b" ".join(
        [
            draw(st.sampled_from(METHODS[:2] * 8 + METHODS)),
            draw(st.sampled_from(TARGETS[:2] * 8 + TARGETS)),
            draw(st.sampled_from(VERSIONS[:1] * 12 + VERSIONS)),
        ]
    )
    fields = draw(st.lists(st.sampled_from(FIELDS), max_size=4))
    if draw(st.integers(0, 9)):
        fields.insert(draw(st.integers(0, len(fields))), b"Host: a")
    text = line + draw(ENDS)
    for field in fields:
        text += field + draw(ENDS)
    return text + draw(ENDS) + draw(st.sampled_from(BODIES))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Generate a connection's bytes, some of them wrong."""
    data = bytearray(b"".join(draw(st.lists(one_request(), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 2))):
        if not data:
            break
        where = draw(st.integers(0, len(data) - 1))
        how = draw(st.sampled_from(["change", "drop", "insert"]))
        byte = draw(st.sampled_from(list(b"\r\n \t:;,\x00\x0b\x0c\x7f\xa0aZ0")))
        if how == "change":
            data[where] = byte
        elif how == "drop":
            del data[where]
        else:
            data.insert(where, byte)
    return bytes(data)


def told(reading: Reading) -> list[object]:
    """Return the parts to compare: all but the Host that an absolute target replaces."""
    return [
        (
            read.method,
            read.target,
            read.version,
            [field for field in read.headers if field[0] != b"host" or read.target[:1] == b"/"],
            read.body,
        )
        for read in reading.requests
    ]


@pytest.mark.slow
@given(mutated())
@example(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
@example(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n")
def test_accepted_requests_are_read_as_h11_reads_them(data: bytes) -> None:
    """The accepted requests are the first of those that h11 reads, byte for byte."""
    ours, referee = read_natively(data), read_by_h11(data)

    assert told(ours) == told(referee)[: len(ours.requests)]


@pytest.mark.slow
@given(
    st.sampled_from([b"GET", b"POST", b"PUT", b"PATCH"]),
    st.from_regex(rb"/[!-~]{0,40}", fullmatch=True),
    st.lists(
        st.tuples(
            st.from_regex(rb"X-[!#$%&'*+\-.^_`|~0-9A-Za-z]{0,10}", fullmatch=True),
            st.from_regex(rb"[\t\x20-\x7e\x80-\xff]{0,20}", fullmatch=True),
        ),
        max_size=8,
    ),
    st.binary(max_size=50),
    st.integers(0, 60),
)
def test_well_formed_requests_are_accepted(
    method: bytes, target: bytes, fields: list[tuple[bytes, bytes]], body: bytes, chunk: int
) -> None:
    """Every well-formed request is accepted, with a length or in chunks.

    It is read as h11 reads it.
    """
    head = b"%b %b HTTP/1.1\r\nHost: a\r\n" % (method, target)
    head += b"".join(b"%b:%b\r\n" % field for field in fields)
    if chunk:
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        pieces = [body[at : at + chunk] for at in range(0, len(body), chunk)]
        data = head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    else:
        data = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    ours, referee = read_natively(data), read_by_h11(data)

    assert ours.refused is None
    assert told(ours) == told(referee)
    assert len(ours.requests) == 1


GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SMUGGLING = {
    "length and chunks": POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nX",
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "the same length twice": POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "a list of lengths": POST + b"Content-Length: 1, 1\r\n\r\na",
    "a signed length": POST + b"Content-Length: +1\r\n\r\na",
    "a length in hexadecimal": POST + b"Content-Length: 0x1\r\n\r\na",
    "an endless length": POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "bare LF after a field": b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "bare LF everywhere": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare CR in a value": GET + b"X: a\rTransfer-Encoding: chunked\r\n\r\n",
    "a folded line": GET + b"X: a\r\n Transfer-Encoding: chunked\r\n\r\n",
    "space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "space before the first field": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a list of codings": POST + b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    "two codings": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a coding behind a vertical tab": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "a coding in HTTP/1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a null byte": GET + b"X: a\x00b\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": GET + b"Host: a\r\n\r\n",
    "a Host with a slash": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a field without a name": GET + b": x\r\n\r\n",
    "a field without a colon": GET + b"Transfer-Encoding\r\n\r\n",
    "an empty line first": b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "two spaces in the request line": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tab in the request line": b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a method in lower case": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target without a slash": b"GET evil HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/2 without TLS": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET / HTTP/0.9\r\n\r\n",
    "an upgrade with a body": GET
    + b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\nx",
    "an unknown expectation": GET + b"Expect: tea\r\n\r\n",
    "a size with a sign": CHUNKED + b"+1\r\na\r\n0\r\n\r\n",
    "a size in C notation": CHUNKED + b"0x1\r\na\r\n0\r\n\r\n",
    "a size with a space": CHUNKED + b"1 \r\na\r\n0\r\n\r\n",
    "a chunk longer than its size": CHUNKED + b"1\r\nab\r\n0\r\n\r\n",
    "a bare LF after a size": CHUNKED + b"1\na\r\n0\r\n\r\n",
    "a bare LF in an extension": CHUNKED + b"1;x\ny\r\na\r\n0\r\n\r\n",
    "a null byte in an extension": CHUNKED + b"1;\x00\r\na\r\n0\r\n\r\n",
    "an overflowing size": CHUNKED + b"f" * 17 + b"\r\na",
    "a folded trailer": CHUNKED + b"0\r\nX: y\r\n z\r\n\r\n",
}
"""Requests that two servers may read differently."""

OTHER_STATUS = {
    "a list of codings": 501,
    "HTTP/2 without TLS": 505,
    "HTTP/0.9": 505,
    "an unknown expectation": 417,
}
"""Statuses where it is not 400."""


@pytest.mark.parametrize("name", SMUGGLING)
def test_smuggling_is_refused(name: str) -> None:
    """Each known way to make two servers read the same bytes differently is refused."""
    reading = read_natively(SMUGGLING[name])

    assert reading.requests == []
    assert isinstance(reading.refused, RejectedRequest)
    assert reading.refused.status == OTHER_STATUS.get(name, 400)


class Lenient:
    """A parser that accepts everything."""

    def __init__(self, protocol: object) -> None:
        """Take the object that gets no callback."""

    def feed_data(self, data: bytes) -> None:
        """Find no fault."""


@pytest.mark.parametrize("name", SMUGGLING)
def test_smuggling_is_refused_by_our_own_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own check refuses each case, without the help of llhttp."""
    monkeypatch.setattr(httptools, "HttpRequestParser", Lenient)
    reading = read_natively(SMUGGLING[name])

    assert reading.requests == []
    assert isinstance(reading.refused, RejectedRequest)


@pytest.mark.parametrize("name", SMUGGLING)
def test_smuggling_is_refused_behind_another_request(name: str) -> None:
    """The fields of the request before, which the connection knows, change nothing."""
    before = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    reading = read_natively(before + GET + b"\r\n" + POST + b"\r\n" + SMUGGLING[name])

    assert len(reading.requests) == 3
    assert isinstance(reading.refused, RejectedRequest)


LINES = st.builds(
    b"%b %b %b".__mod__,
    st.tuples(
        st.sampled_from([*METHODS, b"PROPFIND", b"SOURCE", b"PRI", b"QUERY", b"A-B", b"M-SEARCH"]),
        st.one_of(
            st.sampled_from(TARGETS),
            st.from_regex(rb"/[!-~]{0,20}", fullmatch=True),
            st.from_regex(rb"/[A-Za-z0-9._~!$&'()*+,;=:@/%?\-]{0,20}", fullmatch=True),
        ),
        st.sampled_from(VERSIONS),
    ),
)
"""Request lines, some of them wrong."""


@pytest.mark.slow
@given(
    st.lists(st.tuples(LINES, st.integers(0, 2)), min_size=2, max_size=6),
    st.lists(st.lists(st.sampled_from(FIELDS), max_size=4), min_size=3, max_size=3),
)
@example([(b"GET /a HTTP/1.1", 0), (b"GET /b%20c?d HTTP/1.1", 0)], [[b"Host: a"]] * 3)
@example([(b"GET /a HTTP/1.1", 0), (b"GET /b HTTP/1.0", 0)], [[b"Host: a"]] * 3)
@example([(b"GET /a HTTP/1.1", 0), (b"PRI /b HTTP/1.1", 0)], [[b"Host: a"]] * 3)
@example([(b"GET /a HTTP/1.1", 0), (b"PUT /b HTTP/1.1", 0)], [[b"Host: a"]] * 3)
@example([(b"GET /a HTTP/1.1", 0), (b"GET /b HTTP/1.1", 1)], [[b"Host: a"], [b"Host: b"], []])
def test_known_fields_change_no_result(requests: list[tuple[bytes, int]], fields: list[list[bytes]]) -> None:
    """The heads of a connection are read as each of them is read alone."""
    reader = HeadReader()
    for line, which in requests:
        head = b"\r\n".join([line, *fields[which], b"", b""])

        assert outcome(reader.read, head + b"GET ", len(head), 3) == outcome(parse_head, head, 3)


def outcome(read: Callable[..., RequestHead], *args: object) -> object:
    """Return everything that a head says, or its refusal."""
    try:
        request = read(*args)
    except RejectedRequest as error:
        return error.args
    names = [name for name in dir(request) if not name.startswith("_")]
    return {name: found for name in names if not callable(found := getattr(request, name))}


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the list of the heads that are parsed from now on."""
    heads: list[bytes] = []

    def parse(head: bytes, max_headers: int) -> RequestHead:
        heads.append(head)
        return parse_head(head, max_headers)

    monkeypatch.setattr(head_module, "parse_head", parse)
    return heads


def test_the_same_fields_are_parsed_once(parsed: list[bytes]) -> None:
    """A head that differs only in its target needs no parser; any other difference needs it."""
    reader = HeadReader()
    for line in (b"GET /a", b"GET /b?c", b"GET /%20", b"HEAD /a", b"HEAD /b", b'HEAD /"', b"HEAD /b"):
        head = line + b" HTTP/1.1\r\nHost: a\r\n\r\n"
        reader.read(head, len(head), 10)

    assert [head.split(b" HTTP")[0] for head in parsed] == [b"GET /a", b"HEAD /a", b'HEAD /"']


def test_known_fields_are_the_property_of_one_request() -> None:
    """An application that changes the list of fields changes no later request."""
    reader = HeadReader()
    head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    for _ in range(3):
        request = reader.read(head, len(head), 10)
        assert request.headers == [(b"host", b"a")]
        request.headers.clear()


@pytest.mark.parametrize(
    "fields", [b"X: %b" % (b"y" * MAX_KNOWN_FIELDS), b"Connection: Upgrade\r\nUpgrade: websocket"]
)
def test_large_fields_and_those_of_a_websocket_are_not_kept(fields: bytes, parsed: list[bytes]) -> None:
    """A connection that waits keeps a few kilobytes at most, and a WebSocket nothing."""
    head = b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % fields
    reader = HeadReader()
    for _ in range(2):
        reader.read(head, len(head), 10)

    assert len(parsed) == 2


def test_spaces_around_a_value_are_not_part_of_it() -> None:
    """Spaces and tabs around a value are removed, those inside stay."""
    request = parse_head(b"GET / HTTP/1.1\r\nHost: a\r\nX: \t a \t b\t \r\n\r\n", 10)

    assert request.headers[1] == (b"x", b"a \t b")


def test_absolute_target_overrides_host() -> None:
    """The application sees the authority and path of an absolute target."""
    request = parse_head(b"GET http://real:80/x?y HTTP/1.1\r\nHost: other\r\n\r\n", 10)

    assert (request.path, request.query) == ("/x", b"y")
    assert request.headers == [(b"host", b"real:80")]


@pytest.mark.parametrize("authority", [b'a"b', b"a\\b", b"a{b", b"<a>"])
def test_absolute_target_is_checked_as_host_is(authority: bytes) -> None:
    """An authority that Host may not have is refused in the target, too."""
    with pytest.raises(RejectedRequest) as caught:
        parse_head(b"GET http://" + authority + b"/x HTTP/1.1\r\nHost: b\r\n\r\n", 100)

    assert caught.value.status == 400


def test_too_many_fields() -> None:
    """More header fields than allowed are answered 431."""
    with pytest.raises(RejectedRequest) as caught:
        parse_head(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 10 + b"\r\n", 10)

    assert caught.value.status == 431


@pytest.mark.parametrize(
    ("head", "keep"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
    ],
)
def test_keep_alive_by_version_and_header(head: bytes, keep: bool) -> None:
    """HTTP/1.1 keeps the connection by default, HTTP/1.0 only if asked to."""
    assert parse_head(head, 10).keep_alive is keep


@pytest.mark.parametrize(
    ("data", "bad"),
    [
        (b"", False),
        (b"G", False),
        (b"GET / HTTP/1.1\r", False),
        (b"GET / HTTP/1.1\r\nX", False),
        (b"\x16\x03\x01", True),
        (b"\r\n", True),
        (b"GET / HTTP/1.1\nHost", True),
    ],
)
def test_hopeless_bytes_are_refused_at_once(data: bytes, bad: bool) -> None:
    """TLS or a bare LF is refused without waiting for an end that may never come."""
    assert (premature_fault(data) is not None) is bad
