"""Joins of a crowd: a bounded number in each pass of the event loop, in the order in which they came."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import structlog
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tangram.channels.disconnects import CRASH, GONE
from tangram.channels.frames import TEXT
from tangram.channels.policy import ConnectInfo
from tangram.channels.tokens import Claims, mint
from tangram.gateway.admission import Admission
from tangram.gateway.channels import Channels
from tangram.gateway.joining import BUDGET, CROWD_TIME, DIRECT, RECOVERY, WINDOW, Joining, JoinLine
from tests.channels.fakes import FakeBus, drained
from tests.http.serving import SECRET, make_channels

A_PASS = BUDGET // DIRECT
"""Joins without recovery that one pass handles."""
TOKEN = mint(Claims("alice", "obs", 4_000_000_000), SECRET)


class Passes(trio.abc.Instrument):
    """Counts the passes of the loop."""

    def __init__(self) -> None:
        self.number = 0

    def after_io_wait(self, timeout: float) -> None:
        self.number += 1


@pytest.fixture
def passes() -> Passes:
    return Passes()


class Client:
    """A session whose transport is the test."""

    def __init__(self, channels: Channels, wake: Callable[[], None] = lambda: None) -> None:
        self.session = channels.connect(ConnectInfo("127.0.0.1"), Admission(None, None), wake)

    def say(self, *frames: object) -> None:
        self.session.feed([(TEXT, msgspec.json.encode(frame)) for frame in frames])

    def join(self) -> None:
        self.say(["1", "1", "obs", "phx_join", {"token": TOKEN}])

    def received(self) -> list[Any]:
        return drained(self.session.outbox)

    @property
    def joined(self) -> bool:
        return self.session.socket.joined


class Served:
    """Channels that run, with a bus that delivers their publications back."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.bus = FakeBus()
        self.channels = make_channels(self.bus)
        self.bus.sink = self.channels.deliver

    def crowd(self, count: int) -> list[Client]:
        """Let clients join in one step."""
        clients = [Client(self.channels) for _ in range(count)]
        for client in clients:
            client.join()
        return clients

    def published(self, event: str) -> int:
        return sum(channel == f"from:obs:{event}" for channel, _ in self.bus.published)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with trio.open_nursery() as nursery:
        served = Served(nursery)
        await nursery.start(served.channels.run)
        await trio.testing.wait_all_tasks_blocked()
        yield served
        nursery.cancel_scope.cancel()


@given(st.lists(st.tuples(st.sampled_from([DIRECT, RECOVERY]), st.sampled_from([0.0, 0.0, 0.001, WINDOW]))))
def test_the_line_keeps_the_order_and_the_budget(drawn: list[tuple[int, float]]) -> None:
    """Joins are handled in their order, and never more than a budget in a window or a pass."""
    line: JoinLine[int] = JoinLine()
    handled: list[int] = []
    now, began, spent = 0.0, 0.0, 0
    for number, (cost, pause) in enumerate(drawn):
        now += pause
        if now - began >= WINDOW:
            began, spent = now, 0
        if not line.put(number, cost, now):
            handled.append(number)
            spent += cost
        assert spent < BUDGET + DIRECT
    while len(line):
        taken = line.take(now)
        assert sum(drawn[number][0] for number in taken) < BUDGET + DIRECT
        handled += taken

    assert handled == list(range(len(drawn)))


def test_a_join_never_waits_without_a_crowd() -> None:
    """Each window handles the joins of its budget at once, also behind a crowd."""
    line: JoinLine[int] = JoinLine()
    for window in range(3):
        assert not any(line.put(number, DIRECT, window * WINDOW) for number in range(A_PASS))
    assert line.put(0, DIRECT, 2.5 * WINDOW)
    assert line.take(2.5 * WINDOW) == [0]

    assert not line.put(1, DIRECT, 2.6 * WINDOW)


