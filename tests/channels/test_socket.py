from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tangram.channels import codec
from tangram.channels.disconnects import ABUSE, LIMITED, UNAUTHORIZED, UNAVAILABLE, WRONG_CHANNEL, Disconnect
from tangram.channels.frames import TEXT, FrameError, ReplyTo, SocketMessage
from tangram.channels.hub import Hub
from tangram.channels.socket import (
    MALFORMED_BURST,
    MAX_DEFERRED,
    MAX_DEFERRED_BYTES,
    Authorize,
    Effect,
    Publish,
    Socket,
)
from tests.channels.fakes import drained, open_outbox


class Client:
    """A socket machine whose effects the test carries out."""

    def __init__(
        self, *, hub: Hub | None = None, conn: str = "c1", max_joins: int = 100, push_replies: bool = True
    ) -> None:
        self.hub = hub or Hub(presence=False)
        self.outbox = open_outbox()
        self.socket = Socket(conn, self.hub, self.outbox, max_joins=max_joins, push_replies=push_replies)

    def say(self, *frame: object) -> list[Effect]:
        return self.socket.receive(codec.decode_text(msgspec.json.encode(frame)))

    def join(self, topic: str = "obs", ref: str = "1", payload: object = None) -> list[Effect]:
        """Join, with a verdict at once."""
        effects = self.say(ref, ref, topic, "phx_join", {} if payload is None else payload)
        (request,) = effects
        assert isinstance(request, Authorize)
        return self.socket.authorized(request, "alice")

    def received(self) -> list[object]:
        return drained(self.outbox)


def from_channels(effects: list[Effect]) -> list[tuple[str, bytes]]:
    return [
        (one.channel, bytes(one.payload))
        for one in effects
        if isinstance(one, Publish) and one.channel.startswith("from:")
    ]


def reply(join_ref: str | None, ref: str | None, topic: str, status: str, response: object) -> list[object]:
    return [join_ref, ref, topic, "phx_reply", {"status": status, "response": response}]


def error(join_ref: str | None, ref: str | None, topic: str, reason: str) -> list[object]:
    return reply(join_ref, ref, topic, "error", {"reason": reason})


def test_a_join_is_replied_to_and_published() -> None:
    """The gate gets the join's own token, and the payload is published without it."""
    client = Client()
    (request,) = client.say("2", "2", "obs:a", "phx_join", {"token": "secret", "more": 1})
    assert request == Authorize("obs:a", "2", "2", "secret", b'{"token":"secret","more":1}')
    effects = client.socket.authorized(request, "alice")

    assert client.received() == [reply("2", "2", "obs:a", "ok", {"id": "c1:obs:a:2"})]
    assert [one.channel for one in effects if isinstance(one, Publish)] == [
        "to:admin:channel.add",
        "to:admin:channel.join",
        "from:obs:a:phx_join",
    ]
    assert effects[-1] == Publish("from:obs:a:phx_join", b'{"more":1}')


@pytest.mark.parametrize("payload", [{}, None, {"token": 5}, {"token": None}, "x", [1]])
def test_only_a_string_in_an_object_is_a_token(payload: object) -> None:
    """With any other payload the connection's own token counts."""
    (request,) = Client().say("1", "1", "obs", "phx_join", payload)

    assert isinstance(request, Authorize)
    assert request.token is None


def test_a_hopeless_refusal_is_followed_by_phx_close() -> None:
    """phoenix.js would retry with the same token for ever; after phx_close it does not."""
    client = Client()
    (request,) = client.say("2", "2", "obs", "phx_join", {})
    assert isinstance(request, Authorize)
    assert client.socket.authorized(request, WRONG_CHANNEL) == []

    assert client.received() == [error("2", "2", "obs", "wrong channel"), ["2", None, "obs", "phx_close", {}]]


