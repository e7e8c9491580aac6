"""A plugin whose service and route await futures of a Rust extension (pyo3) on an island."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from tests.downstream.harness import Environment, restart
from tests.e2e.harness import open_server, wait_until

pytestmark = pytest.mark.slow

SOURCE = """
import obstore, os
from obstore.store import HTTPStore, MemoryStore
from fastapi import APIRouter
import tangram_core

router = APIRouter(prefix="/rusty")
plugin = tangram_core.Plugin(routers=[router])
store = MemoryStore()
waiting = HTTPStore.from_url(os.environ["NEVER"], client_options={"allow_http": True, "timeout": "100s"})

@router.get("/")
async def there_and_back() -> dict[str, str]:
    await obstore.put_async(store, "a", b"through rust")
    answer = await obstore.get_async(store, "a")
    return {"got": bytes(await answer.bytes_async()).decode()}

@plugin.register_service()
async def wait_for_ever(state) -> None:
    await obstore.get_async(waiting, "nothing")
"""


async def test_rust_futures_run_are_cancelled_and_run_again(full: Environment) -> None:
    """A route awaits Rust futures, and a service that waits for one ends at a restart.

    It waits again in the next incarnation; a completion that comes too late for its loop is ignored.
    """
    asked: list[trio.SocketStream] = []

    async def never_answer(client: trio.SocketStream) -> None:
        async with client:
            asked.append(client)
            await client.receive_some(1000)
            await trio.sleep_forever()

    (full.site / "rusty.py").write_text(SOURCE)
    full.announce("rusty", "rusty:plugin", group="tangram_core.plugins")
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, never_answer, [listener])
        async with open_server(full, "rusty", environ={"NEVER": f"http://127.0.0.1:{port}"}) as server:

            async def asks(count: int) -> bool:
                return len(asked) >= count

            assert await server.get("/rusty/") == {"got": "through rust"}
            for life in (1, 2, 3):
                assert await wait_until(partial(asks, life))
                await restart(server, "rusty")
                assert await server.get("/rusty/") == {"got": "through rust"}
            assert await wait_until(partial(asks, 4))
            with trio.fail_after(60):
                await asked[-1].aclose()  # the service fails by it, and begins anew
            assert await wait_until(partial(asks, 5))
            assert await server.get("/rusty/") == {"got": "through rust"}
            assert not [one for one in server.records if "abandoned" in one["event"]]
            assert await server.stop() == 0
        nursery.cancel_scope.cancel()
