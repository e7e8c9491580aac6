"""The functions on a real Redis."""

from __future__ import annotations

import pytest
import trio

from tangram.bus.scripts import FunctionCall
from tangram.errors import BrokerRefused, BrokerUnavailable
from tangram.history import Published, parse_position
from tangram.history.library import GUARD, LEASE, data_key, library, script
from tangram.history.replay import Replay, parse_replay, read_call
from tangram.testing import RealBroker
from tests.history.conftest import Histories, open_histories

pytestmark = pytest.mark.slow


async def read(of: Histories, topic: str, since: str | None, nonce: str = "") -> Replay:
    history = of.rules.find(topic)
    assert history is not None
    return parse_replay(await of.bus.call(read_call(of.rules, topic, history, since, nonce)))


async def publish(of: Histories, topic: str, count: int, *, size: int = 1) -> str:
    """Publish numbers, and return the position behind the last."""
    published = Published(0)
    for number in range(count):
        published = await of.bus.publish(f"to:{topic}:n", str(number).rjust(size))  # type: ignore[assignment]
    assert published.position is not None
    return published.position


def moved(position: str, by: int) -> str:
    """Return a position of the same epoch."""
    at = parse_position(position)
    assert at is not None
    return str(at._replace(offset=at.offset + by))


async def test_missed_messages_are_read_in_order(nursery: trio.Nursery, broker: RealBroker) -> None:
    """Behind each position come the messages after it, and the reader has recovered."""
    of = await open_histories(nursery, broker.url)
    top = await publish(of, "stream", 5)

    for missed in range(6):
        replay = await read(of, "stream", moved(top, -missed))
        assert replay.recovered
        assert replay.reason is None
        assert str(replay.position) == top
        assert replay.events == [("n", str(number).encode()) for number in range(5 - missed, 5)]


@pytest.mark.parametrize("since", ["0.0", "zz.1", "*", "k.99999999999999999999", "\x00", "a.1.2", '"', "é"])
async def test_a_position_of_another_epoch_is_not_recovered(
    nursery: trio.Nursery, broker: RealBroker, since: str
) -> None:
    """A position that this history never gave out is answered with the reason ``epoch``."""
    of = await open_histories(nursery, broker.url)
    await publish(of, "stream", 3)

    replay = await read(of, "stream", since)

    assert (replay.recovered, replay.reason, replay.events) == (False, "epoch", [])


async def test_a_position_of_the_future_is_not_recovered(nursery: trio.Nursery, broker: RealBroker) -> None:
    """An offset behind the newest message was never given out in this epoch."""
    of = await open_histories(nursery, broker.url)
    top = await publish(of, "stream", 3)

    replay = await read(of, "stream", moved(top, 1))

    assert (replay.recovered, replay.reason) == (False, "epoch")


async def test_a_trimmed_history_is_too_old(nursery: trio.Nursery, broker: RealBroker) -> None:
    """Five messages are kept, so that the sixth before the end cannot be replayed."""
    of = await open_histories(nursery, broker.url)
    top = await publish(of, "stream", 9)

    assert (await read(of, "stream", moved(top, -5))).recovered
    replay = await read(of, "stream", moved(top, -6))

    assert (replay.recovered, replay.reason, replay.events) == (False, "too_old", [])


async def test_an_expired_history_still_knows_its_end(nursery: trio.Nursery, broker: RealBroker) -> None:
    """A client that has seen everything has recovered, although no message is left; another one has not."""
    of = await open_histories(nursery, broker.url)
    top = await publish(of, "short", 3)
    await of.bus.call(FunctionCall("x", (), (), ("DEL", data_key("short", "stream"))))

    assert (await read(of, "short", top)).recovered
    replay = await read(of, "short", moved(top, -1))

    assert (replay.recovered, replay.reason) == (False, "too_old")


async def test_a_replay_is_bounded_in_bytes(nursery: trio.Nursery, broker: RealBroker) -> None:
    """More than ``max_bytes`` are not sent: the client is told that it has not recovered."""
    of = await open_histories(nursery, broker.url)
    top = await publish(of, "small", 11, size=100)

    assert (await read(of, "small", moved(top, -10))).recovered
    replay = await read(of, "small", moved(top, -11))

    assert (replay.recovered, replay.reason, replay.events) == (False, "too_much", [])


async def test_latest_keeps_the_newest_message_of_each_event(
    nursery: trio.Nursery, broker: RealBroker
) -> None:
    """A first join gets one message of each event, a later one those that changed."""
    of = await open_histories(nursery, broker.url)
    for number, event in enumerate("abcab"):
        await of.bus.publish(f"to:latest:{event}", f"{number}\n\0")

    replay = await read(of, "latest", "")
    later = await read(of, "latest", moved(str(replay.position), -1))

    assert replay.events == [("c", b"2\n\0"), ("a", b"3\n\0"), ("b", b"4\n\0")]
    assert not replay.recovered
    assert later.recovered
    assert later.events == [("b", b"4\n\0")]


async def test_latest_is_bounded_in_events_and_bytes(nursery: trio.Nursery, broker: RealBroker) -> None:
    """The event whose newest message is the oldest is forgotten first."""
    of = await open_histories(nursery, broker.url)
    for number, event in enumerate("abacde"):
        await of.bus.publish(f"to:latest:{event}", str(number).rjust(400))

    replay = await read(of, "latest", "")

    assert [event for event, _ in replay.events] == ["d", "e"]
    assert (replay.recovered, replay.reason) == (False, "too_much")


