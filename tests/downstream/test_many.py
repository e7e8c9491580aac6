"""The published plugins in two workers, and on two nodes behind a balancer, compared with one process."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis
import trio

from tangram.client import fetch_token, open_socket
from tangram.testing import free_port, open_broker
from tests.downstream.harness import PUBLISHED, Environment
from tests.downstream.test_published import ask, of_the_internet
from tests.e2e.browser import Browser
from tests.e2e.harness import Server, open_process, open_server

SECRET = '[channel]\njwt_secret = "the same on each node, and long enough"\n'
ROUNDS = 3
CLIENTS = 6
HEARD = 8


@asynccontextmanager
async def open_balancer(ports: Sequence[int]) -> AsyncIterator[str]:
    """Send each connection to the next server; yield the URL."""
    servers = cycle(ports)

    async def copy(source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            async for data in source:
                await target.send_all(data)
        except trio.BrokenResourceError:
            pass  # the other side has ended
        scope.cancel()

    async def serve(client: trio.SocketStream) -> None:
        async with (
            client,
            await trio.open_tcp_stream("127.0.0.1", next(servers)) as server,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(copy, client, server, nursery.cancel_scope)
            nursery.start_soon(copy, server, client, nursery.cancel_scope)

    port = free_port()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_tcp, serve, port, host="127.0.0.1"))
        yield f"http://127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_many(kind: str, folder: Path, redis_url: str) -> AsyncIterator[tuple[list[str], str]]:
    """Run two workers or two nodes; yield the URLs of the servers, and that of the balancer."""
    core = f'redis_url = "{redis_url}"'
    async with AsyncExitStack() as stack:
        if kind == "workers":
            home = Environment(folder / "home", name="full")
            home.configure(PUBLISHED, SECRET, core)
            home.config.write_text(home.config.read_text().replace("[server]\n", "[server]\nworkers = 2\n"))
            server = await stack.enter_async_context(open_process(home))
            await server.wait_line("all workers ready")
            yield [server.url] * ROUNDS, server.url  # the kernel is the balancer
            return
        servers: list[Server] = []
        for name in ("a", "b"):
            home = Environment(folder / name, name="full")
            opened = open_server(home, *PUBLISHED, core=core, extra=SECRET)
            servers.append(await stack.enter_async_context(opened))
        front = await stack.enter_async_context(open_balancer([one.home.port for one in servers]))
        yield [one.url for one in servers], front


def publishers(redis_url: str) -> list[int]:
    """Return the processes that published the next messages of the system plugin."""
    client: Any = redis.Redis.from_url(redis_url, socket_timeout=20)
    found: list[int] = []
    with client, client.monitor() as monitor:
        until = time.monotonic() + 60
        for said in monitor.listen():
            assert time.monotonic() < until, "the system plugin does not publish"
            # A placed plugin publishes by a function; the caller counts, not the function's own PUBLISH.
            if "TO:SYSTEM:" not in str(said["command"]).upper() or said["client_type"] == "lua":
                continue
            port = int(said["client_port"])
            found += [
                one.pid
                for one in psutil.net_connections("tcp")
                if one.pid and one.laddr and one.laddr.port == port
            ]
            if len(found) >= HEARD:
                return found
    return found


async def front_end(url: str) -> dict[str, Any]:
    """Return the plugins of the manifest, and the contents of their files."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        plugins = (await client.get("/manifest.json")).json()["plugins"]
        paths = [
            f"/plugins/{name}/{entry[key]}"
            for name, entry in plugins.items()
            for key in sorted({"main", "style"} & entry.keys())
        ]
        answers = [await client.get(path) for path in ("/", *paths)]
        assert {answer.status_code for answer in answers} == {200}
        return {"plugins": plugins, "files": [answer.content for answer in answers]}


async def hear(url: str) -> None:
    """Join through the balancer, push, and receive values of the system plugin."""
    token = await fetch_token(url, "system")
    async with open_socket(url) as socket:
        channel = await socket.join("system", token=token.token)
        await channel.push("anything", {"n": 1})
        with trio.fail_after(60):
            names = set[str]()
            async for event in channel:
                names.add(event.payload["el"] if event.name == "update-node" else "")
                if {"uptime", "cpu_load"} <= names:
                    return


@pytest.mark.parametrize("kind", ["workers", "nodes"])
async def test_several_processes_are_as_one(kind: str, tmp_path: Path, browser: Browser) -> None:
    """Answers and front ends are those of one process, and one process publishes."""
    async with open_server(Environment(tmp_path / "one", name="full"), *PUBLISHED) as one:
        answers, files = await ask(one.url), await front_end(one.url)
    with open_broker() as broker:
        async with open_many(kind, tmp_path, broker.url) as (urls, front):
            for url in [*urls, front, front]:
                assert await ask(url) == answers
                assert await front_end(url) == files
            async with trio.open_nursery() as nursery:
                for _ in range(CLIENTS):
                    nursery.start_soon(hear, front)
            heard = await trio.to_thread.run_sync(publishers, broker.url)
            assert len(heard) >= HEARD
            assert len(set(heard)) == 1
            page = await browser.open_page(front)
            clock = "((document.body.innerText).match(/\\d\\d:\\d\\d:\\d\\d/) || [''])[0]"
            first = await page.wait(clock, within=60)
            await page.wait(f"{clock} !== {json.dumps(first)} && {clock}")
            assert [error for error in page.errors if not of_the_internet(error)] == []
