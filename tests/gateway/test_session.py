"""Large and malformed frames of one connection."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tangram.channels import disconnects
from tangram.channels.codec import MAX_AT_ONCE
from tangram.channels.frames import BINARY, TEXT, SocketMessage
from tangram.pieces import Pieces
from tests.channels.fakes import FakeBus, Settings
from tests.gateway.test_channels import Client
from tests.http.serving import make_channels

LARGE = "x" * (3 * MAX_AT_ONCE)


def joined(bus: FakeBus | None = None, settings: Settings | None = None) -> Client:
    """Return a client that has joined ``obs``, with its replies read."""
    client = Client(make_channels(bus or FakeBus(), settings))
    client.join("obs")
    client.received()
    return client


async def send(client: Client, *frames: bytes) -> list[Any]:
    """Send text frames as one read, and return the received frames."""
    client.session.feed([(TEXT, frame) for frame in frames])
    if client.session.unfinished:
        await client.session.finish()
    return client.received()


def error(join_ref: str | None, ref: object, topic: str, reason: str) -> list[Any]:
    return [join_ref, ref, topic, "phx_reply", {"status": "error", "response": {"reason": reason}}]


async def test_a_large_push_is_published_in_its_order() -> None:
    """The payload keeps its bytes, and the frames after it wait for it."""
    bus = FakeBus()
    client = joined(bus)
    payload = b'{ "data" : "%b" }' % LARGE.encode()
    replies = await send(
        client,
        b'["1","2","obs","first",{}]',
        b'["1","3","obs","large",%b] ' % payload,
        b'["1","4","obs","last",{}]',
    )

    assert [(reply[1], reply[4]["status"]) for reply in replies] == [("2", "ok"), ("3", "ok"), ("4", "ok")]
    assert bus.names("from:obs:")[1:] == ["from:obs:first", "from:obs:large", "from:obs:last"]
    assert bus.payloads("from:obs:large") == [payload]


@pytest.mark.parametrize("form", [bytes, bytes.decode, lambda data: Pieces([data[:5], data[5:]])])
async def test_a_large_push_may_come_in_any_form(form: Any) -> None:
    """Bytes, text and pieces of the same frame are published as the same bytes."""
    bus = FakeBus()
    client = joined(bus)
    payload = '{"data":"é%s"}' % LARGE  # noqa: UP031 - braces
    client.session.feed([(TEXT, form(f'["1","2","obs","x",{payload}]'.encode()))])
    await client.session.finish()

    assert bus.payloads("from:obs:x") == [payload.encode()]
    assert client.received()[0][4]["status"] == "ok"


async def test_a_large_binary_push_is_published_without_a_copy() -> None:
    """Its header is read from its first bytes, and its payload is cut out of the pieces."""
    bus = FakeBus()
    client = joined(bus)
    data = b"\x00\x01\x01\x03\x01" + b"12obsx" + b"\xff" * (2 * MAX_AT_ONCE)
    client.session.feed([(BINARY, Pieces([data[:MAX_AT_ONCE], data[MAX_AT_ONCE:]]))])
    assert client.session.unfinished
    await client.session.finish()

    assert bus.payloads("from:obs:x") == [b"\xff" * (2 * MAX_AT_ONCE)]
    assert client.received()[0][4]["status"] == "ok"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00\x01\x01\x05\x01" + b"12otherx", "unmatched topic"),
        (b"\x00\x01\x01\x03\x09" + b"12obsphx_leave", "frame too large"),
        (b"\x00\x01\x01\x03\x03" + b"12obsa:b", "colon in event"),
    ],
)
async def test_a_large_binary_push_is_refused_by_its_header(data: bytes, reason: str) -> None:
    """It gets an error reply, and is not published."""
    bus = FakeBus()
    client = joined(bus)
    before = len(bus.published)
    client.session.feed([(BINARY, Pieces([data + b"x" * MAX_AT_ONCE]))])
    await client.session.finish()

    assert client.received()[0][4]["response"] == {"reason": reason}
    assert len(bus.published) == before


async def test_blanks_around_a_large_payload_are_bounded() -> None:
    """Megabytes of blanks are refused by a look at both ends of the frame, and a few are not."""
    bus = FakeBus()
    client = joined(bus)
    few, many = b" \n" * 1000, b" " * 3 * MAX_AT_ONCE
    frame = b'["1","2","obs","x",%b"' + LARGE.encode() + b'"%b]%b'
    replies = await send(client, frame % (few, few[:1000], few[:1000]))
    malformed = [frame % (b"", b"", many), frame % (b"", many, b""), frame % (many, b"", b""), many]
    refused = await send(client, *malformed)

    assert [reply[4]["status"] for reply in replies] == ["ok"]
    assert [reply[4]["response"] for reply in refused] == 3 * [{"reason": "malformed frame"}]
    assert len(bus.payloads("from:obs:x")) == 1


class Declared:
    """Handlers of all pushes, which keep their messages."""

    def __init__(self) -> None:
        self.taken: list[SocketMessage] = []

    def find(self, topic: str, event: str) -> str:
        return topic + event

    def accept(self, _session: object, _found: str, message: SocketMessage) -> None:
        self.taken.append(message)


async def test_the_handler_of_a_large_push_gets_it_in_one_piece() -> None:
    """The handler's parser needs bytes, and Redis gets the pieces."""
    bus, declared = FakeBus(), Declared()
    channels = make_channels(bus, declared=declared)
    client = Client(channels)
    client.join("obs")
    text = b'["1","2","obs","x","%b"]' % LARGE.encode()
    client.session.feed([(TEXT, Pieces([text[:MAX_AT_ONCE], text[MAX_AT_ONCE:]]))])
    await client.session.finish()

    assert [message.payload for message in declared.taken] == [b'"%b"' % LARGE.encode()]
    assert bus.payloads("from:obs:x") == [b'"%b"' % LARGE.encode()]


