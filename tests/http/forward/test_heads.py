"""Heads between nodes, with h11 as the referee."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.http.forward.heads import (
    ENVELOPE,
    PROOF,
    REFUSED,
    BadHead,
    Envelope,
    answer_fields,
    declared_length,
    encode_envelope,
    encode_head,
    open_envelope,
    parse_answer,
    request_fields,
    signed_text,
    target_of,
    timing_field,
)
from tangram.http.native.head import parse_head

NAMES = st.from_regex(rb"[!#$%&'*+.^_`|~0-9a-z-]{1,12}", fullmatch=True)
VALUES = st.from_regex(rb"([!-~\x80-\xff]([\t -~\x80-\xff]{0,20}[!-~\x80-\xff])?)?", fullmatch=True)
ANY = st.binary(max_size=12)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_the_receiver_reads_the_fields_that_were_signed(fields: list[tuple[bytes, bytes]]) -> None:
    """The engine of the other node finds the same method, target and fields, so the proofs agree."""
    fields = [
        field
        for field in fields
        if field[0]
        not in {b"host", b"content-length", b"transfer-encoding", b"expect", b"connection", b"upgrade"}
    ]
    fields = [(b"host", b"a"), *fields, encode_envelope(Envelope(node="a"))]
    signed = signed_text(b"GET", b"/a?b", fields)
    head = parse_head(encode_head(signed, b"proof"), 100)

    assert head.headers == [*fields, (PROOF, b"proof")]
    again = signed_text(
        head.method.encode(), target_of({"raw_path": head.raw_path, "query_string": head.query}), head.headers
    )
    assert again == signed


@given(st.lists(st.tuples(ANY, ANY), max_size=3), ANY, ANY)
def test_nothing_that_is_written_is_read_as_another_request(
    fields: list[tuple[bytes, bytes]], method: bytes, path: bytes
) -> None:
    """A head of any bytes is refused, or is exactly one request with exactly these fields (by h11)."""
    fields = [(b"host", b"a"), *fields]
    signed = signed_text(method, b"/" + path, fields)
    try:
        data = encode_head(signed, b"proof")
    except BadHead:
        return
    referee = h11.Connection(h11.SERVER)
    referee.receive_data(data)
    try:
        event = referee.next_event()
    except h11.RemoteProtocolError:
        return  # refused by the other node, which is as strict
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (method, b"/" + path)
    assert [(name, value) for name, value in event.headers] == [*fields, (PROOF, b"proof")]


@pytest.mark.parametrize(
    "field",
    [
        (b"x", b"a\r\nhost: b"),
        (b"x: y\r\nz", b"a"),
        (b"x", b"a\nb"),
        (b"x", b"\0"),
        (b"X", b"a"),
        (b"x", b" a"),
        (b"", b"a"),
        (b"x y", b"a"),
        (b"x", b"\x7f"),
    ],
)
def test_a_field_that_would_end_its_line_is_refused(field: tuple[bytes, bytes]) -> None:
    """Fields of HTTP/2 did not pass the parser for HTTP/1.1."""
    with pytest.raises(BadHead):
        encode_head(signed_text(b"GET", b"/", [field]), b"proof")


@pytest.mark.parametrize(
    ("method", "target"),
    [(b"get", b"/"), (b"GET", b"/ HTTP/1.1\r\n"), (b"GET", b"http://a/"), (b"GE T", b"/")],
)
def test_a_request_line_that_says_something_else_is_refused(method: bytes, target: bytes) -> None:
    """Method and target are one word each."""
    with pytest.raises(BadHead):
        encode_head(signed_text(method, target, []), b"proof")


def test_fields_of_one_connection_and_between_nodes_stay_behind() -> None:
    """A client can neither frame the forwarded request nor forge a proof, nor remove its other fields."""
    headers = [
        (b"host", b"a"),
        (b"connection", b"close, cookie, x-forwarded-for"),
        (b"cookie", b"k=v"),
        (b"x-forwarded-for", b"10.0.0.1"),
        (b"keep-alive", b"1"),
        (b"te", b"trailers"),
        (b"trailer", b"x"),
        (b"transfer-encoding", b"chunked"),
        (b"content-length", b"7"),
        (b"upgrade", b"h2c"),
        (b"http2-settings", b"x"),
        (b"expect", b"100-continue"),
        (PROOF, b"x"),
        (ENVELOPE, b"{}"),
        (REFUSED, b"moved"),
    ]
    fields, has_host = request_fields({"type": "http", "headers": headers})

    assert has_host
    assert fields == [(b"host", b"a"), (b"cookie", b"k=v"), (b"x-forwarded-for", b"10.0.0.1")]


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"1"), (b"content-length", b"1")],
        [(b"content-length", b"+1")],
        [(b"content-length", b"1"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"")],
    ],
)
def test_a_request_that_is_framed_in_two_ways_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    """Which of the lengths counts would be a guess."""
    with pytest.raises(BadHead):
        declared_length({"headers": headers})


@given(st.binary(max_size=80))
def test_any_answer_is_parsed_or_refused(data: bytes) -> None:
    """As h11 reads it, where both accept it."""
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n" + data + b"\r\n\r\n"
    try:
        answer = parse_answer(head)
    except BadHead:
        return
    referee = h11.Connection(h11.CLIENT)
    referee.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    referee.send(h11.EndOfMessage())
    referee.receive_data(head)
    event = referee.next_event()
    assert isinstance(event, h11.Response)
    assert [(name.lower(), value) for name, value in event.headers] == answer.fields


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 099 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
        b"HTTP/1.1 200 OK\r\n folded: 1\r\ncontent-length: 0\r\n\r\n",
    ],
)
def test_answers_that_no_node_sends_are_refused(head: bytes) -> None:
    """An answer whose end is unclear would be the beginning of the next one."""
    with pytest.raises(BadHead):
        parse_answer(head)


def test_an_answer_to_head_has_no_body() -> None:
    """Its length is that of GET."""
    answer = parse_answer(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", to_head=True)
    assert answer.body.done
    assert answer_fields(answer) == [(b"content-length", b"5")]


def test_the_name_of_a_node_cannot_break_the_field() -> None:
    """Whatever the name is, the field stays one quoted word."""
    assert timing_field("a-1")[1] == b'node;desc="a-1"'
    assert timing_field('a"; dur=1\r\n\xe9')[1] == b'node;desc="a?; dur=1???"'


@given(
    st.builds(
        Envelope,
        node=st.text(max_size=5),
        plugin=st.text(max_size=5),
        client=st.none() | st.tuples(st.text(max_size=5), st.integers(0, 65535)),
        right=st.sampled_from(["", "read", "token"]),
    )
)
def test_an_envelope_is_read_as_it_was_written(envelope: Envelope) -> None:
    """Every field comes back."""
    assert open_envelope(encode_envelope(envelope)[1]) == envelope
