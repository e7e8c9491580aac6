from __future__ import annotations

import trio

from tangram.client import fetch_token, open_socket
from tests.transports.serving import open_server


async def test_the_whole_way_through_quart() -> None:
    """A client fetches a token, joins, pushes with a reply, hears events of both kinds, and leaves."""
    with trio.fail_after(10):
        async with open_server() as server:
            token = await fetch_token(server.url, "system")
            async with open_socket(server.url) as socket:
                channel = await socket.join("system", token=token.token)
                response = await channel.push("hello", {"n": 1})
                server.bus.publish_nowait("to:system:update", b'{"t": 1}')
                server.bus.publish_nowait("to:system:raw", b"\x00\xff")
                first, second = await channel.receive(), await channel.receive()
                await channel.wait_presence(lambda presence: token.id in presence)
                await channel.leave()

            assert response == {}
            assert (first.name, first.payload, first.binary) == ("update", {"t": 1}, False)
            assert (second.name, second.payload, second.binary) == ("raw", b"\x00\xff", True)
            assert server.bus.payloads("from:system:hello") == [b'{"n":1}']
            assert server.bus.payloads("from:system:phx_join") == [b"{}"]
