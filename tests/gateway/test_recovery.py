"""Joins that ask for positions, in a whole server with a broker in memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tangram import History, Plugin
from tangram.bus.scripts import FunctionCall
from tangram.channels.disconnects import UNAVAILABLE
from tangram.channels.hub import Hub
from tangram.channels.outbox import Outbox
from tangram.channels.socket import Authorize, Effect
from tangram.client import Channel, ClientSocket
from tangram.gateway import recovery
from tangram.gateway.recovery import Recovery
from tangram.history import parse_position
from tangram.history.feed import Live
from tangram.history.position import Position
from tangram.history.replay import Replay
from tangram.history.rules import Rule, Rules
from tangram.testing import RunningTangram, open_tangram

RULES = {"kept:*": History(size=50), "map": History(mode="latest", size=10), "small": History(max_bytes=1024)}


@pytest.fixture
async def tangram() -> AsyncIterator[RunningTangram]:
    """A server whose topics have histories."""
    async with open_tangram([Plugin(history=RULES)], fakes=True, memory_port=True) as running:
        yield running


async def token(tangram: RunningTangram, topic: str) -> str:
    answer = await tangram.http.post("/token", json={"channel": topic})
    return str(answer.json()["token"])


async def publish(tangram: RunningTangram, topic: str, *numbers: int, plain: bool = False) -> str | None:
    """Publish numbers; ``plain`` stands for a program that knows only ``PUBLISH``."""
    position = None
    for number in numbers:
        if plain:
            assert tangram.memory is not None
            tangram.memory.publish(f"to:{topic}:n".encode(), json.dumps({"n": number}).encode())
        else:
            state = tangram.server.tree.incarnation.require_state()  # type: ignore[union-attr]
            position = (await state.publish(f"to:{topic}:n", {"n": number})).position
    return position


async def numbers(channel: Channel, count: int) -> list[int]:
    with trio.fail_after(60):
        return [(await channel.receive()).payload["n"] for _ in range(count)]


async def join(tangram: RunningTangram, client: ClientSocket, topic: str, recover: bool | str) -> Channel:
    return await client.join(topic, token=await token(tangram, topic), recover=recover)


async def settled(tangram: RunningTangram) -> None:
    """Let the recorder and the feed come to rest."""
    await trio.sleep(1)


@pytest.mark.parametrize("plain", [False, True])
async def test_missed_messages_come_in_order_before_live_ones(
    autojump_clock: MockClock, tangram: RunningTangram, *, plain: bool
) -> None:
    """A client that comes back with its position misses nothing, whoever published."""
    async with tangram.open_socket() as client:
        channel = await join(tangram, client, "kept:a", recover=True)
        assert channel.recovered is False
        assert channel.reason is None
        await publish(tangram, "kept:a", 1, 2, plain=plain)
        assert await numbers(channel, 2) == [1, 2]
        await settled(tangram)
        position = channel.position
    assert position is not None
    await publish(tangram, "kept:a", 3, 4, plain=plain)
    async with tangram.open_socket() as client:
        channel = await join(tangram, client, "kept:a", recover=position)
        await publish(tangram, "kept:a", 5, plain=plain)

        assert channel.recovered is True
        assert await numbers(channel, 3) == [3, 4, 5]
        await settled(tangram)
        at = parse_position(str(channel.position))
        assert at is not None
        assert at.offset == 5


async def test_each_position_stands_behind_the_messages_that_it_covers(
    autojump_clock: MockClock, tangram: RunningTangram
) -> None:
    """The frames of a member that asked: reply, messages, position."""
    async with tangram.open_socket() as client:
        channel = await join(tangram, client, "kept:a", recover=True)
        first = channel.position
        last = await publish(tangram, "kept:a", 1, 2)
        await numbers(channel, 2)
        await settled(tangram)

        assert channel.position == last
        assert first != last


async def test_a_member_that_does_not_ask_sees_no_difference(
    autojump_clock: MockClock, tangram: RunningTangram
) -> None:
    """Its reply has the id alone, and no position comes beside its messages."""
    async with tangram.open_socket() as client, tangram.open_socket() as other:
        channel = await join(tangram, client, "kept:a", recover=False)
        await join(tangram, other, "kept:a", recover=True)
        await publish(tangram, "kept:a", 1)
        event = await channel.receive()
        await publish(tangram, "kept:a", 2)

        assert event.payload == {"n": 1}
        assert (await channel.receive()).name == "n"
        assert channel.position is None
        assert channel.recovered is None


async def test_a_topic_without_history_answers_as_ever(
    autojump_clock: MockClock, tangram: RunningTangram
) -> None:
    """A client that asks for positions there gets none."""
    async with tangram.open_socket() as client:
        channel = await join(tangram, client, "other", recover=True)
        await publish(tangram, "other", 1)

        assert await numbers(channel, 1) == [1]
        assert channel.recovered is None
        assert channel.position is None


async def test_a_map_is_there_at_once(autojump_clock: MockClock, tangram: RunningTangram) -> None:
    """With ``latest`` a first join gets the newest message of each event."""
    state = tangram.server.tree.incarnation.require_state()  # type: ignore[union-attr]
    for number, event in enumerate("aba"):
        await state.publish(f"to:map:{event}", {"n": number})
    async with tangram.open_socket() as client:
        channel = await join(tangram, client, "map", recover=True)
        events = [await channel.receive() for _ in range(2)]
        await settled(tangram)
        position = str(channel.position)
    async with tangram.open_socket() as client:
        again = await join(tangram, client, "map", recover=position)
        await state.publish("to:map:c", {"n": 9})
        newest = await again.receive()

    assert [(event.name, event.payload["n"]) for event in events] == [("b", 1), ("a", 2)]
    assert again.recovered
    assert newest.name == "c"


async def test_too_many_bytes_are_announced(autojump_clock: MockClock, tangram: RunningTangram) -> None:
    """A replay above ``max_bytes`` is not sent, and the client is told why."""
    async with tangram.open_socket() as client:
        channel = await join(tangram, client, "small", recover=True)
        first = str(channel.position)
    state = tangram.server.tree.incarnation.require_state()  # type: ignore[union-attr]
    await state.publish("to:small:n", {"n": "x" * 2000})
    async with tangram.open_socket() as client:
        channel = await join(tangram, client, "small", recover=first)

        assert (channel.recovered, channel.reason) == (False, "too_much")


async def test_each_result_of_a_join_is_counted(autojump_clock: MockClock, tangram: RunningTangram) -> None:
    """The metric counts joins that ask for positions, also over restarts of the channels."""
    await publish(tangram, "kept:a", 1)
    async with tangram.open_socket() as client:
        await join(tangram, client, "kept:a", recover=False)
        first = await join(tangram, client, "kept:a", recover=True)
        position = str(first.position)
        await join(tangram, client, "kept:a", recover=position)
        await join(tangram, client, "kept:a", recover="no.1")
        tangram.crash("channels")
        await tangram.wait_steady()
        scrape = await tangram.http.get("/-/metrics", headers=tangram.operator)

    def count(result: str) -> float:
        line = f'tangram_recoveries_total{{result="{result}"}} '
        return next(float(one[len(line) :]) for one in scrape.text.splitlines() if one.startswith(line))

    assert (count("first"), count("epoch"), count("too_old")) == (1, 1, 0)
    assert count("recovered") >= 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    epoch=st.sampled_from(["own", "0", "k3f9"]),
    offset=st.integers(-2, 12) | st.integers(13, 2**70),
    missed=st.integers(0, 9),
)
def test_no_drawn_position_is_recovered_falsely(epoch: str, offset: int, missed: int) -> None:
    """A position of this epoch that is not of the future recovers, and no other does."""

    async def run() -> tuple[bool | None, list[int], int]:
        async with open_tangram([Plugin(history=RULES)], fakes=True, memory_port=True, seed=1) as tangram:
            at = parse_position(str(await publish(tangram, "kept:a", *range(1, missed + 2))))
            assert at is not None
            name = at.epoch if epoch == "own" else epoch
            async with tangram.open_socket() as client:
                channel = await join(tangram, client, "kept:a", recover=f"{name}.{offset}")
                await publish(tangram, "kept:a", 99)
                count = at.offset - offset + 1 if channel.recovered else 1
                return channel.recovered, await numbers(channel, count), at.offset

    recovered, got, top = trio.run(run, clock=MockClock(autojump_threshold=0))
    assert recovered is (epoch == "own" and 0 <= offset <= top)
    assert got == ([*range(offset + 1, top + 1), 99] if recovered else [99])


async def test_a_restart_costs_a_client_nothing(autojump_clock: MockClock, tangram: RunningTangram) -> None:
    """Messages of plain publishers during the restart come with the rejoin."""
    async with tangram.open_socket() as client:
        channel = await join(tangram, client, "kept:a", recover=True)
        await publish(tangram, "kept:a", 1, plain=True)
        await numbers(channel, 1)
        await settled(tangram)

        async def keep_publishing() -> None:
            for number in range(2, 40):
                await publish(tangram, "kept:a", number, plain=True)
                await trio.sleep(0.005)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_publishing)
            await trio.sleep(0.05)
            await tangram.server.restart()
        await settled(tangram)
        seen = [1]
        while seen[-1] != 39:
            seen += await numbers(channel, 1)

        assert channel.joins == 2
        assert channel.recovered
        assert sorted(set(seen)) == list(range(1, 40))


async def test_a_lost_subscription_costs_a_client_nothing(
    autojump_clock: MockClock, tangram: RunningTangram
) -> None:
    """After an interruption of the feed members with positions join again and get the missed messages."""
    async with tangram.open_socket() as client:
        channel = await join(tangram, client, "kept:a", recover=True)
        await publish(tangram, "kept:a", 1)
        await numbers(channel, 1)
        listener = tangram.server.tree.incarnation.bus._listener  # type: ignore[union-attr]
        await listener._link.stream.aclose()  # type: ignore[union-attr]
        await publish(tangram, "kept:a", 2, 3)
        await settled(tangram)

        assert await numbers(channel, 2) == [2, 3]
        assert channel.recovered
        assert channel.joins == 2


async def test_joins_that_come_together_share_one_read(
    autojump_clock: MockClock, tangram: RunningTangram
) -> None:
    """Twenty clients with one position cause a few calls, and each gets every message."""
    async with tangram.open_socket() as client:
        position = str((await join(tangram, client, "kept:a", recover=True)).position)
    await publish(tangram, "kept:a", *range(1, 6))
    permission = await token(tangram, "kept:a")
    got: list[list[int]] = []

    async def one() -> None:
        async with tangram.open_socket() as client:
            channel = await client.join("kept:a", token=permission, recover=position)
            got.append(await numbers(channel, 5))

    entry = tangram.server.tree.incarnation.channels._recovery  # type: ignore[union-attr]
    before = entry._reads  # type: ignore[union-attr]
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one)

    assert got == [[1, 2, 3, 4, 5]] * 20
    assert entry._reads - before <= 20  # type: ignore[union-attr]


class Passes(trio.abc.Instrument):
    """Counts the passes of the event loop."""

    count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_one_slice_of_members_enters_in_each_pass(
    autojump_clock: MockClock, tangram: RunningTangram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other clients are served between two slices, and members of later slices miss nothing meanwhile."""
    async with tangram.open_socket() as client:
        position = str((await join(tangram, client, "kept:a", recover=True)).position)
    await publish(tangram, "kept:a", *range(1, 6))
    permission = await token(tangram, "kept:a")
    passes, entered = Passes(), []
    channels = tangram.server.tree.incarnation.channels  # type: ignore[union-attr]
    enter = channels.hub.join  # type: ignore[union-attr]

    def note(*arguments: Any) -> Any:
        entered.append(passes.count)
        return enter(*arguments)

    async def one() -> None:
        async with tangram.open_socket() as client:
            channel = await client.join("kept:a", token=permission, recover=position)
            assert channel.recovered
            assert await numbers(channel, 30) == list(range(1, 31))

    monkeypatch.setattr(recovery, "SLICE", 2 * recovery.ENTRY + 1000)
    monkeypatch.setattr(channels.hub, "join", note)  # type: ignore[union-attr]
    trio.lowlevel.add_instrument(passes)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one)
        while not entered:
            await trio.lowlevel.checkpoint()
        await publish(tangram, "kept:a", *range(6, 31))
    trio.lowlevel.remove_instrument(passes)

    assert len(entered) == 20
    assert max(Counter(entered).values()) == 2


