from __future__ import annotations

import pytest
import trio

from tangram.channels import disconnects
from tangram.client import Token, fetch_token, open_socket
from tangram.errors import ChannelClosed, Refused
from tests.http.serving import OPERATOR, Server, open_server

pytestmark = pytest.mark.slow


async def token(server: Server, topic: str, id_: str | None = None) -> str:
    return (await fetch_token(server.url, topic, id_)).token


async def test_tokens_are_fetched_or_refused() -> None:
    """The answer is a Token; a refusal has the server's text; no server is ChannelClosed."""
    with trio.fail_after(60):
        async with open_server() as server:
            fetched = await fetch_token(server.url + "/", "obs", "alice")
            assert isinstance(fetched, Token)
            assert (fetched.channel, fetched.id) == ("obs", "alice")
            with pytest.raises(Refused, match="operator only"):
                await fetch_token(server.url, "admin")
            assert (await fetch_token(server.url, "admin", bearer=OPERATOR)).channel == "admin"
        with pytest.raises(ChannelClosed):
            await fetch_token(server.url, "obs")
        with pytest.raises(ChannelClosed):
            async with open_socket(server.url):
                pass


async def test_pushes_events_and_the_end_of_a_channel() -> None:
    """JSON and bytes go both ways, a refused push raises, a leave ends the iteration."""
    with trio.fail_after(60):
        async with open_server() as server, open_socket(server.url) as socket:
            channel = await socket.join("obs", token=await token(server, "obs"))
            assert await channel.push("a", [1, "é"]) == {}
            assert await channel.push("b", b"\x00\xff") == {}
            await channel.push_nowait("c", {"x": None})
            with pytest.raises(Refused, match="event too long"):
                await channel.push("e" * 300)
            for push in (channel.push, channel.push_nowait):
                with pytest.raises(ValueError, match="the event 'staff:delete' holds a colon"):
                    await push("staff:delete")
            server.bus.publish_nowait("to:obs:one", b"[1]")
            server.bus.publish_nowait("to:obs:two", b"\x01")
            await trio.testing.wait_all_tasks_blocked(0.05)
            await channel.leave()
            events = [event async for event in channel]

            assert [(event.name, event.payload) for event in events] == [("one", [1]), ("two", b"\x01")]
            assert server.bus.payloads("from:obs:a") == ['[1,"é"]'.encode()]
            assert server.bus.payloads("from:obs:b") == [b"\x00\xff"]
            assert server.bus.payloads("from:obs:c") == [b'{"x":null}']
            with pytest.raises(ChannelClosed):
                await channel.push("late")


async def test_a_refused_join_raises_the_reason() -> None:
    """The exception has the server's reason, and the socket stays open."""
    with trio.fail_after(60):
        async with open_server() as server, open_socket(server.url) as socket:
            with pytest.raises(Refused, match="wrong channel"):
                await socket.join("obs", token=await token(server, "other"))
            with pytest.raises(Refused, match="unauthorized"):
                await socket.join("obs")

            await socket.join("obs", token=await token(server, "obs"))


async def test_presence_follows_the_members() -> None:
    """State and differences give the list of members in any order."""
    with trio.fail_after(60):
        async with open_server() as server, open_socket(server.url) as first:
            channel = await first.join("obs", token=await token(server, "obs", "alice"))
            async with open_socket(server.url) as second:
                other = await second.join("obs", token=await token(server, "obs", "bob"))
                await channel.wait_presence(lambda there: set(there) == {"alice", "bob"})
                await other.wait_presence(lambda there: set(there) == {"alice", "bob"})
            await channel.wait_presence(lambda there: set(there) == {"alice"})


async def test_the_client_reconnects_and_joins_again() -> None:
    """After a restart of the server the same channel object is joined a second time."""
    with trio.fail_after(60):
        async with open_server() as server, open_socket(server.url) as socket:
            channel = await socket.join("obs", token=await token(server, "obs"))
            await server.channels.drain(disconnects.RESTART)
            server.channels._draining = False
            await channel.push("hello", timeout=5)
            server.bus.publish_nowait("to:obs:e", b"[1]")

            assert (await channel.receive()).payload == [1]
            assert (channel.joins, socket.connections) == (2, 2)


async def test_without_reconnection_the_end_has_a_code() -> None:
    """With reconnect=False the channels close with the code."""
    with trio.fail_after(60):
        async with open_server() as server, open_socket(server.url, reconnect=False) as socket:
            channel = await socket.join("obs", token=await token(server, "obs"))
            await server.channels.drain(disconnects.SHUTDOWN)
            with pytest.raises(ChannelClosed) as caught:
                await channel.receive()

            assert caught.value.code == socket.close_code == 1001


async def test_an_error_of_the_block_is_not_wrapped() -> None:
    """An error of the block is raised without a group."""
    with trio.fail_after(60):
        async with open_server() as server:
            with pytest.raises(KeyError):
                async with open_socket(server.url):
                    raise KeyError


async def test_heartbeats_go_out() -> None:
    """The client sends heartbeats."""
    with trio.fail_after(60):
        async with open_server() as server, open_socket(server.url, heartbeat=0.05):
            while len(server.bus.payloads("from:phoenix:heartbeat")) < 4:  # noqa: ASYNC110 - the bus is a fake
                await trio.sleep(0.01)


async def test_a_connection_that_ends_in_its_handshake_is_tried_again_at_once() -> None:
    """A connection that is cut before the upgrade is answered fails at once."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]

    async def cut_off(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, cut_off, [listener])
        with trio.fail_after(30), pytest.raises(ChannelClosed, match="cannot connect"):
            async with open_socket(f"http://127.0.0.1:{port}"):
                pass
        nursery.cancel_scope.cancel()
