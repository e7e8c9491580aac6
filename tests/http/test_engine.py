"""An engine and its connections, from start to stop."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from trio.testing import MockClock as Clock

from tangram.http.closing import MOST_AWAY, MOVE_EACH, Closing
from tangram.http.engine import ACCEPT_PAUSE, Connection, Engine, network_of
from tangram.http.listeners import HeldSocket, close_listeners, open_listeners
from tests.http.harness import Settings


@attrs.define(eq=False)
class FakeConnection:
    """A connection that records the calls of the engine."""

    asked: list[Any] = attrs.field(factory=list)
    ended: trio.Event = attrs.field(factory=trio.Event)
    requested: bool = False
    websocket: bool = True

    def drain(self) -> None:
        self.asked.append("drain")

    def close_idle(self) -> None:
        self.asked.append("close idle")

    def start_close(self, code: int) -> bool:
        self.asked.append(code)
        return self.websocket

    def has_requested(self) -> bool:
        return self.requested

    def abort(self) -> None:
        self.asked.append("abort")
        self.ended.set()


@attrs.define
class Rig:
    engine: Engine
    held: HeldSocket
    nursery: trio.Nursery

    async def connect(self) -> trio.SocketStream:
        stream = await trio.open_tcp_stream("127.0.0.1", self.held.port)
        await trio.testing.wait_all_tasks_blocked(0.01)
        return stream


@asynccontextmanager
async def running(
    handle: Callable[..., Any], *, grace: float = 1.0, settings: Settings | None = None
) -> AsyncIterator[Rig]:
    held = open_listeners("127.0.0.1", 0)
    engine = Engine(settings or Settings(), handle)

    async def serve(*, task_status: trio.TaskStatus[Engine]) -> None:
        await engine.serve(held, grace=lambda: grace, task_status=task_status)

    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            yield Rig(engine, held[0], nursery)
            nursery.cancel_scope.cancel()
    finally:
        close_listeners(held)


def fail() -> None:
    raise RuntimeError("boom")


def keep(made: list[FakeConnection]) -> Callable[..., Any]:
    """Return a handler that reports a fake connection for each client and adds it to ``made``."""

    async def handle(client: socket.socket, address: Any, report: Callable[[Connection], None]) -> None:
        connection = FakeConnection()
        made.append(connection)
        report(connection)
        await connection.ended.wait()

    return handle


def fail_accepts(monkeypatch: pytest.MonkeyPatch, failures: list[OSError]) -> None:
    """Let the next accept raise the first of ``failures``, as long as there are some."""

    class Scarce:
        """A listening socket whose accept may fail."""

        def __init__(self, inner: socket.socket) -> None:
            self.fileno, self.close = inner.fileno, inner.close
            self.inner = inner

        def accept(self) -> Any:
            if failures:
                raise failures.pop(0)
            return self.inner.accept()

    dup = HeldSocket.dup
    monkeypatch.setattr(HeldSocket, "dup", lambda held: Scarce(dup(held)))


@pytest.mark.parametrize("grouped", [False, True])
async def test_an_exception_of_a_connection_ends_only_that_connection(grouped: bool, clock: Clock) -> None:
    """An exception of one connection is logged and counted, and the others go on.

    It may be raised alone or in a group.
    """
    served: list[int] = []

    async def handle(client: socket.socket, address: Any, report: Callable[[Connection], None]) -> None:
        served.append(1)
        if len(served) > 1:
            await trio.sleep_forever()
        if grouped:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                fail()
        fail()

    with capture_logs() as lines:
        async with running(handle) as rig:
            first = await rig.connect()
            second = await rig.connect()
            statistics = rig.engine.statistics()
            assert bytes(await first.receive_some(10)) == b""
            await first.aclose()
            await second.aclose()

    assert (statistics.crashed, statistics.connections, statistics.accepted) == (1, 1, 2)
    assert [line["event"] for line in lines] == ["connection failed"]


async def test_an_exception_during_a_forced_stop_is_no_crash(clock: Clock) -> None:
    """A clean-up that raises during a forced stop does not make the stop a crash."""

    async def handle(client: socket.socket, address: Any, report: Callable[[Connection], None]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                fail()

    with capture_logs():
        async with running(handle, grace=0.1) as rig:
            stream = await rig.connect()
        await stream.aclose()

    assert rig.engine.statistics().crashed == 1


async def test_order_of_a_stop(clock: Clock) -> None:
    """A stop drains, closes idle connections, starts the close of WebSockets, then aborts."""
    made: list[FakeConnection] = []
    async with running(keep(made), grace=2.0) as rig:
        stream = await rig.connect()
        began = trio.current_time()
    await stream.aclose()

    assert made[0].asked == ["drain", "close idle", 1012, "abort"]
    assert 2.0 <= trio.current_time() - began < 2.2
    assert rig.engine.statistics().forced == 1


async def test_a_request_that_becomes_a_websocket_during_a_stop_is_closed(clock: Clock) -> None:
    """It was none yet when the others were closed; once it is closed, it is left in peace."""
    made: list[FakeConnection] = []
    async with running(keep(made), grace=2.0) as rig:
        stream = await rig.connect()
        made[0].websocket = False
        rig.nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.sleep(0.25)
            before = made[0].asked.count(1012)
            made[0].websocket = True
            await trio.sleep(0.25)
    await stream.aclose()

    assert before > 1
    assert made[0].asked.count(1012) == before + 1


async def test_a_connection_that_is_accepted_at_the_stop_is_closed(clock: Clock) -> None:
    """Its task has not begun when WebSockets are closed, and no other connection is open."""
    made: list[FakeConnection] = []

    async def late(client: socket.socket, address: Any, report: Callable[[Connection], None]) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.2)
        await keep(made)(client, address, report)

    async with running(late, grace=2.0) as rig:
        stream = await rig.connect()
    await stream.aclose()

    assert made[0].asked == ["drain", 1012, "abort"]


async def test_websockets_are_closed_when_clients_have_settled(clock: Clock) -> None:
    """Clients that are about to join come first; the seconds of the stop are those of both."""
    made: list[FakeConnection] = []
    times: list[float] = []

    async def settle() -> None:
        await trio.sleep(1.0)
        times.append(made[0].asked.count(1012))

    async with running(keep(made), grace=2.0) as rig:
        rig.engine.closing = Closing(settle)
        stream = await rig.connect()
        began = trio.current_time()
    await stream.aclose()

    assert times == [0]
    assert made[0].asked == ["drain", "close idle", 1012, "abort"]
    assert trio.current_time() - began < 2.2


async def test_websockets_wait_for_members_that_are_away(clock: Clock) -> None:
    """No more are closed while enough members are away, for a share of the grace."""
    made: list[FakeConnection] = []
    away = [MOST_AWAY]
    async with running(keep(made), grace=2.0) as rig:
        rig.engine.closing = Closing(each=lambda: MOVE_EACH, away=lambda: away[0])
        stream = await rig.connect()
        rig.nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.sleep(0.2)
            before = made[0].asked.count(1012)
            away[0] = 0
            await trio.sleep(0.1)
            after = made[0].asked.count(1012)
            made[0].ended.set()
    await stream.aclose()

    assert (before, after) == (0, 1)


@pytest.mark.parametrize(
    ("address", "draining", "ends", "leaves"),
    [
        ("10.0.0.1", True, True, True),
        ("unix", True, True, True),
        ("10.0.0.2", True, True, False),
        ("10.0.0.1", False, True, False),
        ("10.0.0.1", True, False, False),
    ],
)
def test_an_upgrade_is_left_to_another_node(address: str, draining: bool, ends: bool, leaves: bool) -> None:
    """Only one that a proxy sends to a server that ends: a client would see a refusal."""
    engine = Engine(Settings(), keep([]), is_proxy=lambda one: one == "10.0.0.1", takes_waiting=lambda: ends)
    engine.draining = draining

    assert engine.leaves_upgrade(address) is leaves


async def test_stop_without_connections_is_immediate(clock: Clock) -> None:
    """An engine without connections stops at once, even with a long grace."""

    async def handle(client: socket.socket, address: Any, report: Callable[[Connection], None]) -> None:
        raise NotImplementedError

    began = trio.current_time()
    async with running(handle, grace=100.0):
        pass

    assert trio.current_time() == began


async def test_no_file_descriptor_left(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without file descriptors the engine logs it, waits, and accepts again later."""
    served = trio.Event()
    failures = [OSError(errno.EMFILE, "too many"), OSError(errno.ECONNABORTED, "gone")]

    async def handle(client: socket.socket, address: Any, report: Callable[[Connection], None]) -> None:
        served.set()

    fail_accepts(monkeypatch, failures)
    with capture_logs() as lines:
        async with running(handle) as rig:
            stream = await rig.connect()
            with trio.fail_after(5):
                await served.wait()
            await stream.aclose()

    assert [line["event"] for line in lines] == ["no file descriptor for another connection"]


