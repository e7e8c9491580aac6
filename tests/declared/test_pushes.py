"""Declared channels in a whole server: replies, faults, crashes, slowness, floods and restarts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import msgspec
import pytest
import trio
from trio.testing import MockClock

import tangram
from tangram.app.status import RESTART_WAIT
from tangram.client import Channel
from tangram.declared.lanes import MAX_UNANSWERED, MAX_WAITING, Lanes, Unanswered
from tangram.declared.pool import MAX_TASKS
from tangram.testing import RunningTangram, open_tangram


class Select(msgspec.Struct):
    icao: str
    zoom: int = 3


@attrs.frozen
class Selected:
    area: str
    by: str


class Translated(str):
    """A text of a class of its own, as libraries for translations return it."""

    __slots__ = ()


class World:
    """A plugin with handlers of all kinds, and its calls."""

    def __init__(self) -> None:
        self.plugin = tangram.Plugin()
        self.calls: list[Any] = []
        self.gate = trio.Event()
        flights = self.plugin.channel("flights:{area}")
        self.position = flights.sends("position", Select)

        @flights.receives("select", Select)
        async def select(
            message: Select, sender: tangram.Sender, area: str, state: tangram.BackendState
        ) -> Selected:
            self.calls.append((message, sender))
            await self.position.publish(message, area=area)
            await state.publish(f"to:flights:{area}:also", {"by": sender.id})
            return Selected(area, sender.id)

        @flights.receives("note", dict)
        async def note(message: dict[str, Any]) -> None:
            self.calls.append(message["n"])

        @flights.receives("slow", dict, reply_timeout=2)
        async def slow(message: dict[str, Any]) -> str:
            self.calls.append(("began", message.get("n")))
            await self.gate.wait()
            self.calls.append(("ended", message.get("n")))
            return "done"

        @flights.receives("crash", dict)
        async def crash(message: dict[str, Any]) -> None:
            match message["how"]:
                case "exit":
                    raise SystemExit(3)
                case "refuse":
                    raise tangram.Refused(Translated("not you"))
                case "http":
                    raise tangram.HTTPException(404, "no such flight")
                case _:
                    raise ExceptionGroup("two", [ValueError("first"), ValueError("second")])

        @flights.receives("thread", dict)
        def thread(message: dict[str, Any], area: str) -> list[str]:
            return [area, str(trio.from_thread.run_sync(trio.current_time) >= 0)]

        @flights.receives("raw", bytes)
        async def raw(message: bytes) -> int:
            return len(message)


@asynccontextmanager
async def joined(world: World, **settings: Any) -> AsyncIterator[tuple[RunningTangram, Channel]]:
    async with (
        open_tangram([world.plugin], settings, fakes=True) as server,
        server.join("flights:eu", id="ann", metadata={"role": "pilot"}) as channel,
    ):
        yield server, channel


async def refusal(channel: Channel, event: str, payload: Any) -> Any:
    with pytest.raises(tangram.Refused) as raised:
        await channel.push(event, payload)
    return raised.value.response


async def test_the_return_value_is_the_reply(autojump_clock: MockClock) -> None:
    """The handler gets the message, its sender and the topic's parameters; subscribers hear the push, too."""
    world = World()
    async with joined(world) as (server, channel):
        async with server.state.subscribe("from:flights:eu:select") as heard:
            reply = await channel.push("select", {"icao": "3944ef"})
            raw = await anext(heard)
        events = [await channel.receive(), await channel.receive()]

        assert reply == {"area": "eu", "by": "ann"}
        assert raw.json() == {"icao": "3944ef"}
        assert [(event.name, event.payload) for event in events] == [
            ("position", {"icao": "3944ef", "zoom": 3}),
            ("also", {"by": "ann"}),
        ]
        assert await channel.push("thread", {}) == ["eu", "True"]
        assert await channel.push("raw", b"\0\1\2") == 3
        assert await channel.push("undeclared", {"any": 1}) == {}
        assert await channel.push("note", {"n": 1}) == {}
    (message, sender), _ = world.calls
    assert message == Select("3944ef")
    assert isinstance(sender, tangram.Sender)
    assert (sender.id, sender.topic, sender.address) == ("ann", "flights:eu", "127.0.0.1")
    assert sender.metadata == {"role": "pilot"}
    assert sender.connection


