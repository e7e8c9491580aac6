"""Declared pushes of a plugin that runs on another node: two whole servers on one Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio

import tangram
from tangram.declared.relay import RelayedPush
from tangram.plugins.plugin import Plugin
from tangram.supervision.records import crash_of
from tangram.testing import RunningTangram
from tests.app.test_forwarding import NAME, two_servers


class Select(msgspec.Struct):
    icao: str


class World:
    """A plugin with handlers, and their calls by node."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.gate = trio.Event()

    def plugin(self, node: str) -> Plugin:
        plugin = Plugin(instances="one")
        plugin.name = NAME
        flights = plugin.channel("flights:{area}")

        @flights.receives("select", Select)
        async def select(message: Select, sender: tangram.Sender, area: int) -> dict[str, object]:
            self.calls.append((node, message.icao))
            return {"node": node, "by": sender.id, "of": sender.address, "area": area, **sender.metadata}

        @flights.receives("note", dict)
        async def note(message: dict[str, Any]) -> None:
            self.calls.append((node, message["n"]))
            if message.get("wait"):
                await self.gate.wait()

        @flights.receives("slow", dict, reply_timeout=1)
        async def slow(message: dict[str, Any]) -> None:
            self.calls.append((node, "slow"))
            await trio.sleep_forever()

        @flights.receives("refuse", dict)
        async def refuse(message: dict[str, Any]) -> None:
            raise tangram.Refused("not you")

        @flights.receives("raw", bytes)
        async def raw(message: bytes) -> int:
            return len(message)

        return plugin


async def reason_of(push: Callable[[], Any]) -> str:
    with pytest.raises(tangram.Refused) as refused:
        await push()
    return refused.value.reason


def results(server: RunningTangram) -> dict[str, int]:
    return server.push_results(NAME)


async def test_handlers_on_another_node_answer() -> None:
    """Sender, reply, faults, refusals, large and binary payloads are those of one server."""
    world = World()
    async with two_servers(world.plugin) as (a, b):
        claims = {"role": "pilot", "big": 2**70}
        async with a.join("flights:7", id="ann", metadata=claims) as channel:
            assert await channel.push("select", {"icao": "x"}) == {
                "node": "b",
                "by": "ann",
                "of": "127.0.0.1",
                "area": 7,
                **claims,
            }
            assert await channel.push("raw", b"\x00" * 200_000) == 200_000
            assert await reason_of(lambda: channel.push("refuse", {})) == "not you"
            with pytest.raises(tangram.Refused) as refused:
                await channel.push("select", {"icao": 3})
            assert refused.value.response["detail"][0]["loc"] == ["payload", "icao"]
        async with a.join("flights:seven") as channel:
            assert await reason_of(lambda: channel.push("select", {"icao": "x"})) == "invalid payload"
        assert results(b) == {"ok": 2, "refused": 1, "invalid": 2}
        assert results(a) == {}


async def test_pushes_of_one_sender_keep_their_order() -> None:
    """Also while the first one waits; another sender does not wait for it."""
    world = World()
    async with two_servers(world.plugin) as (a, _):
        async with a.join("flights:1") as first, a.join("flights:1") as second:
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(first.push, "note", {"n": number, "wait": number == 0})
                    await trio.testing.wait_all_tasks_blocked()
                while not world.calls:
                    await trio.testing.wait_all_tasks_blocked(0.01)
                await second.push("note", {"n": "other"})
                assert world.calls == [("b", 0), ("b", "other")]
                world.gate.set()
            assert world.calls[2:] == [("b", number) for number in range(1, 20)]


@pytest.mark.slow
async def test_a_slow_handler_on_another_node_is_cancelled_in_time() -> None:
    """Its deadline holds on both nodes, and the next push is handled."""
    world = World()
    async with two_servers(world.plugin) as (a, _):
        async with a.join("flights:1") as channel:
            assert await reason_of(lambda: channel.push("slow", {})) == "timeout"
            await channel.push("note", {"n": 1})
        assert world.calls == [("b", "slow"), ("b", 1)]


