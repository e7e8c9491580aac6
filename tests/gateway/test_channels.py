from __future__ import annotations

import string
from base64 import b64encode, urlsafe_b64encode
from collections import Counter
from typing import Any

import msgspec
import pytest
import structlog
import trio
import trio.testing

from tangram.bus.publisher import Publisher
from tangram.channels import disconnects
from tangram.channels.disconnects import Refusal
from tangram.channels.frames import TEXT
from tangram.channels.policy import Authorizer, ConnectInfo
from tangram.channels.serializers import V1
from tangram.channels.tokens import Claims, mint
from tangram.gateway.admission import Admission, connect_info
from tangram.gateway.channels import Channels, _random_id
from tangram.gateway.session import Session
from tangram.redis_url import parse_redis_url
from tests.bus.fakes import FakeRedis
from tests.channels.fakes import FakeBus, Settings, counting_ids, drained
from tests.http.serving import SECRET, make_channels

INFO = ConnectInfo("127.0.0.1")


def token(channel: str, id_: str = "alice") -> str:
    return mint(Claims(id_, channel, 4_000_000_000), SECRET)


class Client:
    """A session whose transport is the test."""

    def __init__(self, channels: Channels, user_token: str | None = None) -> None:
        self.rings = 0
        self.session: Session = channels.connect(INFO, Admission(user_token, None), self.ring)

    def ring(self) -> None:
        self.rings += 1

    def say(self, *frames: object) -> None:
        self.session.feed([(TEXT, msgspec.json.encode(frame)) for frame in frames])

    def join(self, topic: str, ref: str = "1", id_: str = "alice") -> None:
        self.say([ref, ref, topic, "phx_join", {"token": token(topic, id_)}])

    def received(self) -> list[Any]:
        return drained(self.session.outbox)

    def events(self) -> list[str]:
        return [frame[3] for frame in self.received()]


async def test_a_gap_is_announced_before_the_first_message_after_it() -> None:
    """A message may come before the bus is up, while subscriptions of plugins are not confirmed yet."""
    channels = make_channels(FakeBus())
    client = Client(channels)
    client.join("obs")
    client.received()
    channels.on_up(False)
    channels.deliver([(b"to:obs:n", b"{}")])
    channels.on_up(True)

    assert client.events() == ["phx_error", "n"]


async def test_a_push_is_answered_when_the_bus_says_so() -> None:
    """ok once Redis has taken it, else unavailable, in the order of the pushes."""
    bus = FakeBus(hold=True)
    client = Client(make_channels(bus))
    client.join("obs")
    client.received()
    client.say(["1", "2", "obs", "hello", {}], ["1", "3", "obs", "hello", {}], ["1", "4", "obs", "hello", {}])
    client.say(["1", "5", "obs", "hello", {}])
    assert client.received() == []

    bus.held[0]({1: OSError()})
    assert [(frame[1], frame[4]["status"]) for frame in client.received()] == [
        ("2", "ok"),
        ("3", "error"),
        ("4", "ok"),
    ]
    client.session.gone()
    bus.held[1]({})
    assert client.received() == []


async def test_a_push_while_redis_is_away_is_refused() -> None:
    """The client gets unavailable at once, and the connection stays open."""
    bus = FakeBus()
    client = Client(make_channels(bus))
    client.join("obs")
    client.received()
    bus.up = False
    client.say(["1", "2", "obs", "hello", {}])

    assert client.received() == [
        ["1", "2", "obs", "phx_reply", {"status": "error", "response": {"reason": "unavailable"}}]
    ]


async def test_joins_while_redis_is_away_and_after(autojump_clock: trio.testing.MockClock) -> None:
    """While it is away joins are refused; afterwards members get phx_error and join again."""
    bus = FakeBus()
    channels = make_channels(bus)
    client = Client(channels)
    client.join("obs")
    channels.on_up(False)
    client.received()
    client.join("other", "2")
    assert client.received()[0][4]["response"] == {"reason": "unavailable"}

    channels.on_up(True)
    assert client.received() == [[None, None, "obs", "phx_error", {}]]
    channels.on_up(True)
    client.join("obs", "3")
    closed, reply = client.received()
    assert closed == ["1", None, "obs", "phx_close", {}]
    assert reply[4]["status"] == "ok"