@pytest.mark.parametrize("refusal", [LIMITED, UNAVAILABLE])
def test_a_temporary_refusal_is_not_followed_by_phx_close(refusal: object) -> None:
    """Where a retry helps, phoenix.js is left to its own retries."""
    client = Client()
    (request,) = client.say("2", "2", "obs", "phx_join", {})
    assert isinstance(request, Authorize)
    client.socket.authorized(request, refusal)  # type: ignore[arg-type]

    assert len(client.received()) == 1


def test_a_leave_is_replied_to_and_published() -> None:
    """The reply has the agent id, then the leave is published; no phx_close follows."""
    client = Client()
    client.join()
    client.received()
    effects = client.say("1", "4", "obs", "phx_leave", {})

    assert client.received() == [reply("1", "4", "obs", "ok", {"id": "c1:obs:1"})]
    assert from_channels(effects) == [("from:obs:phx_leave", b"{}")]
    assert client.socket.topics == []


@pytest.mark.parametrize("join_ref", ["9", None, "1"])
def test_any_leave_is_answered_ok(join_ref: str | None) -> None:
    """phoenix.js sends a leave after every join timeout; it is ok and has no effect."""
    client = Client()

    assert client.say(join_ref, "4", "nowhere", "phx_leave", {}) == []
    assert client.received() == [reply(join_ref, "4", "nowhere", "ok", {})]


def test_a_stale_leave_does_not_end_the_new_membership() -> None:
    """A leave with the old join_ref is answered and ignored; one with null is not checked."""
    client = Client()
    client.join(ref="5")
    client.received()

    assert client.say("1", "6", "obs", "phx_leave", {}) == []
    assert client.received() == [reply("1", "6", "obs", "ok", {})]
    assert client.socket.topics == ["obs"]
    client.say(None, "7", "obs", "phx_leave", {})
    assert client.socket.topics == []


def test_a_join_without_join_ref_uses_its_ref() -> None:
    """With a null join_ref the ref takes its place; without either no reply is possible."""
    client = Client()
    (request,) = client.say(None, "3", "obs", "phx_join", {})
    assert isinstance(request, Authorize)
    client.socket.authorized(request, "alice")

    assert client.received() == [reply("3", "3", "obs", "ok", {"id": "c1:obs:3"})]
    assert client.say(None, None, "other", "phx_join", {}) == []
    assert client.socket.statistics().malformed == 1


def test_heartbeats() -> None:
    """They are answered at once with a null join_ref, and published twice."""
    client = Client()
    effects = client.say("7", "1", "phoenix", "heartbeat", {})

    assert client.received() == [reply(None, "1", "phoenix", "ok", {})]
    assert from_channels(effects) == [
        ("from:phoenix:heartbeat", b'{"conn_id": "c1"}'),
        ("from:phoenix:heartbeat", b"{}"),
    ]


def test_a_push_is_answered_once_redis_has_it() -> None:
    """The payload is published unchanged; the reply waits for the outcome."""
    client = Client()
    client.join()
    client.received()
    push = codec.decode_text(b'["1","9","obs","hello",{"message":"hi", "user":1.10}]')
    effects = client.socket.receive(push)
    assert effects == [Publish("from:obs:hello", push.payload, ReplyTo("1", "9", "obs"), push)]
    assert push.payload == b'{"message":"hi", "user":1.10}'
    assert client.received() == []

    client.socket.published([ReplyTo("1", "9", "obs"), None, ReplyTo("1", None, "obs")])
    client.socket.unpublished(ReplyTo("1", "10", "obs"))
    client.socket.unpublished(ReplyTo("1", None, "obs"))
    assert client.received() == [reply("1", "9", "obs", "ok", {}), error("1", "10", "obs", "unavailable")]


