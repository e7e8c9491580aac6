from __future__ import annotations

import json
import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tangram.channels import codec
from tangram.channels.frames import BINARY, TEXT, FrameError, SocketMessage
from tangram.channels.json_text import is_document

FIELD = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
PAYLOAD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | FIELD,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELD, inner, max_size=4),
    max_leaves=12,
)


def split_by_the_table(data: bytes, lengths: int) -> tuple[list[str], bytes]:
    """Read kind and lengths, then the fields in order, then the payload."""
    kind_and_lengths = struct.unpack_from(f"{1 + lengths}B", data)
    fields, at = [], 1 + lengths
    for length in kind_and_lengths[1:]:
        fields.append(str(data[at : at + length], "utf-8"))
        at += length
    return fields, data[at:]


@settings(max_examples=40, deadline=None)
@given(st.none() | FIELD, st.none() | FIELD, FIELD, FIELD, PAYLOAD)
def test_text_frames_survive_the_round_trip(
    join_ref: str | None, ref: str | None, topic: str, event: str, payload: object
) -> None:
    """An ordinary JSON parser reads a text frame, which decodes to the same message."""
    text = json.dumps(payload).encode()
    encoded = codec.encode_text(join_ref, ref, topic, event, text)

    assert json.loads(encoded.data) == [join_ref, ref, topic, event, payload]
    assert codec.decode(TEXT, encoded.data) == SocketMessage(join_ref, ref, topic, event, text)


@settings(max_examples=40, deadline=None)
@given(st.none() | FIELD, st.none() | FIELD, FIELD, FIELD, st.binary(max_size=300))
def test_binary_pushes_survive_the_round_trip(
    join_ref: str | None, ref: str | None, topic: str, event: str, payload: bytes
) -> None:
    """A binary push has the documented layout and decodes to the same message."""
    message = SocketMessage(join_ref or None, ref or None, topic, event, payload, binary=True)
    data = codec.encode_client(message)

    assert isinstance(data, bytes)
    assert data[0] == 0
    assert split_by_the_table(data, 4) == ([join_ref or "", ref or "", topic, event], payload)
    assert codec.decode(BINARY, data) == message


@settings(max_examples=40, deadline=None)
@given(FIELD, FIELD, st.binary(max_size=300))
def test_broadcasts_have_the_layout_of_kind_2(topic: str, event: str, payload: bytes) -> None:
    """A broadcast is kind 2 with two lengths, and a client's decoder agrees."""
    data = codec.encode_binary_broadcast(topic, event) + payload

    assert data[0] == 2
    assert split_by_the_table(data, 2) == ([topic, event], payload)
    assert codec.decode_server(BINARY, data) == SocketMessage(None, None, topic, event, payload, binary=True)


def test_the_documented_example_of_a_push_decodes() -> None:
    """The documented bytes of a push decode to the documented fields."""
    data = bytes.fromhex("00 01 01 05 03 31 32 6f62733a66 62696e 00ff64617461")

    assert codec.decode_binary(data) == SocketMessage("1", "2", "obs:f", "bin", b"\x00\xffdata", binary=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "00 01 0a 02 31 6f62733a643a77696e64 6576 0001",
            SocketMessage("1", None, "obs:d:wind", "ev", b"\x00\x01", binary=True),
        ),
        ("01 01 01 01 02 31 32 74 6f6b ff", SocketMessage("1", "2", "t", "ok", b"\xff", binary=True)),
    ],
)
def test_a_client_reads_all_kinds_of_a_server(data: str, message: SocketMessage) -> None:
    """Pushes without a ref and binary replies are read by their own headers."""
    assert codec.decode_server(BINARY, bytes.fromhex(data)) == message


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([TEXT, BINARY]), st.binary(max_size=200))
def test_any_bytes_decode_or_raise_frame_error(opcode: int, data: bytes) -> None:
    """No bytes raise anything but FrameError, in either direction."""
    for decode in (codec.decode, codec.decode_server):
        try:
            decode(opcode, data)
        except FrameError:
            continue


@settings(max_examples=40, deadline=None)
@given(st.lists(PAYLOAD, max_size=7))
def test_any_json_decodes_or_raises_frame_error(elements: list[object]) -> None:
    """JSON of the wrong shape raises FrameError; of the right shape, it decodes."""
    try:
        message = codec.decode_text(json.dumps(elements))
    except FrameError:
        return
    assert [message.join_ref, message.ref, message.topic, message.event] == elements[:4]


@pytest.mark.parametrize(
    "data",
    [
        b'["1","2","t","e"]',
        b'[1,"2","t","e",{}]',
        b'["1",2,"t","e",{}]',
        b'["1","2",null,"e",{}]',
        b'{"topic":"t"}',
        b'["1","2","t","e",{}] x',
        b'["1","2","t","e",["\xff"]]',
        b'["1","2","t","e",1e400]',
        b'["1","2","t","e",["\\ud800"]]',
        b'["1","2","t","e",' + b"[" * 5000 + b"]" * 5000 + b"]",
        b"",
    ],
)
def test_malformed_text_is_refused(data: bytes) -> None:
    """Wrong shapes, bad text, overflowing numbers and deep nesting are no messages."""
    with pytest.raises(FrameError):
        codec.decode_text(data)