async def test_each_pass_handles_a_bounded_number_in_order(passes: Passes, nursery: trio.Nursery) -> None:
    """Other tasks run between two passes of the line, and new joins go to its end."""
    handled: list[tuple[int, int]] = []
    joining: Joining[int] = Joining(lambda join: handled.append((passes.number, join)))
    trio.lowlevel.add_instrument(passes)
    nursery.start_soon(joining.run)
    await trio.testing.wait_all_tasks_blocked()
    at_once = [number for number in range(A_PASS * 3) if not joining.put(number, DIRECT)]
    await trio.lowlevel.checkpoint()
    late = [number for number in range(A_PASS * 3, A_PASS * 4) if not joining.put(number, DIRECT)]
    await trio.testing.wait_all_tasks_blocked()
    trio.lowlevel.remove_instrument(passes)
    nursery.cancel_scope.cancel()

    assert at_once == list(range(A_PASS))
    assert late == []
    assert [number for _, number in handled] == list(range(A_PASS, A_PASS * 4))
    assert set(Counter(at for at, _ in handled).values()) == {A_PASS}


async def test_joins_are_handled_at_once_while_no_task_runs(nursery: trio.Nursery) -> None:
    """Before the task begins and after its end no join waits for it."""
    joining: Joining[int] = Joining(lambda _join: None)
    assert not any(joining.put(number, DIRECT) for number in range(A_PASS * 2))
    nursery.start_soon(joining.run)
    await trio.testing.wait_all_tasks_blocked()
    assert any(joining.put(number, DIRECT) for number in range(A_PASS * 2))
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
        await trio.testing.wait_all_tasks_blocked()

    assert not any(joining.put(number, DIRECT) for number in range(A_PASS * 2))
    assert not joining.crowded


async def test_a_crowd_joins_in_the_order_of_its_arrival(
    autojump_clock: trio.testing.MockClock, served: Served
) -> None:
    """The first clients join at once, others in each pass, and messages pass in between."""
    clients = served.crowd(A_PASS * 3)
    found = [sum(client.joined for client in clients)]
    while found[-1] < len(clients):
        await trio.lowlevel.checkpoint()
        joined = [client.joined for client in clients]
        found.append(sum(joined))
        served.channels.deliver([(b"to:obs:n", b"{}")])

        assert joined == sorted(joined, reverse=True)
        # Two passes of the line may stand between two steps of this task.
        assert found[-1] - found[-2] <= 2 * A_PASS
    assert found[0] == A_PASS
    assert [frame[3] for frame in clients[0].received()][:2] == ["phx_reply", "n"]
    assert clients[-1].received()[0][4]["status"] == "ok"


async def test_pushes_behind_a_join_that_waits_keep_their_order(
    autojump_clock: trio.testing.MockClock, served: Served
) -> None:
    """A push of the same topic is published after its join; another topic does not wait."""
    first = Client(served.channels)
    first.join()
    served.crowd(A_PASS)
    client = Client(served.channels)
    client.join()
    client.say(
        ["1", "2", "obs", "a", {}], ["1", "3", "obs", "b", {}], [None, "4", "phoenix", "heartbeat", {}]
    )
    first.say(["1", "9", "obs", "c", {}])
    before = client.received()
    assert not client.joined
    assert served.published("c") == 1
    served.bus.published.clear()
    await trio.testing.wait_all_tasks_blocked()

    assert [frame[:2] for frame in before] == [[None, "4"]]
    assert [frame[1] for frame in client.received() if frame[3] == "phx_reply"] == ["1", "2", "3"]
    events = [channel for channel, _ in served.bus.published if channel.startswith("from:obs:")]
    assert events[-3:] == ["from:obs:phx_join", "from:obs:a", "from:obs:b"]


async def test_a_leave_behind_a_join_that_waits_is_answered_after_it(
    autojump_clock: trio.testing.MockClock, served: Served
) -> None:
    """Both get their replies, and the client is no member afterwards."""
    served.crowd(A_PASS)
    client = Client(served.channels)
    client.join()
    client.say(["1", "2", "obs", "phx_leave", {}])
    await trio.testing.wait_all_tasks_blocked()

    replies = [frame[1] for frame in client.received() if frame[3] == "phx_reply"]
    assert replies == ["1", "2"]
    assert not client.joined
    assert len(served.channels.hub.members("obs")) == A_PASS


