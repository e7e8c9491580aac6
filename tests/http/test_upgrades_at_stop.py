"""WebSocket handshakes and joins that meet a server that ends."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock as Clock

from tangram.http.closing import Closing
from tests.http.harness import serving
from tests.http.native.sockets import serving_channels

UPGRADE = (
    b"GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

CLOSED = b"\x88\x02\x03\xf4"
"""A close frame with 1012."""


async def accepting(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Accept every WebSocket, and wait for its end."""
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


@pytest.mark.parametrize("engine", ["native", "hypercorn"])
@pytest.mark.parametrize("proxied", [True, False], ids=["proxy", "client"])
async def test_a_proxy_gets_no_answer_to_an_upgrade_after_the_stop(
    engine: str, proxied: bool, clock: Clock
) -> None:
    """So it asks another node; a client without a proxy is upgraded, and closed with the code of the stop."""
    async with (
        serving(engine, accepting, is_proxy=lambda _: proxied, takes_waiting=lambda: True) as server,
        await server.connect() as client,
    ):
        await trio.testing.wait_all_tasks_blocked(0.01)
        server.running.scope.cancel()
        await trio.sleep(0.01)
        await client.send(UPGRADE)
        answer = b""
        with trio.fail_after(10):
            while not answer.endswith(CLOSED) and (data := await client.stream.receive_some(4096)):
                answer += data

    if proxied:
        assert answer == b""
    else:
        assert answer.startswith(b"HTTP/1.1 101")
        assert answer.endswith(CLOSED)


async def test_a_client_that_is_about_to_join_is_closed_after_the_answer(clock: Clock) -> None:
    """Its attempt leads to a join, although the stop begins between its upgrade and its join."""
    async with serving_channels() as served:
        served.server.engine.closing = Closing(served.channels.wait_settled)
        client = await served.open()
        served.server.running.scope.cancel()
        await trio.sleep(0.5)
        await client.join("obs:a")
        code = await client.closed()
        await client.aclose()

    assert code == 1012


async def test_a_stop_waits_a_second_at_most_for_a_client_that_does_not_join(clock: Clock) -> None:
    """It is counted from the connect, so that clients without a topic cost nothing later."""
    async with serving_channels() as served:
        served.server.engine.closing = Closing(served.channels.wait_settled)
        client = await served.open()
        await trio.sleep(0.8)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.closed)
            took = await served.server.stop()
        await client.aclose()

    assert 0.1 < took < 0.5