def test_a_payload_is_passed_on_unchanged() -> None:
    """The payload keeps its bytes: blanks, long numbers, escapes and duplicate keys."""
    payload = rb' { "b":1.50 , "a" : 12345678901234567890123, "a":"\u00e9" } '

    assert codec.decode_text(b'["1","2","t","e",' + payload + b"]").payload == payload.strip()


def test_extra_elements_are_ignored() -> None:
    """Elements after the fifth are ignored, as in Phoenix."""
    assert codec.decode_text(b'["1","2","t","e",{"a":1},6,{}]').payload == b'{"a":1}'


@pytest.mark.parametrize("kind", [1, 2, 3, 255])
def test_a_client_may_send_pushes_only(kind: int) -> None:
    """Kinds that only a server sends are no messages from a client."""
    with pytest.raises(FrameError):
        codec.decode_binary(bytes([kind, 1, 1, 1, 1]) + b"abcd")


DOCUMENTS = [
    b"{}",
    b"[]",
    b'{"a": 1}\n',
    b'{"a":\n[1, 2]}',
    b'{"a":1,"a":2}',
    b'["\xc3\xa9"]',
    b'["\\ud83d\\ude00"]',
    b"[18446744073709551616]",
    b"[1e-400]",
    b"[" + b"9" * 308 + b"]",
    b"[" * 128 + b"]" * 128,
    b'["' + b"[" * 500 + b'"]',
    b'["' + b"9" * 500 + b'"]',
    b'[{"a":[]}' + b',{"b":[[]]}' * 200 + b"]",
    b'["\\"' + b"[" * 300 + b'"]',
]
BYTES = [
    b"",
    b'"hello"',
    b"Hello from plugin",
    b"42",
    b"true",
    b"null",
    b' {"a":1}',
    b'\xef\xbb\xbf{"a":1}',
    b"\x00\x01",
    b'{"a":',
    b'{"a":NaN}',
    b'{"a":1} x',
    b'{"a":"\xff"}',
    b'["\xed\xa0\x80"]',
    b'["\\ud800"]',
    b'["\\udc00x"]',
    b"[1e400]",
    b"[-1e400]",
    b"[" + b"9" * 310 + b"]",
    b"[-" + b"9" * 400 + b"]",
    b"[" + b"9" * 5000 + b"]",
    b"[" * 129 + b"]" * 129,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 129 + b"1" + b"}" * 129,
    b'["a\nb"]',
    b"[1,]",
]


@pytest.mark.parametrize("payload", DOCUMENTS)
def test_documents_are_delivered_as_json(payload: bytes) -> None:
    """One valid object or array is JSON, with any blanks, up to 128 levels."""
    assert is_document(payload)


@pytest.mark.parametrize("payload", BYTES)
def test_other_payloads_are_delivered_as_bytes(payload: bytes) -> None:
    """Scalars, invalid JSON, and JSON that a browser would refuse are binary."""
    assert not is_document(payload)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=40) | PAYLOAD.map(lambda value: json.dumps(value).encode()))
def test_documents_can_be_parsed(payload: bytes) -> None:
    """A strict parser accepts every document."""

    def refuse(constant: str) -> object:
        raise ValueError(constant)

    if is_document(payload):
        assert isinstance(json.loads(payload, parse_constant=refuse), dict | list)


@pytest.mark.parametrize(
    ("payload", "published"),
    [
        (b'{"token":"x"}', b"{}"),
        (b'{"a":[1.10],"token":5,"b":"\xc3\xa9"}', b'{"a":[1.10],"b":"\xc3\xa9"}'),
        (b' { "to\\u006ben" : "x" }', b"{}"),
        (b'{"a": {"token":1}}', b'{"a": {"token":1}}'),
        (b"null", b"null"),
        (b"[1]", b"[1]"),
    ],
)
def test_a_join_is_published_without_its_token(payload: bytes, published: bytes) -> None:
    """The token is removed however it is written, and everything else stays as it is."""
    assert codec.without_token(payload) == published


def test_long_fields_cannot_be_encoded_in_binary() -> None:
    """A field of 256 bytes does not fit into its length byte, and is refused."""
    with pytest.raises(FrameError):
        codec.encode_binary_broadcast("é" * 128, "e")


replies = st.builds(
    SocketMessage, st.none() | st.text(), st.none() | st.text(), st.text(), st.just("e"), st.just(b"")
)


@pytest.mark.slow
@given(st.lists(st.none() | replies))
def test_acknowledgements_equal_single_replies(replies: list[SocketMessage | None]) -> None:
    """Each push with a ref is answered ok, in order, for any characters in its ref and topic."""
    texts = [msgspec.json.decode(text) for text in codec.encode_acknowledgements(replies)]
    wanted = [to for to in replies if to is not None and to.ref is not None]

    assert texts == [
        [to.join_ref, to.ref, to.topic, "phx_reply", {"status": "ok", "response": {}}] for to in wanted
    ]
