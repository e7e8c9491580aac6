"""Fields and heads between nodes; the referee for answers is h11."""

from __future__ import annotations

from collections.abc import Hashable

import h11

from tangram.http.forward.heads import (
    BadHead,
    Envelope,
    encode_envelope,
    encode_head,
    open_envelope,
    parse_answer,
    refusal_of,
)
from tangram.http.forward.keys import NONCE_BYTES, Keyring, SessionTable, Verdict, _Accepting

__all__ = ["check_answer_head", "check_envelope", "check_node_proof", "check_signed_head"]

NAME = bytes(NONCE_BYTES)
KEYRING = Keyring("the key of nobody else")
LINE = b"HTTP/1.1 200 OK\r\n"


def check_envelope(data: bytes) -> Hashable:
    """The description of a request is refused, or comes back as it was read."""
    try:
        envelope = open_envelope(data)
    except BadHead:
        return None
    assert isinstance(envelope, Envelope)
    assert open_envelope(encode_envelope(envelope)[1]) == envelope
    return envelope.right, envelope.client is None, envelope.server is None, envelope.hostless


def check_node_proof(data: bytes) -> Hashable:
    """Nothing but the key makes a proof or a greeting."""
    table = SessionTable(KEYRING, "b")
    table._fresh[b"00"] = table._used[b"11"] = _Accepting("a", b"key")
    verdict = table.check(data, b"GET\n/\n")
    assert verdict is not Verdict.ACCEPTED
    assert verdict is not Verdict.SEEN
    assert table.open(data, NAME) is None
    return verdict, data.count(b" ")


def check_signed_head(data: bytes) -> Hashable:
    """A head is refused, or is one request for h11, with the same number of fields."""
    try:
        head = encode_head(data, b"proof")
    except BadHead:
        return None
    referee = h11.Connection(h11.SERVER)
    referee.receive_data(head)
    try:
        event = referee.next_event()
    except h11.RemoteProtocolError:
        return "refused by the referee"
    assert isinstance(event, h11.Request)
    # h11 reads equal lengths as one; a node writes one length at most.
    if data.count(b"content-length:") < 2:
        assert len(event.headers) == data.count(b"\n") - 1
    return len(event.headers)


def check_answer_head(data: bytes) -> Hashable:
    """An answer is refused, or is read as h11 reads it."""
    head = LINE + data
    try:
        answer = parse_answer(head)
    except BadHead:
        return None
    referee = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    referee.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    referee.send(h11.EndOfMessage())
    referee.receive_data(head)
    event = referee.next_event()
    assert isinstance(event, h11.Response)
    assert [(name, value) for name, value in event.headers] == answer.fields
    return refusal_of(answer), answer.close, type(answer.body).__name__
