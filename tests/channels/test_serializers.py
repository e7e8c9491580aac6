"""Both serializers on one topic, and broadcasts with the receiver's ref."""

from __future__ import annotations

import msgspec
import pytest

from tangram.channels.frames import BINARY, TEXT, FrameError, ReplyTo, SocketMessage
from tangram.channels.hub import Hub, Membership
from tangram.channels.serializers import V1, V2, Serializer
from tangram.pieces import LARGE, Pieces
from tests.channels.fakes import drained, open_outbox


def join(hub: Hub, conn: str, serializer: Serializer, ref: str = "1") -> Membership:
    """Join ``obs``, and read the replies."""
    membership = Membership(conn, "obs", ref, conn, open_outbox(serializer=serializer))
    hub.join(membership, ref)
    drained(membership.outbox)
    return membership


def test_each_member_gets_the_frames_of_its_serializer() -> None:
    """V1 clients get objects, V2 clients arrays, in the same order."""
    hub = Hub(presence=False)
    one, two = join(hub, "a", V1), join(hub, "b", V2)
    hub.deliver([(b"to:obs:e", b"[1]"), (b'to:obs:"', b'{"a":2}')])

    assert drained(two.outbox) == [[None, None, "obs", "e", [1]], [None, None, "obs", '"', {"a": 2}]]
    assert drained(one.outbox) == [
        {"event": "e", "payload": [1], "ref": None, "topic": "obs"},
        {"event": '"', "payload": {"a": 2}, "ref": None, "topic": "obs"},
    ]


def test_a_message_is_encoded_once_for_each_serializer_that_a_member_speaks() -> None:
    """Members with the same serializer share the object, and no other serializer is asked."""
    hub = Hub(presence=False)
    members = [join(hub, f"c{number}", serializer) for number, serializer in enumerate([V1, V2, V1, V2])]
    hub.deliver([(b"to:obs:e", b"[1]")])
    (a,), (b,), (c,), (d,) = (list(member.outbox.take_all()) for member in members)
    assert a is c
    assert b is d
    assert a is not b

    alone = Hub(presence=False)
    join(alone, "x", V1)
    alone.deliver([(b"to:obs:e", b"[1]")])
    assert [form[0] for form in alone._destinations[b"to:obs:e"].headers] == [V1]


def test_v1_clients_get_text_as_strings_and_no_other_bytes() -> None:
    """V1 has no binary frames: a plain string is a JSON string, other bytes are left out."""
    hub = Hub(presence=False)
    member = join(hub, "a", V1)
    hub.deliver([(b"to:obs:e", b"hello"), (b"to:obs:e", b"\xff\x00"), (b"to:obs:e", b"42")])

    assert [frame["payload"] for frame in drained(member.outbox)] == ["hello", "42"]  # type: ignore[index]


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_v1_refuses_a_large_frame_by_its_size(opcode: int) -> None:
    """Its fields may be in any order, so that it could not be read without a look at all of it."""
    large = Pieces([b'{"topic":"obs","event":"x","ref":"1","payload":"', b"x" * LARGE, b'"}'])
    with pytest.raises(FrameError, match=f"a frame of {len(large)} bytes, expected at most {LARGE}"):
        V1.decode_large(opcode, large)


@pytest.mark.parametrize("serializer", [V1, V2])
def test_broadcasts_may_have_the_ref_of_their_receiver(serializer: Serializer) -> None:
    """With broadcast_join_ref each distinct ref is encoded once, presence and errors included."""
    hub = Hub(broadcast_join_ref=True)
    members = [join(hub, f"c{number}", serializer, ref) for number, ref in enumerate("778")]
    hub.send_states(1 << 30)
    hub.deliver([(b"to:obs:e", b"[1]")])
    hub.interrupted()
    taken = [list(member.outbox.take_all()) for member in members]
    assert taken[0][1] is taken[1][1]
    frames = [[msgspec.json.decode(item.data) for item in items] for items in taken]
    got = [
        [(one["join_ref"], one["event"]) if isinstance(one, dict) else (one[0], one[3]) for one in each]
        for each in frames
    ]

    expected = ["presence_state", "e", "phx_error"]
    assert got == [[(ref, event) for event in expected] for ref in "778"]


def test_a_binary_broadcast_with_a_ref_is_a_push() -> None:
    """Kind 0 has the receiver's ref, as the published server sends it."""
    hub = Hub(presence=False, broadcast_join_ref=True)
    member = join(hub, "a", V2, "12")
    hub.deliver([(b"to:obs:e", b"\x00\xff")])

    assert drained(member.outbox) == [b"\x00\x02\x03\x01" + b"12obse" + b"\x00\xff"]


def test_v1_frames_are_objects() -> None:
    """Refs may be left out, unknown fields are ignored, and the payload keeps its bytes."""
    data = b'{"topic":"t","event":"e","payload":{ "a":1.50},"ref":"2","more":1}'
    assert V1.decode(TEXT, data) == SocketMessage(None, "2", "t", "e", b'{ "a":1.50}')
    data = b'{"topic":"t","event":"e","payload":[],"ref":null,"join_ref":"1"}'
    assert V1.decode(TEXT, data.decode()) == SocketMessage("1", None, "t", "e", b"[]")


@pytest.mark.parametrize(
    ("data", "reply_to"),
    [
        (b"[]", None),
        (b"{}", None),
        (b'["1","2","t","e",{}]', None),
        (b'{"topic":"t","event":"e","ref":"2"}', ReplyTo(None, "2", "t")),
        (b'{"topic":"t","event":5,"payload":{},"ref":7}', ReplyTo(None, 7, "t")),
        (b'{"topic":"t","event":"e","payload":1e999,"ref":"2"}', ReplyTo(None, "2", "t")),
        (b'{"topic":"t","event":"e","payload":"%b","ref":"2"}' % (b"x" * 200_000), None),
    ],
)
def test_malformed_v1_frames(data: bytes, reply_to: ReplyTo | None) -> None:
    """They raise FrameError, with the fields for a reply where there are any."""
    with pytest.raises(FrameError) as caught:
        V1.decode(TEXT, data)
    assert caught.value.reply_to == reply_to


def test_v1_has_no_binary_frames() -> None:
    """A binary frame is malformed."""
    with pytest.raises(FrameError):
        V1.decode(BINARY, b"\x00\x01\x01\x03\x0312obsbin")


def test_replies_of_v1() -> None:
    """A reply is an object, and pushes are acknowledged in order."""
    texts = V1.encode_acknowledgements([ReplyTo("1", "2", "t"), None, ReplyTo(None, None, "t")])

    assert [msgspec.json.decode(text) for text in texts] == [
        {
            "event": "phx_reply",
            "payload": {"status": "ok", "response": {}},
            "ref": "2",
            "topic": "t",
            "join_ref": "1",
        }
    ]