async def test_all_faults_of_a_payload_are_the_reply(autojump_clock: MockClock) -> None:
    """Bad payloads do not reach the handler, and the reply lists each fault by its place."""
    world = World()
    async with joined(world) as (server, channel):
        answer = await refusal(channel, "select", {"icao": 1, "zoom": "x"})
        binary = await refusal(channel, "select", b"\0")
        text = await refusal(channel, "raw", {})

        assert answer["reason"] == "invalid payload"
        assert [(fault["loc"], fault["type"]) for fault in answer["detail"]] == [
            (["payload", "icao"], "string_type"),
            (["payload", "zoom"], "int_parsing"),
        ]
        assert binary["detail"][0]["msg"] == "expected JSON, not a binary message"
        assert text["detail"][0]["msg"] == "expected a binary message, not JSON"
        assert server.push_results("plugin")["invalid"] == 3
    assert world.calls == []


async def test_a_crash_of_a_handler_is_an_error_reply(autojump_clock: MockClock) -> None:
    """Exceptions are logged once a minute with the plugin's line, and the plugin runs on."""
    async with joined(World()) as (server, channel):
        first = await refusal(channel, "crash", {"how": "raise"})
        answers = [
            await refusal(channel, "crash", {"how": how}) for how in ("raise", "exit", "refuse", "http")
        ]

        assert first["reason"] == "handler failed"
        assert [answer["reason"] for answer in answers] == [
            "handler failed",
            "handler failed",
            "not you",
            "no such flight",
        ]
        records = [record for record in server.logs if record["event"] == "push handler failed"]
        assert [record["id"] for record in records] == [first["id"]]
        assert "in crash" in records[0]["traceback"].splitlines()[1]
        assert [event for event in server.events if event.kind == "crashed"] == []
        assert await channel.push("note", {"n": 1}) == {}
        assert server.push_results("plugin") == {"failed": 3, "refused": 2, "ok": 1}


async def test_a_slow_handler_is_cancelled_and_delays_its_sender_alone(autojump_clock: MockClock) -> None:
    """After reply_timeout the reply is an error; pushes that waited as long are not begun."""
    world = World()
    answers: list[tuple[str, object, float]] = []

    async def ask(channel: Channel, event: str) -> None:
        began = trio.current_time()
        call = refusal if event == "slow" else Channel.push
        answer = await call(channel, event, {"n": 0})
        answers.append((event, answer, trio.current_time() - began))

    async with joined(world) as (server, channel), server.join("flights:us") as other:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, channel, "slow")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask, channel, "slow")
            nursery.start_soon(ask, other, "note")

        events = [event for event, _, _ in answers]
        assert events == ["note", "slow", "slow"]
        assert [answer for _, answer, _ in answers[1:]] == [{"reason": "timeout"}] * 2
        assert all(1.9 < seconds < 2.5 for _, _, seconds in answers[1:])
        assert answers[0][2] < 1
        assert [one["event"] for one in server.logs if one["level"] == "warning"] == [
            "push handler took too long"
        ]
    assert world.calls.count(("ended", 0)) == 0


async def test_the_pushes_of_one_sender_stay_in_order(autojump_clock: MockClock) -> None:
    """A push waits for the ones before it, also if those wait."""
    world = World()
    async with joined(world) as (_, channel):
        async with trio.open_nursery() as nursery:
            for event, n in [("slow", -1), *(("note", n) for n in range(20))]:
                nursery.start_soon(channel.push, event, {"n": n})
                await trio.testing.wait_all_tasks_blocked()
            assert world.calls == [("began", -1)]
            world.gate.set()

    assert world.calls == [("began", -1), ("ended", -1), *range(20)]


async def test_a_flood_is_slowed_down_and_answered(autojump_clock: MockClock) -> None:
    """While a handler is busy, its sender is not read; every push gets its reply in the end."""
    world = World()
    replies: list[object] = []

    async def push(channel: Channel, n: int) -> None:
        replies.append(await channel.push("slow" if n == 0 else "note", {"n": n}))

    async with joined(world) as (server, channel):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(push, channel, 0)
            await trio.testing.wait_all_tasks_blocked()
            for n in range(1, 3_000):
                nursery.start_soon(push, channel, n)
            await trio.testing.wait_all_tasks_blocked()
            waiting = server.pushes_waiting("plugin")
            world.gate.set()

        # One read may bring some hundred small pushes beyond the bound.
        assert MAX_UNANSWERED <= waiting + 1 < 1_000
        assert len(replies) == 3_000
        assert server.pushes_waiting("plugin") == 0