def test_push_decides_as_the_table_does() -> None:
    """A push with a Redis channel at once is one that the table would publish there."""
    client = Client()
    client.join("obs")
    client.join("gone", ref="2")
    client.say("3", "3", "asked", "phx_join", {})
    client.hub.close_topic("gone")
    topics = ("obs", "gone", "asked", "never", "phoenix")
    events = ("hello", "a:b", "phx_join", "phx_leave", "heartbeat", "é" * 64, "é" * 63)
    short = []
    for topic in topics:
        for event in events:
            for join_ref in ("1", "2", None):
                message = SocketMessage(join_ref, "9", topic, event, b"{}")
                channel = client.socket.push(message)
                if channel is not None:
                    short.append((topic, event))
                    expected = [Publish(channel, b"{}", ReplyTo(join_ref, "9", topic), message)]
                    assert client.socket.receive(message) == expected

    assert short == [("obs", "hello"), ("obs", "é" * 63)]
    assert client.socket.push(SocketMessage("1", "9", "obs", "raw", b"\0", binary=True)) == "from:obs:raw"


@pytest.mark.parametrize("payload", ["s", 5, None, True, [1, 2]])
def test_scalars_are_payloads(payload: object) -> None:
    """Any JSON is a payload."""
    client = Client()
    client.join()

    assert from_channels(client.say("1", "2", "obs", "f", payload)) == [
        ("from:obs:f", msgspec.json.encode(payload))
    ]


def test_pushes_without_a_ref_or_with_replies_off_are_not_answered() -> None:
    """Such pushes are published without a reply."""
    client = Client()
    client.join()
    (effect,) = client.say("1", None, "obs", "hello", {})
    assert isinstance(effect, Publish)
    assert effect.reply is None

    quiet = Client(push_replies=False)
    quiet.join()
    (effect,) = quiet.say("1", "2", "obs", "hello", {})
    assert isinstance(effect, Publish)
    assert effect.reply is None


@pytest.mark.parametrize(
    ("join_ref", "topic"), [("1", "other"), ("2", "obs"), (None, "obs"), (None, "phoenix")]
)
def test_pushes_need_the_membership(join_ref: str | None, topic: str) -> None:
    """A push before the join, or of another membership, is refused and not published."""
    client = Client()
    client.join()
    client.received()

    assert client.say(join_ref, "3", topic, "hello", {}) == []
    assert client.received() == [error(join_ref, "3", topic, "unmatched topic")]


def test_a_duplicate_join_ends_the_old_membership() -> None:
    """The old join_ref gets phx_close, then the new join is checked; events come once."""
    client = Client()
    client.join(ref="1")
    client.received()
    effects = client.say("5", "5", "obs", "phx_join", {})
    assert client.received() == [["1", None, "obs", "phx_close", {}]]
    assert isinstance(effects[-1], Authorize)
    client.socket.authorized(effects[-1], "alice")
    client.received()
    client.hub.deliver([(b"to:obs:e", b"[1]")])

    assert client.received() == [[None, None, "obs", "e", [1]]]
    assert isinstance(effects[0], Publish)
    assert effects[0].channel == "to:admin:channel.leave"


def test_the_same_join_twice_is_one_membership() -> None:
    """It is answered ok again, and has no other effect."""
    client = Client()
    client.join(ref="1")
    client.received()

    assert client.say("1", "1", "obs", "phx_join", {}) == []
    assert client.received() == [reply("1", "1", "obs", "ok", {"id": "c1:obs:1"})]
    assert client.hub.statistics().members == 1


def test_joins_above_the_bound_are_refused() -> None:
    """The bound counts joined topics and pending joins; a leave frees a place."""
    client = Client(max_joins=2)
    client.join("a")
    client.say("2", "2", "b", "phx_join", {})
    client.received()

    assert client.say("3", "3", "c", "phx_join", {}) == []
    assert client.received() == [error("3", "3", "c", "too many channels")]
    client.say("1", "4", "a", "phx_leave", {})
    assert isinstance(client.say("5", "5", "c", "phx_join", {})[0], Authorize)