async def test_at_the_bound_connections_without_a_request_are_closed_first(clock: Clock) -> None:
    """A newcomer at the bound replaces the oldest connection that has not sent a request.

    It is refused if each connection has sent one. One log line is written in a minute.
    """
    made: list[FakeConnection] = []

    with capture_logs() as lines:
        async with running(keep(made), settings=Settings(max_connections=3)) as rig:
            streams = [await rig.connect() for _ in range(3)]
            made[0].requested = True
            streams.append(await rig.connect())
            after_one = [bool(one.asked) for one in made]
            streams.append(await rig.connect())
            after_two = [bool(one.asked) for one in made]
            made[3].requested = made[4].requested = True
            streams.append(await rig.connect())
            statistics = rig.engine.statistics()
            for stream in streams:
                await stream.aclose()
            for one in made:
                one.ended.set()

    assert after_one == [False, True, False, False]
    assert after_two == [False, True, True, False, False]
    assert (statistics.evicted, statistics.refused, statistics.connections) == (2, 1, 3)
    assert [line["event"] for line in lines] == ["connection without a request closed at the bound"]


async def test_without_descriptors_the_oldest_idle_connection_is_closed(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMFILE at an accept closes a connection without a request for the newcomer."""
    made: list[FakeConnection] = []
    failures: list[OSError] = []

    fail_accepts(monkeypatch, failures)
    async with running(keep(made)) as rig:
        idle = await rig.connect()
        failures.append(OSError(errno.EMFILE, "too many open files"))
        before = trio.current_time()
        newcomer = await rig.connect()
        assert [one.asked for one in made] == [["abort"], []]
        assert trio.current_time() - before < ACCEPT_PAUSE
        await idle.aclose()
        await newcomer.aclose()
        made[1].ended.set()


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("::1", "::1"),
    ],
)
def test_addresses_of_one_ipv6_network_are_counted_together(address: str, network: str) -> None:
    """A client with a whole IPv6 network counts as one address."""
    assert network_of(address) == network


async def test_connections_of_an_address_are_forgotten(clock: Clock) -> None:
    """After the last connection of an address nothing is kept of the address."""

    async def handle(client: socket.socket, address: Any, report: Callable[[Connection], None]) -> None:
        await trio.lowlevel.wait_readable(client)

    async with running(handle) as rig:
        stream = await rig.connect()
        assert rig.engine._per_address == {"127.0.0.1": 1}
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)

        assert rig.engine._per_address == {}