@pytest.mark.slow
async def test_a_push_that_no_node_answers_is_interrupted() -> None:
    """A push waits for a holder; without one its reply is an error, and so it is for a node that ends."""
    world = World()
    async with two_servers(world.plugin) as (a, b):
        assert a.server.tree is not None
        placement = a.server.tree.placement
        holder = placement.holder
        async with a.join("flights:1") as channel:
            placement.holder = lambda _plugin: None  # type: ignore[method-assign, assignment]
            assert await reason_of(lambda: channel.push("note", {"n": 1})) == "restarting"
            a.server.tree.quarantined[NAME] = crash_of(
                NAME, OSError("the device is gone"), at=0, incarnation=1
            )
            assert await reason_of(lambda: channel.push("note", {"n": 1})) == "quarantined"
            del a.server.tree.quarantined[NAME]
            assert world.calls == []

            async with trio.open_nursery() as nursery:

                async def push() -> None:
                    assert await channel.push("note", {"n": 2}) == {}

                nursery.start_soon(push)
                await trio.testing.wait_all_tasks_blocked()
                placement.holder = holder  # type: ignore[method-assign]
            assert world.calls == [("b", 2)]

            async with trio.open_nursery() as nursery:

                async def interrupted() -> None:
                    assert await reason_of(lambda: channel.push("note", {"n": 3, "wait": 1})) == "restarting"

                nursery.start_soon(interrupted)
                while ("b", 3) not in world.calls:
                    await trio.testing.wait_all_tasks_blocked(0.01)
                assert b.server.tree is not None
                assert b.server.tree.operator is not None
                await b.server.tree.operator.stop_plugin(NAME)  # type: ignore[attr-defined]
        assert results(b) == {"ok": 1, "interrupted": 1}


@pytest.mark.slow
async def test_a_plugin_that_comes_here_answers_after_the_pushes_on_their_way() -> None:
    """The pushes of a sender keep their order across the move."""
    world = World()
    async with two_servers(world.plugin) as (a, b):
        async with a.join("flights:1") as channel, trio.open_nursery() as nursery:
            nursery.start_soon(channel.push, "note", {"n": 1, "wait": True})
            while not world.calls:
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert b.server.tree is not None
            b.server.tree.placement.move(NAME)
            nursery.start_soon(channel.push, "note", {"n": 2})
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert world.calls == [("b", 1)]
            world.gate.set()
            while len(world.calls) < 2:
                await trio.testing.wait_all_tasks_blocked(0.01)
            await channel.push("note", {"n": 3})
        assert world.calls == [("b", 1), ("a", 2), ("a", 3)]


async def test_a_client_cannot_send_a_push_as_a_node_does() -> None:
    """The listener believes the signed envelope alone, and the digest in it covers the body."""
    push = RelayedPush(NAME, "flights:1", "note", b'{"n": 1}', False, 5, "eve", "c", "", b"{}")
    body = msgspec.msgpack.encode(push)
    world = World()
    async with two_servers(world.plugin) as (a, b):
        assert b.server.tree is not None
        address = b.server.tree.nodes.alive()["b"].address  # type: ignore[union-attr]
        assert address is not None
        host, _, port = address.rpartition(":")
        for url in (a.url, f"http://{host}:{port}"):
            async with await trio.open_tcp_stream(host, int(url.rpartition(":")[2])) as stream:
                head = (
                    b'POST / HTTP/1.1\r\nhost: %b\r\ntangram-request: {"node":"a","push":"%b"}\r\n'
                    b"tangram.push: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
                )
                await stream.send_all(head % (host.encode(), b"0" * 64, len(body)) + body)
                answer = b"".join([bytes(part) async for part in stream])
            assert answer.split()[1] in {b"403", b"404", b"405"}
        assert world.calls == []