async def test_a_push_to_channels_that_have_ended_is_not_published() -> None:
    """The next incarnation publishes nothing that a client says before it learns of the crash."""
    bus = FakeBus()
    channels = make_channels(bus)
    client = Client(channels)
    client.join("obs")
    before = len(bus.published)
    await send(client, b'["1","2","obs","first",{}]')
    channels.ended = True
    await send(client, b'["1","3","obs","second",{}]')

    assert client.session.outbox.disconnect is None
    assert [name for name, _ in bus.published[before:]] == ["from:obs:first"]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b'["1","2","other","x",[%b]]', "unmatched topic"),
        (b'["9","2","obs","x",[%b]]', "unmatched topic"),
        (b'["1","2","obs","a:b",[%b]]', "colon in event"),
        (b'["1","2","obs","phx_leave",[%b]]', "frame too large"),
        (b'["1","2","phoenix","heartbeat",[%b]]', "frame too large"),
        (b'["1","2","obs","x",[%b]}', "malformed frame"),
        (b'["1","2","obs","x",[%b],{}]', "malformed frame"),
        (b'["1","2","obs","x",[1e999,%b]]', "malformed frame"),
        (b'["1","2","obs","x",["\xff",%b]]', "malformed frame"),
        (b'["1","2","obs","x",%b]', "malformed frame"),
    ],
)
async def test_a_large_frame_is_refused_with_a_reason(frame: bytes, reason: str) -> None:
    """It gets an error reply, is not published, and the connection goes on."""
    bus = FakeBus()
    client = joined(bus)
    before = len(bus.published)
    replies = await send(client, frame % (b"[]," * (MAX_AT_ONCE // 2) + b"0"), b'["1","3","obs","ok",{}]')

    first, last = replies
    assert (first[1], first[3], first[4]["response"]) == ("2", "phx_reply", {"reason": reason})
    assert last[4]["status"] == "ok"
    assert [name for name, _ in bus.published[before:]] == ["from:obs:ok"]


async def test_a_large_frame_to_a_topic_that_is_being_joined_is_refused() -> None:
    """It does not wait behind the join, where it would fill memory."""
    client = joined()
    client.session.socket._joining["new"] = []
    (reply,) = await send(client, b'["9","2","new","x","%b"]' % LARGE.encode())

    assert reply == error("9", "2", "new", "busy")


async def test_before_the_first_join_large_frames_close_the_connection() -> None:
    """Above max_unjoined no frame is taken; after a join the bound is max_message."""
    for opcode in (TEXT, BINARY):
        client = Client(make_channels(FakeBus(), Settings(max_unjoined=2000)))
        client.session.feed([(opcode, b"x" * 2001)])
        assert client.session.outbox.disconnect == disconnects.TOO_BIG

    client = joined(settings=Settings(max_unjoined=2000))
    (reply,) = await send(client, b'["1","2","obs","x","%b"]' % (b"x" * 3000))
    assert reply[4]["status"] == "ok"
    assert client.session.max_message == Settings().max_message
    client.say(["1", "3", "obs", "phx_leave", {}])
    assert client.session.max_message == 2000


async def test_other_tasks_run_while_a_large_frame_is_checked(nursery: trio.Nursery) -> None:
    """The check of 4 MiB yields to other tasks at each slice."""
    client = joined()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    nursery.start_soon(count)
    (reply,) = await send(client, b'["1","2","obs","x",[%b0]]' % (b"[]," * 1_400_000))

    assert reply[4]["status"] == "ok"
    assert turns >= 60
    nursery.cancel_scope.cancel()


async def test_a_connection_that_ends_during_the_check_publishes_nothing(nursery: trio.Nursery) -> None:
    """The message is dropped if the connection is closed meanwhile."""
    bus = FakeBus()
    client = joined(bus)
    before = len(bus.published)
    client.session.feed([(TEXT, b'["1","2","obs","x",[%b0]]' % (b"[]," * 300_000))])
    nursery.start_soon(client.session.finish)
    await trio.lowlevel.checkpoint()
    client.session.outbox.close(disconnects.IDLE)
    await trio.testing.wait_all_tasks_blocked()

    assert bus.published[before:] == []


@pytest.mark.parametrize(
    ("frame", "join_ref", "ref", "topic"),
    [
        (b'["1","2","obs","x"]', "1", "2", "obs"),
        (b'["1","2","obs"]', "1", "2", "obs"),
        (b'[1,"2","obs","x",{}]', None, "2", "obs"),
        (b'["1",2,"obs","x",{}]', "1", 2, "obs"),
        (b'[null,"2","obs","x",{"a":NaN}]', None, "2", "obs"),
        (b'["1","2","obs","x",{"a":1]', "1", "2", "obs"),
        (b'["1","2","obs","x",[1e400]]', "1", "2", "obs"),
        (b'["1","2","obs","x",' + b"[" * 200 + b"]" * 200 + b"]", "1", "2", "obs"),
        (b'["1","2","o\\u0062s","x"', "1", "2", "obs"),
    ],
)
async def test_a_malformed_frame_with_a_ref_gets_an_error_reply(
    frame: bytes, join_ref: str | None, ref: object, topic: str
) -> None:
    """The client does not wait for its timeout."""
    assert await send(joined(), frame) == [error(join_ref, ref, topic, "malformed frame")]


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"garbage",
        b'["1",null,"obs","x"]',
        b'["1","2",5,"x",{}]',
        b'["1","2"]',
        b"[[[[",
        b'["1',
        b'{"ref":"2"}',
    ],
)
async def test_a_malformed_frame_without_a_ref_gets_no_reply(frame: bytes) -> None:
    """No client waits for a reply."""
    assert await send(joined(), frame) == []


@pytest.mark.parametrize("data", [b"\x00\x01\x01\x03\x0912obsev", b"\x00\x01\x01\x03\x0112obs"])
async def test_a_truncated_binary_push_gets_an_error_reply(data: bytes) -> None:
    """Its ref and topic are whole, and the event is not."""
    client = joined()
    client.session.feed([(BINARY, data)])

    assert client.received() == [error("1", "2", "obs", "malformed frame")]


class Congestion:
    """A bus that asks for fewer messages until it is relieved."""

    def __init__(self) -> None:
        self.congested = False
        self._relieved = trio.Event()

    async def wait_uncongested(self) -> None:
        await self._relieved.wait()

    def relieve(self) -> None:
        self.congested = False
        self._relieved.set()


async def test_steps_wait_while_the_bus_is_congested(nursery: trio.Nursery) -> None:
    """The pushes of one read that wait for their turn are not refused by a bus that became full meanwhile."""
    bus, congestion = FakeBus(), Congestion()
    channels = make_channels(bus, backpressure=lambda: congestion)
    client = Client(channels)
    client.join("obs")
    client.session.feed([(TEXT, f'["1","{n}","obs","wave",{n}]'.encode()) for n in range(1000)])
    congestion.congested = True
    first = len(bus.payloads("from:obs:wave"))
    nursery.start_soon(client.session.finish)
    await trio.testing.wait_all_tasks_blocked()
    assert len(bus.payloads("from:obs:wave")) == first < 1000

    congestion.relieve()
    await trio.testing.wait_all_tasks_blocked()
    assert len(bus.payloads("from:obs:wave")) == 1000


async def test_many_frames_of_one_read_are_handled_in_steps() -> None:
    """Frames beyond the cost of one step wait for the next turn, and keep their order."""
    bus = FakeBus()
    client = joined(bus)
    pushes = [(TEXT, f'["1","{n}","obs","wave",{n}]'.encode()) for n in range(1000)]
    joins = [(TEXT, f'["9","{n}","town","phx_join",{{}}]'.encode()) for n in range(100)]

    client.session.feed(pushes)
    first = len(bus.payloads("from:obs:wave"))
    steps = 0
    while client.session.unfinished:
        await client.session.prepare()
        client.session.resume()
        steps += 1
    client.session.feed(joins)

    assert 100 < first < 500
    assert bus.payloads("from:obs:wave") == [str(n).encode() for n in range(1000)]
    assert steps == -(-1000 // first) - 1
    assert client.session.unfinished, "a join costs more than a push"
