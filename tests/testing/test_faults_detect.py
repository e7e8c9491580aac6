"""Each fault detects one planted breakage of the server or of the kit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import httpx
import pytest
import trio
from trio.testing import MockClock

from tangram.app import Server
from tangram.app.redis_outage import SETTLE, RedisOutage
from tangram.bus import Bus
from tangram.channels.disconnects import BUSY, LIMITED, OVERLOAD
from tangram.channels.policy import Gate
from tangram.channels.socket import Socket
from tangram.gateway import pump
from tangram.gateway.channels import Channels
from tangram.supervision.watchdog import Watchdog
from tangram.testing import (
    FAULTS,
    Chaos,
    FaultPorts,
    InvariantBroken,
    MemoryBroker,
    RunningTangram,
    open_tangram,
)
from tangram.testing.faults.catalogue import browser, network, witness
from tangram.testing.faults.proxy import Proxy
from tests.app.helpers import Journal, make_impatient, make_plugin

Plant = Callable[[pytest.MonkeyPatch], None]


async def never_excused(_outage: RedisOutage) -> bool:
    """Plant an outage that excuses no plugin."""
    await trio.sleep(SETTLE)
    return False


@pytest.mark.parametrize("name", ["redis_reset", "redis_half_close", "redis_black_hole"])
async def test_a_crash_by_an_outage_is_detected(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A service that crashes because it misses Redis counts as a crash."""
    monkeypatch.setattr(RedisOutage, "settle", never_excused)
    monkeypatch.setattr(RedisOutage, "_is_noticed", never_excused)
    config = {"supervisor": {"root_restarts": 1000, "plugin_restarts": 1000}}
    seen: list[RunningTangram] = []
    plugin = make_impatient(seen)
    async with open_tangram([plugin], config, fakes=True, on_server=seen.append) as running:
        with pytest.raises(InvariantBroken, match=f"{name} should crash no child, it crashed"):
            await Chaos(running).strike(name)


def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a proxy without delay."""

    async def wait(_proxy: Proxy, _size: int) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Proxy, "_wait", wait)


def no_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a proxy that does not cut."""
    monkeypatch.setattr(Proxy, "_slices", lambda _proxy, data: [data])


def no_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a proxy that swallows nothing."""
    hole = property(lambda _proxy: False, lambda _proxy, _value: None)
    monkeypatch.setattr(Proxy, "black_hole", hole, raising=False)


def no_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a proxy that resets nothing."""
    monkeypatch.setattr(Proxy, "reset_all", lambda _proxy: None)
    monkeypatch.setattr(Chaos, "heal_bound", 1.0)


def no_half_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a proxy that ends no stream."""
    monkeypatch.setattr(Proxy, "half_close_all", lambda _proxy: None)
    monkeypatch.setattr(Chaos, "heal_bound", 1.0)


def no_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a broker that refuses no writes."""
    monkeypatch.setattr(MemoryBroker, "make_readonly", lambda _memory, readonly=True: None)


def no_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a bus that forgets messages without a waiting publisher."""
    monkeypatch.setattr(Bus, "publish_nowait", lambda *_args: None)


def cut_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the connections to Redis while the network is slow: a gap that is announced."""
    timed = witness.timed_publish

    async def cut_after(chaos: Chaos, size: int) -> float:
        took = await timed(chaos, size)
        chaos.tangram.redis_route.cut()
        return took

    monkeypatch.setattr(network, "timed_publish", cut_after)


def drops_when_thawed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a broker that forgets its clients while it is frozen."""
    thaw = MemoryBroker.thaw

    def drop(memory: MemoryBroker) -> None:
        memory.drop()
        thaw(memory)

    monkeypatch.setattr(MemoryBroker, "thaw", drop)


def no_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a broker that cannot be frozen."""
    monkeypatch.setattr(MemoryBroker, "freeze", lambda _memory: None)


def all_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a server that cuts every request."""

    async def cut(*_args: object, **_more: object) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        raise httpx.ReadError("cut")

    monkeypatch.setattr(httpx.AsyncClient, "get", cut)


def all_503(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a server that answers every request with 503."""

    async def busy(*_args: object, **_more: object) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        return httpx.Response(503)

    monkeypatch.setattr(httpx.AsyncClient, "get", busy)


def no_spite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a clean-up that does not raise."""
    monkeypatch.setattr(FaultPorts, "break_cleanup", lambda _ports, _child: None)


def no_upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a server that accepts no hand-written WebSocket."""
    admit = Channels.admit

    def refuse(channels: Channels, info: Any, query: bytes, *more: Any) -> Any:
        return BUSY if query == b"vsn=2.0.0" else admit(channels, info, query, *more)

    monkeypatch.setattr(Channels, "admit", refuse)


def user_token_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a gate that accepts any token of a connection."""
    check_join = Gate.check_join

    def check(gate: Gate, topic: str, token: str | None, user_token: str | None, info: Any) -> Any:
        return "somebody" if token is None else check_join(gate, topic, token, user_token, info)

    monkeypatch.setattr(Gate, "check_join", check)


def not_told_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a close without a close frame for a slow client."""
    monkeypatch.setattr(pump, "GONE", OVERLOAD)


