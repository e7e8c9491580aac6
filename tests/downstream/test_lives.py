"""The published plugins over a crash, an outage of an external Redis, restarts and a stop.

Each time they run again, and none of their resources is left over.
"""

from __future__ import annotations

import psutil
import pytest

from tangram.errors import ChannelClosed, Refused
from tangram.testing import open_broker
from tests.downstream.harness import PUBLISHED, Environment, restart
from tests.downstream.test_published import receive_messages
from tests.e2e.harness import Server, open_server, wait_until

pytestmark = pytest.mark.slow

WITNESS = '''
import asyncio, gc
import httpx, redis.asyncio
import tangram
from tangram.compat.state import BackendState

router = tangram.APIRouter(prefix="/witness")
plugin = tangram.Plugin(routers=[router])
KINDS = {
    "asyncio tasks": lambda it: isinstance(it, asyncio.Task) and not it.done(),
    "asyncio loops": lambda it: isinstance(it, asyncio.BaseEventLoop) and not it.is_closed(),
    "http clients": lambda it: isinstance(it, httpx.AsyncClient) and not it.is_closed,
    "redis connections": lambda it: isinstance(it, redis.asyncio.Connection) and it.is_connected,
}


@router.get("/census")
async def census() -> dict[str, int]:
    gc.unfreeze()  # what was there at the first start is not shown otherwise
    gc.collect()
    living = gc.get_objects()
    return {name: sum(1 for it in living if fits(it)) for name, fits in KINDS.items()}


@router.post("/break")
async def break_it() -> int:
    """From now on what an existing plugin publishes raises, as if its own service were wrong."""
    def publish(*args, **kwargs):
        raise LookupError("the service is wrong")

    states = [it for it in gc.get_objects() if isinstance(it, BackendState) and "redis_client" in vars(it)]
    for state in states:
        state.redis_client.publish = publish
    return len(states)
'''


async def serves(server: Server) -> bool:
    """Return whether a route answers and a service's message arrives over the WebSocket."""
    try:
        await receive_messages(server, 1)
    except (Refused, ChannelClosed):  # while Redis is away, which a client is logged
        return False
    return bool((await server.get("/weather/"))["message"])


async def census(server: Server) -> dict[str, int]:
    """Return the numbers of tasks, clients, threads and descriptors in the server's process."""
    process = psutil.Process(server.process.pid)
    inside: dict[str, int] = await server.get("/witness/census")
    return inside | {"threads": process.num_threads(), "descriptors": process.num_fds()}


async def wait_nothing_more(server: Server, before: dict[str, int]) -> None:
    """Wait until the census is no larger than before.

    The connection that asks and one waiting thread are allowed.
    """
    spare = {"threads": 1, "descriptors": 2}
    more: dict[str, int] = {}

    async def nothing_more() -> bool:
        now = await census(server)
        more.clear()
        more.update({kind: now[kind] - count for kind, count in before.items()})
        return all(count <= spare.get(kind, 0) for kind, count in more.items())

    try:
        await wait_until(nothing_more, within=60)
    except AssertionError as error:
        raise AssertionError(f"left over: {more}, of {before}") from error


def crashes(server: Server) -> list[str]:
    """Return the names of crashed plugins.

    A service that fails while Redis is away ends its plugin's incarnation, which is no crash.
    """
    return [one["child"] for one in server.events("child crashed") if one["supervisor"] != "tangram_system"]


async def test_a_crash_an_outage_and_restarts_leave_nothing_behind(full: Environment) -> None:
    """A crash, an outage and restarts leave no task, client, connection or thread behind.

    A published plugin's service raises: this is one crash, of that plugin, and it publishes again. The
    external Redis dies and comes back without a crash. The stop is clean.
    """
    full.install("witness", WITNESS)
    with open_broker() as broker:
        async with open_server(full, *PUBLISHED, "witness", core=f'redis_url = "{broker.url}"') as server:
            assert await wait_until(lambda: serves(server), within=60)
            await restart(server, "tangram_system")
            assert await wait_until(lambda: serves(server), within=60)
            before = await census(server)
            assert before["asyncio tasks"] > 0
            assert before["redis connections"] > 0

            answer = await server.request("POST", "/witness/break")
            assert answer.json() > 0
            await server.wait_line("child crashed")
            assert await wait_until(lambda: serves(server), within=60)
            assert [name for name in crashes(server) if name.startswith("plugin:")] == [
                "plugin:tangram_system"
            ]
            assert any("the service is wrong" in event["cause"] for event in server.events("child crashed"))
            await wait_nothing_more(server, before)

            broker.kill()
            await server.wait_line("redis lost")
            broker.start()
            assert await wait_until(lambda: serves(server), within=60)
            assert crashes(server) == ["plugin:tangram_system"]
            await wait_nothing_more(server, before)

            for name in PUBLISHED:
                await restart(server, name)
            assert await wait_until(lambda: serves(server), within=60)
            await wait_nothing_more(server, before)
            assert await server.stop() == 0