def test_long_names_are_refused() -> None:
    """Topics and events of more than 255 bytes do not fit into binary frames."""
    client = Client()
    client.join("é" * 127)
    client.received()

    assert client.say("2", "2", "é" * 128, "phx_join", {}) == []
    assert client.received()[0] == error("2", "2", "é" * 128, "topic too long")
    assert client.say("1", "3", "é" * 127, "e" * 256, {}) == []
    assert client.received() == [error("1", "3", "é" * 127, "event too long")]


def test_joins_while_redis_is_away() -> None:
    """They are refused as unavailable, before or after the gate, so that the client retries."""
    client = Client()
    (request,) = client.say("1", "1", "obs", "phx_join", {})
    assert isinstance(request, Authorize)
    client.hub.available = False
    client.socket.authorized(request, "alice")
    client.say("2", "2", "other", "phx_join", {})

    assert client.received() == [
        error("1", "1", "obs", "unavailable"),
        error("2", "2", "other", "unavailable"),
    ]
    assert client.hub.statistics().members == 0


def test_frames_wait_behind_a_join_in_order() -> None:
    """A leave and a join during a pending join are handled after it, in order."""
    client = Client()
    (first,) = client.say("1", "1", "obs", "phx_join", {})
    assert client.say("1", "2", "obs", "hello", {}) == []
    assert client.say("1", "3", "obs", "phx_leave", {}) == []
    assert client.say("4", "4", "obs", "phx_join", {}) == []
    assert from_channels(client.say(None, "5", "phoenix", "heartbeat", {})) != []
    client.received()
    assert isinstance(first, Authorize)
    effects = client.socket.authorized(first, "alice")

    assert client.received() == [
        reply("1", "1", "obs", "ok", {"id": "c1:obs:1"}),
        reply("1", "3", "obs", "ok", {"id": "c1:obs:1"}),
    ]
    assert [name for name, _ in from_channels(effects)] == [
        "from:obs:phx_join",
        "from:obs:hello",
        "from:obs:phx_leave",
    ]
    assert isinstance(effects[-1], Authorize)
    assert effects[-1].join_ref == "4"


def test_frames_behind_a_join_are_bounded() -> None:
    """A client cannot pile up frames behind a slow verdict."""
    client = Client()
    client.say("1", "1", "obs", "phx_join", {})
    for _ in range(MAX_DEFERRED):
        client.say("1", "2", "obs", "hello", {})
    client.say("1", "3", "obs", "hello", {})

    assert client.received() == [error("1", "3", "obs", "busy")]