async def test_the_marker_stands_between_missed_and_live_messages(
    nursery: trio.Nursery, broker: RealBroker
) -> None:
    """Each subscriber sees the marker behind the messages of the replay, and before all later ones."""
    of = await open_histories(nursery, broker.url)
    await publish(of, "stream", 1)
    await read(of, "stream", "", "nonce")
    await publish(of, "stream", 1)
    await of.wait_received(5)

    kinds = [
        "message" if channel == b"to:stream:n" else "marker" if b'"m":"nonce"' in payload else "stamp"
        for channel, payload in of.received
    ]

    assert kinds == ["stamp", "message", "marker", "stamp", "message"]


async def test_another_storage_begins_every_history_anew(nursery: trio.Nursery, broker: RealBroker) -> None:
    """After a start of Redis that may have lost messages, no old position is recovered."""
    of = await open_histories(nursery, broker.url, identity="boot 1")
    top = await publish(of, "stream", 2)
    same = await open_histories(nursery, broker.url, identity="boot 1")
    assert (await read(same, "stream", top)).recovered

    other = await open_histories(nursery, broker.url, identity="boot 2")
    replay = await read(other, "stream", top)

    assert (replay.recovered, replay.reason) == (False, "epoch")
    assert str(replay.position) != top


async def lease(of: Histories, node: str, in_step: str = "", ms: str = "5000") -> list[object]:
    answer: list[object] = await of.bus.call(
        FunctionCall("tangram_lease", (LEASE, GUARD), (node, ms, in_step))
    )
    return answer


async def test_one_node_records_and_the_next_fences_it(nursery: trio.Nursery, broker: RealBroker) -> None:
    """The lease has one holder; a recorder with an old number records nothing."""
    of = await open_histories(nursery, broker.url)
    assert await lease(of, "a") == [1, b"1", 1]
    assert await lease(of, "b", "1") == [0, b"1", 0]
    assert await lease(of, "a", "1") == [1, b"1", 0]
    await of.bus.call(FunctionCall("tangram_release", (LEASE,), ("a",)))
    assert await lease(of, "b", "1") == [1, b"2", 0]

    keys = (GUARD, "{tangram}:topic:stream:h", "{tangram}:topic:stream:m")
    words = ("1", "stream", "cand", "stream", "5", "60000", "1", "n", "payload")
    assert await of.bus.call(FunctionCall("tangram_record", keys, ("1", *words))) == 0
    assert await of.bus.call(FunctionCall("tangram_record", keys, ("2", *words))) == 1
    assert (await read(of, "stream", None)).events == [("n", b"payload")]


async def test_a_time_without_recorder_ends_the_epochs_of_plain_messages_alone(
    nursery: trio.Nursery, broker: RealBroker
) -> None:
    """A topic of ``tangram_publish`` keeps its epoch, because Redis itself has seen all of its messages."""
    of = await open_histories(nursery, broker.url)
    await lease(of, "a")
    native = await publish(of, "stream", 2)
    keys = (GUARD, "{tangram}:topic:small:h", "{tangram}:topic:small:m")
    words = ("1", "1", "small", "cand", "stream", "5", "60000", "1", "n", "payload")
    await of.bus.call(FunctionCall("tangram_record", keys, words))
    plain = str((await read(of, "small", "")).position)
    await of.bus.call(FunctionCall("tangram_release", (LEASE,), ("a",)))
    await lease(of, "b")

    assert (await read(of, "stream", native)).recovered
    assert (await read(of, "small", plain)).reason == "epoch"


async def test_functions_that_redis_has_lost_are_loaded_again(
    nursery: trio.Nursery, broker: RealBroker
) -> None:
    """After ``FUNCTION FLUSH`` one publication fails, and the next one works."""
    of = await open_histories(nursery, broker.url)
    await of.bus.call(FunctionCall("unknown", (), (), ("FUNCTION", "FLUSH")))
    with pytest.raises(BrokerRefused, match="Function not found"):
        await publish(of, "stream", 1)

    assert await publish(of, "stream", 1)


async def test_a_redis_without_functions_gets_scripts(nursery: trio.Nursery, broker: RealBroker) -> None:
    """Where ``FUNCTION`` is not allowed, the same text is loaded as scripts."""
    of = await open_histories(nursery, broker.url)
    await of.bus.call(FunctionCall("x", (), (), ("ACL", "SETUSER", "default", "-function", "-fcall")))
    scripted = await open_histories(nursery, broker.url)
    top = await publish(scripted, "stream", 3)

    assert len((await read(scripted, "stream", moved(top, -2))).events) == 2


async def test_a_redis_that_allows_neither_still_publishes(nursery: trio.Nursery, broker: RealBroker) -> None:
    """Without functions and scripts a message is published and has no position."""
    of = await open_histories(nursery, broker.url)
    await of.bus.call(FunctionCall("x", (), (), ("ACL", "SETUSER", "default", "-@scripting", "+multi")))
    without = await open_histories(nursery, broker.url)

    published = await without.bus.publish("to:stream:n", "1")

    assert isinstance(published, Published)
    assert (published, published.position) == (2, None)
    with pytest.raises(BrokerUnavailable):
        await read(without, "stream", "")


def test_scripts_are_the_library_without_its_registration() -> None:
    """Each script ends with one call, so that both ways run the same text."""
    assert library().startswith("#!lua name=tangram\n")
    assert "register_function" not in script("read")
    assert script("read").endswith("return read(KEYS, ARGV)")