async def test_pushes_are_answered_when_the_plugin_restarts(autojump_clock: MockClock) -> None:
    """A restart of the plugin answers the running push and those behind it, and later ones succeed."""
    world = World()
    answers: list[object] = []

    async def ask(channel: Channel, event: str) -> None:
        answers.append(await refusal(channel, event, {"n": 1}))

    async with joined(world, supervisor={"strategy": "one_for_one"}) as (server, channel):
        async with trio.open_nursery() as nursery:
            for event in ("slow", "note"):
                nursery.start_soon(ask, channel, event)
                await trio.testing.wait_all_tasks_blocked()
            server.crash("plugin:plugin")
        assert answers == [{"reason": "restarting"}] * 2
        assert await server.wait_steady() == "up"
        assert await channel.push("note", {"n": 2}) == {}
        assert server.push_results("plugin") == {"interrupted": 2, "ok": 1}
    assert world.calls == [("began", 1), 2]


async def test_pushes_for_a_plugin_that_waits_for_the_operator_say_so(autojump_clock: MockClock) -> None:
    """In quarantine, and stopped by the operator, no restart is promised; a restart helps."""
    world = World()
    settings = {"strategy": "one_for_one", "plugin_restarts": 0}
    async with joined(world, supervisor=settings) as (server, channel):
        operator = server.server.tree.operator  # type: ignore[union-attr]
        server.crash("plugin:plugin")
        await server.wait_event("quarantined", "plugin:plugin")
        assert await refusal(channel, "note", {"n": 1}) == {"reason": "quarantined"}

        server.planned = True
        await operator.restart_plugin("plugin")  # type: ignore[union-attr]
        assert await channel.push("note", {"n": 2}) == {}
        await operator.stop_plugin("plugin")  # type: ignore[union-attr]
        assert await refusal(channel, "note", {"n": 3}) == {"reason": "stopped"}
        assert "'plugin' is stopped" in operator.unavailable()["plugin"]  # type: ignore[union-attr]
        with trio.fail_after(RESTART_WAIT / 2):
            assert await operator.wait_available("plugin")  # type: ignore[union-attr]

        await operator.restart_plugin("plugin")  # type: ignore[union-attr]
        assert await channel.push("note", {"n": 4}) == {}
    assert world.calls == [2, 4]


async def test_a_channel_decides_about_joins(autojump_clock: MockClock) -> None:
    """``authorize`` of a channel gets the parameters, and is not asked for other topics."""
    plugin = tangram.Plugin()
    rooms, levels = plugin.channel("room:{name}"), plugin.channel("level:{number}")

    @rooms.authorize
    async def may_enter(name: str, topic: str, id: str, request: tangram.ConnectInfo) -> str | None:  # noqa: A002 - the protocol's word
        assert (request.address, topic) == ("127.0.0.1", f"room:{name}")
        return None if name == id else "not your room"

    @levels.authorize
    def may_see(number: int) -> str | None:
        return None if number < 5 else "too high"

    async def answer(server: RunningTangram, topic: str) -> str:
        try:
            await tangram.fetch_token(server.url, topic, id="ann")
        except tangram.Refused as refused:
            return refused.reason
        return "ok"

    async with open_tangram([plugin], fakes=True) as server:
        assert [
            await answer(server, topic)
            for topic in ("room:ann", "room:bob", "room:bob:x", "level:3", "level:7", "level:x", "other")
        ] == ["ok", "not your room", "ok", "ok", "too high", "unmatched topic", "ok"]


async def test_a_wrong_handler_keeps_its_plugin_stopped(autojump_clock: MockClock) -> None:
    """A signature that cannot be bound is the cause of the plugin's failed start."""
    plugin = tangram.Plugin()

    @plugin.channel("t").receives("event", dict)
    async def wrong(message: dict[str, Any], level: int) -> None: ...

    async with open_tangram([plugin], fakes=True, checks=()) as server:
        stopped = await server.wait_event("quarantined", "plugin:plugin")
        assert stopped.crash is not None
        assert "no value is known for the parameter 'level'" in stopped.crash.cause


def test_the_bounds_count_pushes_without_an_answer() -> None:
    """Room is made known once half is answered, and once only."""
    unanswered, calls = Unanswered(limit=4), []
    unanswered.count = 4
    assert unanswered.full
    unanswered.when_room(lambda: calls.append(unanswered.count))
    for _ in range(4):
        unanswered.answered()

    assert calls == [2]
    assert not Lanes().full
    assert MAX_WAITING > MAX_TASKS