def no_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a restart that does nothing."""

    async def ignored(_server: Server) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Server, "restart", ignored)


PLANTED: list[tuple[str, Plant, str]] = [
    ("web_latency", no_wait, "an answer took"),
    ("web_narrow", no_wait, "a push took"),
    ("web_sliced", no_slices, "bytes passed a proxy that cuts at 7"),
    ("web_black_hole", no_hole, "nothing should pass, but a request was answered"),
    ("redis_latency", no_wait, "a message took"),
    ("redis_narrow", no_wait, "a message took"),
    ("redis_sliced", no_slices, "bytes passed a proxy that cuts at 7"),
    ("redis_reset", no_reset, "both connections to redis were lost, but 0 were made again"),
    ("redis_half_close", no_half_close, "both connections to redis were lost, but 0 were made again"),
    ("web_reset", no_reset, "the browser was not back"),
    ("web_half_close", no_half_close, "the browser was not back"),
    ("broker_readonly", no_replica, "a write should be refused as by a replica, it was: accepted"),
    ("plugin_flood", no_flood, "of 5000 messages 0 were accepted or refused"),
    ("redis_latency", cut_meanwhile, "nothing should be lost"),
    ("redis_narrow", cut_meanwhile, "nothing should be lost"),
    ("redis_sliced", cut_meanwhile, "nothing should be lost"),
    ("broker_stop", drops_when_thawed, "nothing should be lost"),
    ("broker_stop", no_freeze, "the broker stood still, but 1 messages came"),
    ("requests_during_restart", all_cut, "that came after the crash were cut"),
    ("requests_during_restart", all_503, "requests during the restart were answered"),
    ("crash_in_cleanup", no_spite, "raised in its clean-up, the cause is"),
    ("browser_half_frame", no_upgrade, "an upgrade was answered"),
    ("upgrade_with_extra_byte", no_upgrade, "an upgrade was answered"),
    ("browser_never_reads", not_told_to_go, "not a close with 1013"),
    ("browser_expired_token", user_token_not_looked_at, "'token expired', the answer was 'accepted'"),
    ("planned_restart", no_restart, "everything should begin anew"),
]


@pytest.mark.parametrize(("name", "plant", "told"), PLANTED)
async def test_a_planted_breakage_is_detected_by_its_fault(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, name: str, plant: Plant, told: str
) -> None:
    """The fault fails with the message for the breakage."""
    async with open_tangram([make_plugin(Journal())], fakes=True, checks=()) as running:
        plant(monkeypatch)
        with pytest.raises(InvariantBroken, match=f"ends_as_promised: {name}: .*{told}"):
            await Chaos(running).strike(name)


async def join_many(running: RunningTangram, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inject the fault of 10,000 joins with 200 joins, because 10,000 take seconds."""
    monkeypatch.setattr(browser, "JOINS", 200)
    await Chaos(running).strike("browser_10000_joins")


async def test_joins_are_counted(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """All joins up to the limit are accepted and the others refused; one too many is detected."""
    async with open_tangram(fakes=True) as running:
        await join_many(running, monkeypatch)
        init = Socket.__init__

        def generous(socket: Socket, *args: Any, max_joins: int, **more: Any) -> None:
            init(socket, *args, max_joins=max_joins + 1, **more)

        monkeypatch.setattr(Socket, "__init__", generous)
        # Joins that wait in line count until they are refused, so that some of the others are one too many.
        with pytest.raises(InvariantBroken, match=r"200 joins should be .*, not .*'unauthorized': \d"):
            await join_many(running, monkeypatch)


async def test_a_wrong_reason_of_a_refused_join_is_detected(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The join is one in the middle."""
    check_join = Gate.check_join

    def limited(gate: Gate, topic: str, *more: Any) -> Any:
        return LIMITED if topic.endswith("-50") else check_join(gate, topic, *more)

    monkeypatch.setattr(Gate, "check_join", limited)
    async with open_tangram(fakes=True) as running:
        with pytest.raises(
            InvariantBroken, match=r"200 joins should be answered .*, not .*'rate limited': 1"
        ):
            await join_many(running, monkeypatch)


@pytest.mark.slow
async def test_a_watchdog_without_a_place_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stall without the line where the loop stood is not enough."""
    report = Watchdog._report

    def vague(seen: Watchdog, since: float) -> None:
        report(seen, since)
        assert seen._standing is not None
        seen._standing = attrs.evolve(seen._standing, stack=("somewhere",))

    monkeypatch.setattr(Watchdog, "_report", vague)
    async with open_tangram(config={"supervisor": {"stall_after": 0.3}}) as running:
        with pytest.raises(InvariantBroken, match="does not report where the loop stood: somewhere"):
            await Chaos(running).strike("loop_blocked")


def test_every_planted_fault_exists() -> None:
    """A renamed fault fails."""
    assert {name for name, _, _ in PLANTED} <= FAULTS.keys()