def test_frames_behind_a_join_are_bounded_in_bytes() -> None:
    """A client cannot pile up large frames either."""
    client = Client()
    client.say("1", "1", "obs", "phx_join", {})
    client.say("1", "2", "obs", "hello", "x" * (MAX_DEFERRED_BYTES // 2))
    client.say("1", "3", "obs", "hello", "x" * (MAX_DEFERRED_BYTES // 2))

    assert client.received() == [error("1", "3", "obs", "busy")]


@pytest.mark.parametrize(("join_ref", "ref"), [("1" * 256, "1"), ("1", "1" * 256), (None, "é" * 128)])
def test_a_join_with_a_long_ref_is_refused(join_ref: str | None, ref: str) -> None:
    """Refs are kept for the whole membership and published, so they have a bound."""
    client = Client()
    client.say(join_ref, ref, "obs", "phx_join", {})

    assert client.received() == [
        error(join_ref, ref, "obs", "ref too long"),
        [join_ref or ref, None, "obs", "phx_close", {}],
    ]


def test_binary_control_frames_have_no_effect() -> None:
    """A binary join, leave or heartbeat is refused and not published."""
    client = Client()
    client.join()
    client.received()
    for topic, event in (("obs", "phx_join"), ("obs", "phx_leave"), ("phoenix", "heartbeat")):
        message = codec.decode_binary(
            b"\x00\x01\x01" + bytes([len(topic), len(event)]) + b"12" + topic.encode() + event.encode()
        )
        assert client.socket.receive(message) == []
    assert client.socket.topics == ["obs"]

    assert [frame[4]["response"]["reason"] for frame in client.received() if isinstance(frame, list)] == [
        "reserved event"
    ] * 3


def test_binary_pushes_are_published_unchanged() -> None:
    """Raw bytes, also none, are published unchanged."""
    client = Client()
    client.join()
    push = codec.decode_binary(b"\x00\x01\x01\x03\x0312obsbin")
    (effect,) = client.socket.receive(push)

    assert effect == Publish("from:obs:bin", b"", ReplyTo("1", "2", "obs"), push)


def test_malformed_frames_are_forgiven_until_abuse() -> None:
    """A hundred at once are counted; more end the connection."""
    client = Client()
    for _ in range(int(MALFORMED_BURST)):
        assert client.socket.malformed(0.0) == []
    assert client.socket.malformed(1.0) == []

    assert client.socket.malformed(1.0) == [ABUSE]


def test_the_end_of_a_connection_leaves_everything() -> None:
    """Every topic gets channel.leave, and a later verdict has no effect."""
    client = Client()
    client.join("a", "1")
    client.join("b", "2")
    (request,) = client.say("3", "3", "c", "phx_join", {})
    effects = client.socket.gone()
    client.outbox.close(Disconnect(1001, "gone", None, retry=True))  # type: ignore[arg-type]

    assert [one.channel for one in effects if isinstance(one, Publish)].count("to:admin:channel.leave") == 2
    assert isinstance(request, Authorize)
    assert client.socket.authorized(request, "alice") == []
    assert client.hub.statistics().members == 0


def test_a_membership_that_the_hub_ended_can_be_joined_again() -> None:
    """Pushes are unmatched after the close, and the rejoin is an ordinary join."""
    client = Client()
    client.join()
    client.hub.close_topic("obs")
    client.received()
    client.say("1", "2", "obs", "hello", {})
    assert client.received() == [error("1", "2", "obs", "unmatched topic")]

    client.join(ref="3")
    assert client.received() == [reply("3", "3", "obs", "ok", {"id": "c1:obs:3"})]


NAMES = st.sampled_from(["obs", "phoenix", "admin", "", "*", "é" * 128])
EVENTS = st.sampled_from(["phx_join", "phx_leave", "heartbeat", "hello", "", "phx_reply", "e" * 256])
REFS = st.sampled_from([None, "1", "2"])


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            REFS,
            REFS,
            NAMES,
            EVENTS,
            st.sampled_from([{}, None, {"token": "t"}, [1]]),
            st.sampled_from(["yes", "no", "later"]),
        )
    )
)
def test_no_frames_ever_end_a_connection(frames: list[tuple[object, ...]]) -> None:
    """Any frames in any order: each ref is answered at most once, and nothing raises."""
    client = Client(max_joins=3)
    waiting: list[Authorize] = []
    for *frame, verdict in frames:
        effects = client.say(*frame)
        waiting += [effect for effect in effects if isinstance(effect, Authorize)]
        if verdict != "later" and waiting:
            effects += client.socket.authorized(waiting.pop(0), "alice" if verdict == "yes" else UNAUTHORIZED)
            waiting += [one for one in effects if isinstance(one, Authorize) and one not in waiting]
            waiting = [one for one in waiting if one.topic in client.socket._joining]

        assert client.outbox.disconnect is None
        assert not any(isinstance(effect, Disconnect) for effect in effects)
        assert len(client.socket.topics) <= 3
        client.received()
    client.socket.gone()
    assert client.hub.statistics().members == 0


@given(st.binary(max_size=60))
def test_no_bytes_end_a_connection(data: bytes) -> None:
    """Bytes that are not a message are counted."""
    client = Client()
    try:
        message = codec.decode(TEXT, data)
    except FrameError:
        assert client.socket.malformed(0.0) == []
    else:
        client.socket.receive(message)