async def test_a_client_that_goes_while_it_waits_leaves_nothing_over(
    autojump_clock: trio.testing.MockClock, served: Served
) -> None:
    """It becomes no member, nothing is published for it, and the clients behind it join."""
    served.crowd(A_PASS)
    gone, closed, last = (Client(served.channels) for _ in range(3))
    for client in (gone, closed, last):
        client.join()
    gone.session.gone()
    closed.session.outbox.close(GONE)
    await trio.testing.wait_all_tasks_blocked()

    assert last.joined
    assert not gone.joined
    assert not closed.joined
    assert len(served.channels.hub.members("obs")) == served.published("phx_join") == A_PASS + 1
    assert served.channels.counters.joins == A_PASS + 1


async def test_an_error_of_a_join_that_waited_costs_its_connection_alone(
    autojump_clock: trio.testing.MockClock, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is closed, and the clients behind it join."""
    served.crowd(A_PASS)
    broken, last = Client(served.channels), Client(served.channels)
    broken.join()
    last.join()

    def fail(*_arguments: object) -> None:
        raise ValueError("a fault of the channels")

    monkeypatch.setattr(broken.session.socket, "authorized", fail)
    with structlog.testing.capture_logs() as logs:
        await trio.testing.wait_all_tasks_blocked()

    assert broken.session.outbox.disconnect == CRASH
    assert [entry["event"] for entry in logs] == ["channel connection crashed"]
    assert last.joined


async def test_a_stop_while_joins_wait_closes_their_connections(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The line ends with the channels, and the clients are closed as all others."""
    async with trio.open_nursery() as nursery:
        served = Served(nursery)
        await nursery.start(served.channels.run)
        await trio.testing.wait_all_tasks_blocked()
        waiting = served.crowd(A_PASS * 2)[-1]
        nursery.cancel_scope.cancel()

    assert not waiting.joined
    assert waiting.session.outbox.disconnect == served.channels.close_reason
    assert served.channels.connection_count == 0
    assert not served.channels.hub.topics


async def test_lists_of_presence_wait_for_the_crowd(
    autojump_clock: trio.testing.MockClock, served: Served
) -> None:
    """No member gets its list before all have their replies; each gets it then."""
    clients = served.crowd(A_PASS * 3)
    while not clients[-1].joined:
        assert served.channels.hub.states_due
        await trio.lowlevel.checkpoint()
    early = [frame[3] for client in clients for frame in client.received()]
    await trio.sleep(1)

    assert "presence_state" not in early
    lists = [[frame[4] for frame in client.received() if frame[3] == "presence_state"] for client in clients]
    assert [len(found) for found in lists] == [1] * len(clients)
    assert {len(found[0]["alice"]["metas"]) for found in lists} == {len(clients)}


async def test_lists_of_presence_wait_for_a_bounded_time(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """A crowd without an end delays them by ``CROWD_TIME`` seconds; else there is no wait."""
    joining: Joining[int] = Joining(lambda _join: None)
    nursery.start_soon(joining.run)
    await trio.testing.wait_all_tasks_blocked()
    with trio.testing.assert_no_checkpoints():
        await joining.wait_calm()
    began = trio.current_time()

    async def keep_coming() -> None:
        while True:
            for number in range(A_PASS * 2):
                joining.put(number, DIRECT)
            autojump_clock.jump(0.01)
            await trio.lowlevel.checkpoint()

    nursery.start_soon(keep_coming)
    await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint()
    assert joining.crowded
    await joining.wait_calm()

    assert CROWD_TIME - 0.1 <= trio.current_time() - began <= CROWD_TIME + 0.1
    nursery.cancel_scope.cancel()