async def test_starting_without_redis() -> None:
    """With up=False joins are refused until the first on_up."""
    bus = FakeBus()
    channels = make_channels(bus, up=False)
    client = Client(channels)
    client.join("obs")
    assert client.received()[0][4]["status"] == "error"

    channels.on_up(True)
    client.join("obs", "2")
    assert client.received()[0][4]["status"] == "ok"


async def test_presence_is_gathered_over_50_ms(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """A hundred joins in one window are one difference, and one state for newcomers."""
    bus = FakeBus()
    channels = make_channels(bus)
    await nursery.start(channels.run)
    clients = [Client(channels) for _ in range(100)]
    for number, client in enumerate(clients):
        client.join("obs", id_=f"id{number}")
        if number == 50:
            await trio.sleep(0.04)  # the window goes on
    assert bus.payloads("to:obs:presence_diff") == []
    await trio.sleep(0.06)

    (diff,) = bus.payloads("to:obs:presence_diff")
    assert len(msgspec.json.decode(diff)["joins"]) == 100
    assert clients[0].events() == ["phx_reply", "presence_state", "presence_diff"]
    clients[0].session.gone()
    await trio.sleep(0.06)
    assert len(bus.payloads("to:obs:presence_diff")) == 2
    nursery.cancel_scope.cancel()


async def test_presence_follows_a_command_without_a_frame_of_a_client(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """A topic that a plugin closes has its difference after the window, not at the next sweep."""
    bus = FakeBus()
    channels = Channels(Settings(), SECRET, bus.publish_all, new_id=counting_ids())
    await nursery.start(channels.run)
    client = Client(channels)
    client.join("obs")
    await trio.sleep(0.1)
    assert len(bus.payloads("to:obs:presence_diff")) == 1
    channels.deliver([(b"to:phoenix:close", b'{"topic":"obs"}')])
    await trio.sleep(0.1)

    (_, left) = bus.payloads("to:obs:presence_diff")
    assert msgspec.json.decode(left)["leaves"].keys() == {"alice"}


async def test_a_full_bus_loses_no_presence(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """A join while a large push fills the bus is published when there is room."""
    async with trio.open_nursery() as redis:
        fake = FakeRedis(redis)
        publisher = Publisher(parse_redis_url("redis://fake"), dial=fake.dial, max_buffer=4000)
        redis.start_soon(publisher.run)
        await trio.testing.wait_all_tasks_blocked()
        channels = Channels(Settings(), SECRET, publisher.publish_all_nowait, backpressure=lambda: publisher)
        await nursery.start(channels.run)
        first, second = Client(channels), Client(channels)
        first.join("obs")
        await trio.sleep(0.1)
        fake.deaf = True
        second.join("obs", id_="bob")  # in a read that had begun
        await trio.sleep(0.01)
        first.say(["1", "2", "obs", "large", {"x": "x" * 9000}])
        await trio.sleep(1)
        assert publisher.failed == 0
        fake.deaf = False
        await trio.sleep(0.2)

        diffs = [payload for name, payload in fake.published if name == b"to:obs:presence_diff"]
        assert [list(msgspec.json.decode(diff)["joins"]) for diff in diffs] == [["alice"], ["bob"]]
        redis.cancel_scope.cancel()
    nursery.cancel_scope.cancel()


async def test_presence_that_was_not_published_is_published_later(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """A difference that the bus refuses is part of the next one, within about a second."""
    bus = FakeBus()
    channels = make_channels(bus)
    await nursery.start(channels.run)
    gone, stays = Client(channels), Client(channels)
    gone.join("obs")
    stays.join("obs", id_="bob")
    await trio.sleep(0.1)
    bus.up = False
    gone.session.gone()
    await trio.sleep(5)
    bus.up = True
    await trio.sleep(1.1)

    diffs = [msgspec.json.decode(diff) for diff in bus.payloads("to:obs:presence_diff")]
    assert [list(diff["leaves"]) for diff in diffs] == [[], ["alice"]]
    nursery.cancel_scope.cancel()


async def test_the_end_of_a_connection_is_published_once() -> None:
    """A vanished browser causes one channel.leave and one channel.remove."""
    bus = FakeBus()
    channels = make_channels(bus)
    client = Client(channels)
    client.join("obs")
    client.session.gone()
    client.session.gone()

    assert bus.names("to:admin:channel.leave") == ["to:admin:channel.leave"]
    assert bus.names("to:admin:channel.remove") == ["to:admin:channel.remove"]
    assert channels.statistics().connections == 0
    assert channels.statistics().closed == {"gone": 1}


async def test_an_idle_client_is_closed(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Silence for the idle time closes; a heartbeat or a pong keeps the connection."""
    channels = make_channels(FakeBus(), Settings(idle_timeout=90))
    await nursery.start(channels.run)
    quiet, beating, ponging = Client(channels), Client(channels), Client(channels)
    for _ in range(3):
        await trio.sleep(40)
        beating.say([None, "1", "phoenix", "heartbeat", {}])
        ponging.session.alive()

    assert quiet.session.outbox.disconnect == disconnects.IDLE
    assert beating.session.outbox.disconnect is None
    assert ponging.session.outbox.disconnect is None
    nursery.cancel_scope.cancel()


async def test_a_stop_closes_connections_in_batches_and_waits(autojump_clock: trio.testing.MockClock) -> None:
    """Each connection gets the close reason; open ones are given up at the limit."""
    bus = FakeBus()
    channels = make_channels(bus)
    clients = [Client(channels) for _ in range(250)]
    clients[0].join("obs")
    async with trio.open_nursery() as nursery:
        await nursery.start(channels.run)
        channels.close_reason = disconnects.SHUTDOWN
        nursery.cancel_scope.cancel()

    assert {client.session.outbox.disconnect for client in clients} == {disconnects.SHUTDOWN}
    assert trio.current_time() >= 3.0
    assert channels.statistics().connections == 0
    assert bus.names("to:admin:channel.leave") == ["to:admin:channel.leave"]
    assert channels.admit(INFO, b"") == disconnects.BUSY


async def test_a_stop_does_not_wait_longer_than_it_must(autojump_clock: trio.testing.MockClock) -> None:
    """The drain ends with the last connection."""
    channels = make_channels(FakeBus())
    clients = [Client(channels) for _ in range(3)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channels.drain, disconnects.RESTART)
        await trio.sleep(0.1)
        assert clients[0].session.outbox.disconnect == disconnects.RESTART
        for client in clients:
            client.session.gone()

    assert trio.current_time() < 0.2


async def test_a_slow_authorize_delays_only_its_own_topic(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Other topics and heartbeats go on; then the join and the frames behind it."""

    async def slow(topic: str, id_: str, info: ConnectInfo) -> str | None:
        await trio.sleep(1)
        return "no" if topic == "bad" else None

    bus = FakeBus()
    channels = make_channels(bus, authorizers=[Authorizer("p", slow)])
    await nursery.start(channels.run)
    client = Client(channels)
    client.join("obs")
    client.join("bad", "2")
    client.say(["1", "3", "obs", "hello", {}], [None, "4", "phoenix", "heartbeat", {}])
    assert [frame[1] for frame in client.received()] == ["4"]
    await trio.sleep(1.01)

    frames = {frame[1]: frame[4] for frame in client.received() if frame[1]}
    assert frames["1"]["status"] == frames["3"]["status"] == "ok"
    assert frames["2"]["response"] == {"reason": "no"}
    nursery.cancel_scope.cancel()


async def test_joins_before_the_child_runs_are_unavailable() -> None:
    """Plugins cannot be asked before the child runs, so the answer is unavailable."""
    channels = make_channels(FakeBus(), authorizers=[Authorizer("p", lambda *_: None)])
    client = Client(channels)
    client.join("obs")

    assert client.received()[0][4]["response"] == {"reason": "unavailable"}


async def test_vanished_streams_are_announced(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """With a grace time: leave-streaming after it, join-streaming at the return."""
    bus = FakeBus()
    channels = make_channels(bus, streaming_grace=10.0)
    await nursery.start(channels.run)
    client = Client(channels)
    client.join("streaming-alice")
    await trio.sleep(2)
    client.session.gone()
    await trio.sleep(15)
    assert bus.payloads("from:system:leave-streaming") == [b'{"connectionId":"alice"}']

    Client(channels).join("streaming-alice")
    await trio.sleep(2)
    assert bus.payloads("from:system:join-streaming") == [b'{"connectionId":"alice"}']
    nursery.cancel_scope.cancel()


async def test_many_malformed_frames_close_the_connection() -> None:
    """After 101 malformed frames the connection is closed, and later frames are ignored."""
    channels = make_channels(FakeBus())
    client = Client(channels)
    client.session.feed([(TEXT, b"garbage")] * 150)
    await client.session.finish()

    assert client.session.outbox.disconnect == disconnects.ABUSE
    assert channels.statistics().malformed == 101


async def test_misbehaving_clients_are_logged_by_address_once_a_minute() -> None:
    """Each kind of misbehaviour is one line for each address, however many of its clients show it."""
    channels = make_channels(FakeBus())
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            client = Client(channels)
            client.session.feed([(TEXT, b"garbage")] * 150)
            await client.session.finish()
            client.session.gone()

    assert [(line["event"], line["address"]) for line in logs if line["log_level"] == "warning"] == [
        ("malformed frame", "127.0.0.1"),
        ("client disconnected", "127.0.0.1"),
    ]


async def test_connection_ids_are_not_given_twice() -> None:
    """An id that is in use is drawn again."""
    ids = iter(["a", "a", "b"])
    channels = make_channels(FakeBus(), new_id=lambda: next(ids))

    assert [Client(channels).session.conn, Client(channels).session.conn] == ["a", "b"]


async def test_ids_have_the_configured_length() -> None:
    """id_length is the length of ids."""
    channels = make_channels(FakeBus(), Settings(id_length=20))

    assert len(channels.new_id()) == 20
    assert channels.new_id().isalnum()


@pytest.mark.parametrize(
    ("query", "subprotocols", "admitted"),
    [
        (b"vsn=2.0.0", [], Admission(None, None)),
        (b"", [], Admission(None, None)),
        (b"userToken=a.b-c_d&vsn=2.0.0", [], Admission("a.b-c_d", None)),
        (b"userToken=", [], Admission("", None)),
        (b"vsn=1.0.0", [], Admission(None, None, V1)),
        (b"vsn=1.0.0&vsn=2.0.0", [], disconnects.VERSION),
        (b"vsn=3.0.0", [], disconnects.VERSION),
        (b"vsn=9", [], disconnects.VERSION),
        (b"vsn=", [], disconnects.VERSION),
        (b"userToken=a&userToken=a", [], disconnects.TWO_TOKENS),
        (b"", ["phoenix"], Admission(None, "phoenix")),
        (b"", ["other"], Admission(None, None)),
        (
            b"",
            ["phoenix", "base64url.bearer.phx." + b64encode(b"a.b?>~c").decode().rstrip("=")],
            Admission("a.b?>~c", "phoenix"),
        ),
        (
            b"",
            ["phoenix", "base64url.bearer.phx." + urlsafe_b64encode(b"a.b?>~c").decode().rstrip("=")],
            Admission("a.b?>~c", "phoenix"),
        ),
        (b"", ["phoenix", "base64url.bearer.phx.!!"], Admission(None, "phoenix")),
        (b"\xff\xfe%ff", [], Admission(None, None)),
    ],
)
def test_upgrades_are_admitted_by_version_and_token(
    query: bytes, subprotocols: list[str], admitted: Admission | Refusal
) -> None:
    """Version 1, 2 or none, at most one user token, from the query or the bearer subprotocol."""
    assert make_channels(FakeBus(), new_id=counting_ids()).admit(INFO, query, subprotocols) == admitted


def test_connect_info_reads_a_scope() -> None:
    """Address, headers, query without the user token, origin and path."""
    info = connect_info(
        {
            "client": ("192.0.2.7", 99),
            "headers": [(b"Host", b"h"), (b"origin", b"http://o")],
            "query_string": b"userToken=secret&a=1",
            "path": "/websocket",
        }
    )

    assert info == ConnectInfo(
        "192.0.2.7", {"host": "h", "origin": "http://o"}, {"a": "1"}, "http://o", "/websocket"
    )
    assert connect_info({"client": None}).address == ""


async def test_pushes_of_one_read_are_answered_together() -> None:
    """The replies of one read leave as one run, and do not wait for another read."""
    bus = FakeBus(hold=True)
    client = Client(make_channels(bus))
    client.join("obs")
    client.received()
    client.say(["1", "2", "obs", "hello", {}], ["1", "3", "obs", "hello", {}])
    client.say(["1", "4", "obs", "hello", {}])

    bus.held[0]({})
    assert [frame[1] for frame in client.received()] == ["2", "3"]
    bus.held[1]({})
    assert [frame[1] for frame in client.received()] == ["4"]


async def test_frames_of_one_read_are_published_in_order() -> None:
    """Pushes stay on their side of the leave and the join between them."""
    bus = FakeBus()
    client = Client(make_channels(bus))
    client.join("obs")
    before = len(bus.published)
    client.say(
        ["1", "2", "obs", "a", {}],
        ["1", "3", "obs", "b", {}],
        ["1", "4", "obs", "phx_leave", {}],
        ["5", "5", "obs", "phx_join", {"token": token("obs", "alice")}],
        ["5", "6", "obs", "c", {}],
        ["1", "7", "obs", "late", {}],
    )

    told = [channel for channel, _ in bus.published[before:] if channel.startswith("from:")]
    assert told == ["from:obs:a", "from:obs:b", "from:obs:phx_leave", "from:obs:phx_join", "from:obs:c"]
    answers = {frame[1]: frame[4]["status"] for frame in client.received() if frame[3] == "phx_reply"}
    assert answers == {"1": "ok", **dict.fromkeys("23456", "ok"), "7": "error"}


async def test_a_rejoin_flood_publishes_a_constant_times_its_bytes() -> None:
    """98 members with long names that rejoin publish no more than a few times their own bytes."""
    bus = FakeBus()
    channels = make_channels(bus, Settings(presence=False))
    topic, id_ = "t" * 255, "i" * 255
    clients = [Client(channels) for _ in range(98)]
    sent = 0
    for turn in range(5):
        for client in clients:
            ref = f"{turn:0>255}"
            frame = msgspec.json.encode([ref, ref, topic, "phx_join", {"token": token(topic, id_)}])
            sent += len(frame)
            client.session.feed([(TEXT, frame)])
            client.received()
    published = sum(len(channel) + len(payload) for channel, payload in bus.published)

    assert channels.statistics().hub.members == 98
    assert published < 10 * sent


async def test_ordinary_joins_list_all_agents() -> None:
    """Thirty members with short names are listed at each join."""
    bus = FakeBus()
    channels = make_channels(bus)
    for _ in range(30):
        Client(channels).join("obs")

    *_, last = bus.payloads("to:admin:channel.join")
    assert len(msgspec.json.decode(last)["agents"]) == 30


@pytest.mark.parametrize("length", [4, 8, 64])
def test_random_ids_are_even_over_letters_and_digits(length: int) -> None:
    """Each of the 62 characters is about as frequent as the others, and ids seldom repeat."""
    ids = [_random_id(length) for _ in range(20_000 // length)]
    counts = Counter("".join(ids))

    assert {len(one) for one in ids} == {length}
    assert len(set(ids)) > 0.99 * len(ids)
    assert set(counts) == set(string.ascii_letters + string.digits)
    assert max(counts.values()) < 2 * min(counts.values())