@pytest.mark.parametrize("other", [False, True])
async def test_a_group_that_begins_anew_leaves_the_topic_to_another_one(
    autojump_clock: MockClock, tangram: RunningTangram, *, other: bool
) -> None:
    """A topic is followed as long as a group is behind its marker, although its members enter later."""
    async with tangram.open_socket() as client:
        await join(tangram, client, "kept:a", recover=True)
    channels = tangram.server.tree.incarnation.channels  # type: ignore[union-attr]
    one = channels._recovery  # type: ignore[union-attr]
    assert one is not None
    assert "kept:a" in one._feed.followed
    position = Position("e", 0)
    replay = Replay(position, recovered=True, reason=None, certain=False, events=[])
    live = Live("n", "kept:a", position, [], in_step=False)
    leaving = recovery._Group("kept:a", "", History(), replay=replay, live=live)
    if other:
        one._open["m"] = recovery._Group("kept:a", "", History(), live=live._replace(nonce="m"))
    await one._enter_all(leaving)
    one._open.pop("m", None)

    assert leaving.uncertain
    assert ("kept:a" in one._feed.followed) is other


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recover=JSON | st.from_regex(r"[0-9a-z]{0,20}\.[0-9]{0,20}", fullmatch=True))
def test_a_position_of_any_shape_is_answered(recover: object) -> None:
    """No value of ``recover`` makes an error or a malformed frame."""

    async def run() -> Any:
        async with open_tangram([Plugin(history=RULES)], fakes=True, memory_port=True, seed=1) as tangram:
            await publish(tangram, "kept:a", 1)
            permission = await token(tangram, "kept:a")
            async with tangram.open_socket() as client:
                channel = await client.join("kept:a", payload={"token": permission, "recover": recover})
                return channel.id, tangram.server.tree.incarnation.channels.statistics()  # type: ignore[union-attr]

    id_, statistics = trio.run(run, clock=MockClock(autojump_threshold=0))
    assert id_
    assert statistics.malformed == 0


