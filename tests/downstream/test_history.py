"""A history that the operator turns on for a published plugin, which knows nothing of it."""

from __future__ import annotations

import json
import signal
from typing import Any

import redis
import trio

from tangram.client import Channel, fetch_token, open_socket
from tangram.testing import Proxy, open_proxy
from tests.downstream.harness import Environment, restart
from tests.e2e.harness import Server, open_server

HISTORY = '[[channel.history]]\ntopics = "system"\nsize = 1000\n'


def is_clock(payload: Any) -> bool:
    """Return whether a message has a value that no other second has."""
    return payload["el"] in {"uptime", "info_utc"}


class Watched:
    """The messages of one client."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.messages: list[str] = []
        self._changed = trio.Event()

    async def read(self) -> None:
        while True:
            event = await self.channel.receive()
            if event.name == "update-node" and is_clock(event.payload):
                self.messages.append(json.dumps(event.payload))
                self._changed.set()

    async def wait_more(self, count: int = 4) -> None:
        wanted = len(self.messages) + count
        with trio.fail_after(60):
            while len(self.messages) < wanted:
                self._changed = trio.Event()
                await self._changed.wait()


async def cut(_: Server, proxy: Proxy) -> None:
    proxy.reset_all()


async def reload(server: Server, _: Proxy) -> None:
    server.send(signal.SIGHUP)


async def test_the_messages_of_a_published_plugin_are_recovered(full: Environment) -> None:
    """A client misses nothing over a cut connection, a reload and a restart of the plugin."""
    async with open_server(full, "tangram_system", extra=HISTORY) as server:
        broker: Any = redis.Redis.from_url(server.events("broker ready")[-1]["url"])
        subscriber = broker.pubsub()
        subscriber.subscribe("to:system:update-node")
        async with open_proxy("127.0.0.1", server.home.port) as proxy, trio.open_nursery() as nursery:
            token = await fetch_token(server.url, "system")
            async with open_socket(f"http://127.0.0.1:{proxy.port}") as socket:
                channel = await socket.join("system", token=token.token, recover=True)
                watched = Watched(channel)
                nursery.start_soon(watched.read)
                await watched.wait_more()
                for strike in (cut, reload):
                    joins = channel.joins
                    await strike(server, proxy)
                    await watched.wait_more()
                    assert channel.joins > joins
                    assert channel.recovered is True, channel.reason
                await restart(server, "tangram_system")
                await watched.wait_more()
                nursery.cancel_scope.cancel()
        published = [
            message["data"].decode()
            for message in iter(subscriber.get_message, None)
            if message["type"] == "message" and is_clock(json.loads(message["data"]))
        ]
        subscriber.close()
        broker.close()

    # The last message before a cut may come again, and two lives of the plugin may publish in one second.
    received = list(dict.fromkeys(watched.messages))
    every = list(dict.fromkeys(json.dumps(json.loads(text)) for text in published))
    begin = every.index(received[0])
    assert received == every[begin : begin + len(received)]
