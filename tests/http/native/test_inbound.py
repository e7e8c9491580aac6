"""Pushes from clients to a subscriber, through the engine, the bus and a real broker."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator

import hiredis
import pytest
import trio

from tangram.bus import Bus
from tangram.channels.policy import Authorizer
from tangram.gateway.channels import Channels
from tangram.testing import RealBroker, open_broker
from tests.channels.fakes import Settings
from tests.http.harness import Server, hello, serving
from tests.http.native.sockets import Socket, masked, open_socket
from tests.http.serving import SECRET

pytestmark = pytest.mark.slow

CLIENTS, PUSHES, WRITE = 8, 1500, 50
BUFFER = 262_144
"""Bytes of the bus's buffer, for about 4 MB of pushes: the engine waits from half of it on."""


@pytest.fixture
def broker() -> Iterator[RealBroker]:
    with open_broker() as broker:
        yield broker


class Listener:
    """A subscriber with a connection of its own that records the messages."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, int]] = []
        self._more = trio.Event()

    async def wait(self, count: int) -> None:
        while len(self.heard) < count:
            await self._more.wait()

    async def run(self, port: int, *, task_status: trio.TaskStatus[None]) -> None:
        reader = hiredis.Reader()
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"PSUBSCRIBE from:*:push\r\n")
            async for chunk in stream:
                reader.feed(bytes(chunk))
                while (reply := reader.gets()) is not False:
                    if reply[0] == b"psubscribe":
                        task_status.started()
                    else:
                        client, number, _ = json.loads(reply[3])
                        self.heard.append((client, number))
                self._more.set()
                self._more = trio.Event()


async def one_pushes(server: Server, which: int, told: dict[str, list[int]]) -> None:
    client = await open_socket(server)
    async with client.stream:
        await client.join("obs")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(push, client, which)
            await answers(client, told)


async def push(client: Socket, which: int) -> None:
    frames = [
        masked(json.dumps(["1", str(number), "obs", "push", [which, number, "x" * 250]]).encode())
        for number in range(PUSHES)
    ]
    for start in range(0, PUSHES, WRITE):
        await client.stream.send_all(b"".join(frames[start : start + WRITE]))


async def answers(client: Socket, told: dict[str, list[int]]) -> None:
    for _ in range(PUSHES):
        _, ref, _, event, payload = json.loads(await client.receive())
        assert event == "phx_reply"
        told[payload["status"]].append(int(ref))


@pytest.mark.parametrize("patient", [True, False])
async def test_nothing_is_lost_between_ok_and_a_subscriber(broker: RealBroker, patient: bool) -> None:
    """A subscriber gets exactly the pushes that were answered ok, in order.

    Clients push more than the bus holds, as fast as they can. Each push is answered once. Where the engine
    waits for room in the bus, no push is refused.
    """
    listener, told = Listener(), [defaultdict[str, list[int]](list) for _ in range(CLIENTS)]
    bus = Bus(broker.url, max_buffer=BUFFER)
    channels = Channels(
        Settings(presence=False),
        SECRET,
        bus.publish_all_nowait,
        authorizers=list[Authorizer](),
        backpressure=lambda: bus if patient else None,
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            await nursery.start(listener.run, broker.port)
            await nursery.start(channels.run)
            async with serving("native", hello, channels=channels) as server:
                await all_push(server, told)
            await listener.wait(sum(len(one["ok"]) for one in told))
            await trio.sleep(0.1)  # more than that should not come
            nursery.cancel_scope.cancel()

    for which, one in enumerate(told):
        assert sorted(one["ok"] + one["error"]) == list(range(PUSHES))
        assert [number for client, number in listener.heard if client == which] == sorted(one["ok"])
        if patient:
            assert one["ok"] == list(range(PUSHES))
    assert patient or any(one["error"] for one in told), "the buffer was never full: the test proves nothing"


async def all_push(server: Server, told: list[defaultdict[str, list[int]]]) -> None:
    async with trio.open_nursery() as nursery:
        for which, one in enumerate(told):
            nursery.start_soon(one_pushes, server, which, one)