class Unanswered:
    """Joins of a recovery whose reads get no answer from Redis until ``answers`` is set."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.calls = 0
        self.refused: list[tuple[str, float]] = []
        self.present: set[str] = set()
        hub = Hub()
        self.recovery = Recovery(
            Rules([Rule("kept:*", History())]), self.call, hub, lambda _messages: None, new_name=lambda: "n"
        )

    async def call(self, call: FunctionCall) -> Any:
        self.calls += 1
        await trio.sleep_forever()

    def join(self, conn: str) -> None:
        """Let a client join; its socket notes the refusal."""
        self.present.add(conn)
        fake = FakeSession(self, conn)
        request = Authorize("kept:a", "1", "1", None, b"{}", "")
        self.recovery.enter(cast("Any", fake), request, "id", self.nursery)


class FakeSession:
    """The session of one join, and its socket."""

    def __init__(self, owner: Unanswered, conn: str) -> None:
        self.owner = owner
        self.conn = conn
        self.socket = self
        self.outbox = Outbox(lambda: None)

    def waits(self, request: Authorize) -> bool:
        return self.conn in self.owner.present

    def authorized(self, request: Authorize, verdict: object) -> list[Effect]:
        assert verdict == UNAVAILABLE
        self.owner.present.remove(self.conn)
        self.owner.refused.append((self.conn, trio.current_time()))
        return []

    def carry_out(self, effects: Sequence[Effect]) -> None:
        assert effects == []


async def test_each_join_of_a_group_has_its_own_deadline(autojump_clock: MockClock) -> None:
    """Joins that Redis does not answer try again together, and each is refused after its own six seconds."""
    async with trio.open_nursery() as nursery:
        joins, began = Unanswered(nursery), trio.current_time()
        joins.join("a")
        joins.join("b")
        await trio.sleep(1)
        joins.join("c")
        await trio.sleep(20)
        nursery.cancel_scope.cancel()

    assert [(conn, round(at - began, 2)) for conn, at in joins.refused] == [
        ("a", recovery.TIMEOUT),
        ("b", recovery.TIMEOUT),
        ("c", recovery.TIMEOUT + 1),
    ]
    assert joins.recovery.results["unavailable"] == 3
    assert 3 <= joins.calls <= 10
    assert not joins.recovery._open
    assert not joins.recovery._waiting


async def test_a_client_that_goes_while_its_group_waits_is_not_refused(autojump_clock: MockClock) -> None:
    """No answer is made for it, and once all of a group have gone, no read is made for them either."""
    async with trio.open_nursery() as nursery:
        joins = Unanswered(nursery)
        joins.join("a")
        joins.join("b")
        await trio.sleep(1)
        joins.present.remove("a")
        await trio.sleep(3)
        joins.present.clear()
        calls = joins.calls
        # The group's task ends by itself.

    assert joins.refused == []
    assert joins.calls <= calls
    assert joins.recovery.results["unavailable"] == 0
