"""The proxies' configurations of ``deploy/``, run by the real programs before the real server."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import ssl
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import pytest
import trio

from tangram.client import fetch_token, open_socket
from tangram.testing import free_port, open_broker
from tests.docs.blocks import blocks
from tests.e2e.harness import LONG, Home, open_server, wait_until
from tests.e2e.joining import joining
from tests.e2e.polling import polling
from tests.e2e.prepare import ROOT, find_proxy
from tests.e2e.test_proxies import BROWSER, CLIENT, answers

pytestmark = pytest.mark.slow

DEPLOY: Final = ROOT / "deploy"
TLS: Final = ROOT / "tests" / "http" / "tls"
UPLOAD: Final = 16 * 1024 * 1024
JOINING: Final = 4
"""Clients that join one time after the other during an upgrade."""
SETTINGS: Final = {"TANGRAM_SERVER__HOSTS": "['maps.example', 'localhost']"}

SOURCE: Final = """
import hashlib
import tangram, trio

router = tangram.APIRouter()
plugin = tangram.Plugin(routers=[router])
released = trio.Event()


@router.get("/through/client")
async def client(request: tangram.Request) -> dict[str, str]:
    return {"client": request.client[0], "scheme": request.scope["scheme"]}


@router.post("/through/upload", max_body=32 * 1024 * 1024)
async def upload(request: tangram.Request) -> str:
    found = hashlib.sha256()
    async for chunk in request.stream():
        found.update(chunk)
    return found.hexdigest()


@router.get("/through/stream")
async def stream() -> tangram.StreamingResponse:
    async def pieces():
        yield b"first"
        with trio.fail_after(60):
            await released.wait()  # until the client has the first piece
        yield b"second"

    return tangram.StreamingResponse(pieces(), media_type="text/plain")


@router.post("/through/release")
async def release() -> None:
    released.set()
"""


class Ports(NamedTuple):
    """The ports of a proxy and of the server behind it, and the proxy's process."""

    plain: int
    secure: int
    upstream: int
    pid: int = 0


def nginx(folder: Path, ports: Ports, prefix: str) -> tuple[str, list[str]]:
    site = (DEPLOY / "nginx.conf").read_text()
    site = replaced(
        site,
        ("listen 80;", f"listen 127.0.0.1:{ports.plain};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{ports.secure} ssl;"),
        ("server 127.0.0.1:2346 ", f"server 127.0.0.1:{ports.upstream} "),
        ("/etc/ssl/certs/maps.example.org.pem", str(TLS / "cert.pem")),
        ("/etc/ssl/private/maps.example.org.key", str(TLS / "key.pem")),
        ("location / {", f"location {prefix}/ {{"),
    )
    places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{place}_temp_path {folder};" for place in places)
    head = f"daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}}"
    config = f"{head}\nhttp {{ access_log off; {temporary}\n{site}\n}}\n"
    return config, ["-p", str(folder), "-e", "stderr", "-c"]


def haproxy(folder: Path, ports: Ports, prefix: str) -> tuple[str, list[str]]:
    both = folder / "both.pem"
    both.write_text((TLS / "cert.pem").read_text() + (TLS / "key.pem").read_text())
    rule = f"use_backend tangram if {{ path_beg {prefix}/ }}" if prefix else "default_backend tangram"
    config = replaced(
        (DEPLOY / "haproxy.cfg").read_text(),
        ("bind :80", f"bind 127.0.0.1:{ports.plain}"),
        (
            "bind :443 ssl crt /etc/haproxy/maps.example.org.pem",
            f"bind 127.0.0.1:{ports.secure} ssl crt {both}",
        ),
        ("default_backend tangram", rule),
        ("127.0.0.1:2346", f"127.0.0.1:{ports.upstream}"),
    )
    return config, ["-f"]


def caddy(folder: Path, ports: Ports, prefix: str) -> tuple[str, list[str]]:
    text = replaced(
        (DEPLOY / "Caddyfile").read_text(),
        ("{$UPSTREAMS:127.0.0.1:2346}", f"127.0.0.1:{ports.upstream}"),
        ("\treverse_proxy ", f"\treverse_proxy {prefix}/* " if prefix else "\treverse_proxy "),
    )
    tls = f"\ttls {TLS / 'cert.pem'} {TLS / 'key.pem'}\n"
    plain = replaced(text, ("{$SITE:maps.example.org}", f"http://:{ports.plain}"))
    secure = replaced(text, ("{$SITE:maps.example.org} {\n", f"https://:{ports.secure} {{\n{tls}"))
    options = f"{{\n\tadmin off\n\tauto_https off\n\tstorage file_system {folder}\n}}\n"
    return options + plain + secure, ["run", "--adapter", "caddyfile", "--config"]


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    """Return the text with each pair replaced; a text that is not there has left the file in ``deploy/``."""
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


PROXIES: Final[dict[str, Callable[[Path, Ports, str], tuple[str, list[str]]]]] = {
    "nginx": nginx,
    "haproxy": haproxy,
    "caddy": caddy,
}


def for_nodes(name: str, config: str, nodes: list[int], upstream: int) -> str:
    """Return a configuration with the part for three nodes of docs/nodes.md."""
    (block,) = blocks(name, "docs/nodes.md")
    text = block.text
    for number, port in enumerate(nodes, 1):
        text = replaced(text, (f"10.0.0.{number}:2346", f"127.0.0.1:{port}"))
    if name == "haproxy":
        return config[: config.index("\nbackend tangram\n") + 1] + text
    if name == "caddy":
        return re.sub(r"\treverse_proxy .*?\n\t}\n", lambda _: text, config, flags=re.DOTALL)
    start = config.index("upstream tangram {")
    assert str(upstream) in config[start : config.index("}", start)]
    return config[:start] + text + config[config.index("}", start) + 1 :]


@asynccontextmanager
async def open_proxy(
    name: str, upstream: int, folder: Path, prefix: str, nodes: list[int] | None = None
) -> AsyncIterator[Ports]:
    """Run a proxy with its configuration of ``deploy/`` for the block.

    Before ``nodes`` it has the part of docs/nodes.md.
    """
    program = find_proxy(name)
    if program is None:
        pytest.skip(f"{name} is not installed and could not be: see tests/e2e/prepare.py")
    ports = Ports(free_port(), free_port(), upstream)
    folder.mkdir()  # noqa: ASYNC240 - a temporary folder
    config, arguments = PROXIES[name](folder, ports, prefix)
    if nodes is not None:
        config = for_nodes(name, config, nodes, upstream)
    file = folder / "proxy.conf"
    file.write_text(config)
    with log_of(folder).open("w") as log:
        process = await trio.lowlevel.open_process(
            [program, *arguments, str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd=folder,
            env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
        )
    try:
        for port in (ports.plain, ports.secure):  # Caddy opens them one after the other
            await wait_until(partial(answers, port))
        yield ports._replace(pid=process.pid)
    finally:
        process.terminate()
        with trio.move_on_after(5, shield=True):
            await process.wait()
        if process.returncode is None:
            process.kill()


def log_of(folder: Path) -> Path:
    """Return the file with the errors of the proxy in that folder."""
    return folder / "log"


def insecure() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(TLS / "cert.pem"))
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.fixture(params=list(PROXIES))
def proxy(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("prefix", ["", "/tangram"], ids=["host", "path"])
async def test_everything_works_through_the_proxy(
    home: Home, tmp_path: Path, proxy: str, prefix: str
) -> None:
    """Client address, TLS, tokens and WebSockets, a streamed answer, a large upload, and a path prefix."""
    home.install("through", SOURCE)
    environ = {**SETTINGS, "TANGRAM_SERVER__ROOT_PATH": prefix}
    async with (
        open_server(home, "through", environ=environ) as server,
        open_proxy(proxy, home.port, tmp_path / "proxy", prefix) as ports,
    ):
        plain, secure = f"http://localhost:{ports.plain}{prefix}", f"https://localhost:{ports.secure}{prefix}"
        transport = httpx.AsyncHTTPTransport(local_address=CLIENT, verify=insecure())
        async with httpx.AsyncClient(transport=transport, timeout=LONG, headers={**BROWSER}) as client:

            async def ready() -> bool:
                return (await client.get(f"{plain}/-/readyz")).status_code == 200

            await wait_until(ready)
            seen = [(await client.get(f"{base}/through/client")).json() for base in (plain, secure)]
            manifests = [(await client.get(f"{base}/manifest.json")).json() for base in (plain, secure)]
            page = await client.get(f"{secure}/")
            docs = await client.get(f"{plain}/docs")
            pieces = await stream_in_pieces(client, plain)
            body = b"x" * UPLOAD
            console = await console_through(client, secure, operator_token(home))
            digest = (await client.post(f"{secure}/through/upload", content=body)).json()
        for base, context in ((plain, None), (secure, insecure())):
            token = await fetch_token(base, "demo", ssl_context=context)
            async with open_socket(base, ssl_context=context) as socket:
                channel = await socket.join("demo", token=token.token)
                await channel.push("hello", {"n": 1})
                await channel.leave()

    assert seen == [{"client": CLIENT, "scheme": "http"}, {"client": CLIENT, "scheme": "https"}]
    urls = [manifest["core"]["config"]["channel"]["url"] for manifest in manifests]
    assert [url.partition("://")[0] for url in urls] == ["http", "https"]
    assert all(url.endswith(f"maps.example{prefix}") for url in urls)
    assert (page.status_code, docs.status_code) == (200, 200)
    assert console == [200, 200, 200, 401]
    assert b"first" in pieces[0]
    assert b"".join(pieces) == b"firstsecond"
    assert digest == hashlib.sha256(body).hexdigest()
    assert "a proxy does not send" not in server.log


def operator_token(home: Home) -> str:
    return (home.state / "operator-token").read_text().strip()


async def console_through(client: httpx.AsyncClient, base: str, token: str) -> list[int]:
    """Return the statuses of the console's page, a login, a read with its cookie, and one without."""
    page = await client.get(f"{base}/-/")
    opened = await client.post(f"{base}/-/session", json={"token": token})
    read = await client.get(f"{base}/-/session")
    client.cookies.clear()
    refused = await client.get(f"{base}/-/session")
    return [page.status_code, opened.status_code, read.status_code, refused.status_code]


async def stream_in_pieces(client: httpx.AsyncClient, base: str) -> list[bytes]:
    """Return the pieces of a streamed answer, whose second one comes only after the first was received."""
    pieces = []
    async with client.stream("GET", f"{base}/through/stream") as response:
        async for piece in response.aiter_raw():
            pieces.append(piece)
            if len(pieces) == 1:
                await client.post(f"{base}/through/release")
    return pieces


STILL: Final = 0.2
"""Seconds for which a balancer stands still: longer than a node keeps connections without a request."""

NODES: Final = """
[channel]
jwt_secret = "the same on each node, and long enough"
[[channel.history]]
topics = "numbers:*"
size = 5000
"""

COUNTER: Final = """
import json
import tangram, trio

plugin = tangram.Plugin(instances="one")


@plugin.register_service()
async def count(state):
    page = await state.history("numbers:ours", limit=1)
    number = json.loads(page.events[-1][1])["n"] if page.events else 0
    while True:
        number += 1
        await state.publish("to:numbers:ours:n", {"n": number})
        await trio.sleep(0.01)
"""

ECHO: Final = """
import tangram

router = tangram.APIRouter()
plugin = tangram.Plugin(routers=[router])


@router.post("/echo")
async def echo() -> str:
    return "answered"
"""


@asynccontextmanager
async def open_listeners(url: str, count: int) -> AsyncIterator[list[list[int]]]:
    """Join clients that recover; yield the numbers of each."""
    heard: list[list[int]] = [[] for _ in range(count)]

    async def listen(numbers: list[int]) -> None:
        token = await fetch_token(url, "numbers:ours")
        async with open_socket(url) as socket:
            channel = await socket.join("numbers:ours", token=token.token, recover=True)
            while True:
                numbers.append((await channel.receive()).payload["n"])

    async with trio.open_nursery() as nursery:
        for numbers in heard:
            nursery.start_soon(listen, numbers)
        yield heard
        nursery.cancel_scope.cancel()


class Nodes:
    """Three nodes on one Redis."""

    def __init__(self, folder: Path, nursery: trio.Nursery, redis_url: str) -> None:
        self.homes = [Home(folder / f"node{number}") for number in range(3)]
        self._nursery = nursery
        self._core = f'redis_url = "{redis_url}"'
        self._stops: dict[int, trio.Event] = {}
        self._ended: dict[int, trio.Event] = {}

    async def start(self, number: int) -> None:
        """Start one, and wait until it is ready."""
        self._stops[number], self._ended[number] = trio.Event(), trio.Event()
        await self._nursery.start(self._run, number)

    async def stop(self, number: int) -> None:
        """Stop one, and wait for its end."""
        self._stops[number].set()
        await self._ended[number].wait()

    async def _run(self, number: int, *, task_status: trio.TaskStatus[None]) -> None:
        home = self.homes[number]
        home.install("counter", COUNTER)
        home.install("echo", ECHO)
        environ = {"TANGRAM_SERVER__HOSTS": "['maps.example', '127.0.0.1', 'localhost']"}
        async with open_server(home, "counter", "echo", core=self._core, extra=NODES, environ=environ):
            task_status.started()
            await self._stops[number].wait()
        self._ended[number].set()


@pytest.mark.parametrize("name", PROXIES)
async def test_three_nodes_are_upgraded_behind_the_balancer_of_the_docs(tmp_path: Path, name: str) -> None:
    """One after the other restarts: each request is answered, each client comes back and misses nothing.

    Others join all the time: each attempt leads to a join, also at a node that stops.
    """
    with open_broker() as broker:
        async with trio.open_nursery() as nursery:
            nodes = Nodes(tmp_path, nursery, broker.url)
            for number in range(3):
                await nodes.start(number)
            at = [home.port for home in nodes.homes]
            async with (
                open_proxy(name, at[0], tmp_path / "proxy", "", at) as ports,
                open_listeners(f"http://127.0.0.1:{ports.plain}", 6) as heard,
            ):

                async def wait_numbers(behind: int) -> None:
                    await wait_until(lambda: all_hear(heard, behind))

                await wait_numbers(20)
                front = Home(tmp_path / "front", ports.plain)
                token = await fetch_token(f"http://127.0.0.1:{ports.plain}", "numbers:other")
                async with (
                    polling(front, "/-/healthz") as polls,
                    polling(front, "/echo", method="POST") as posts,  # which a balancer sends once only
                    joining(ports.plain, "numbers:other", token.token, clients=JOINING) as joins,
                ):
                    for number in range(3):
                        async with trio.open_nursery() as both:
                            both.start_soon(stand_still, ports.pid)
                            await nodes.stop(number)
                        await nodes.start(number)
                    await wait_numbers(20 + max(numbers[-1] for numbers in heard))
            for number in range(3):
                await nodes.stop(number)

    for polled in (polls, posts):
        assert polled.good
        bad = (polled.refused, polled.reset, polled.other)
        assert bad == (0, 0, []), log_of(tmp_path / "proxy").read_text()[-20_000:]
    assert joins.joined > JOINING
    assert joins.ended == Counter()
    for numbers in heard:
        assert numbers == list(range(numbers[0], numbers[-1] + 1))


async def stand_still(pid: int) -> None:
    """Stop a balancer for as long as a busy machine may, while a node closes the connections that it kept.

    Requests that come meanwhile wait in it, and meet connections that are closed, as it learns only then.
    """
    os.kill(pid, signal.SIGSTOP)
    try:
        await trio.sleep(STILL)
    finally:
        os.kill(pid, signal.SIGCONT)


async def all_hear(heard: list[list[int]], behind: int) -> bool:
    return all(numbers and numbers[-1] > behind for numbers in heard)


# The key and its answer are the example of RFC 6455.
UPGRADE: Final = (
    b"GET /websocket?vsn=2.0.0 HTTP/1.1\r\nHost: localhost\r\n"
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
UPGRADED: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


class UpgradeNode:
    """A node of which the test only needs its first answer to an upgrade."""

    def __init__(self, *, takes: bool) -> None:
        self.takes = takes
        self.asked = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # HAProxy resets a check that is answered late
            await self._serve(stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = await stream.receive_some(4096)
            if not data:
                return
            head += data
        if b"/-/readyz" in head:
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return
        self.asked += 1
        if self.takes:
            await stream.send_all(UPGRADED)
            await stream.receive_some(1)


async def test_the_next_node_gets_an_upgrade_that_a_node_leaves_without_an_answer(
    tmp_path: Path, proxy: str
) -> None:
    """A node that stops closes the connection of such a request, and the client notices nothing."""
    nodes = [UpgradeNode(takes=takes) for takes in (False, True, True)]
    answers: list[bytes] = []
    async with trio.open_nursery() as nursery:
        at = []
        for node in nodes:
            (listener,) = await nursery.start(partial(trio.serve_tcp, node.serve, 0, host="127.0.0.1"))
            at.append(listener.socket.getsockname()[1])
        async with open_proxy(proxy, at[0], tmp_path / "proxy", "", at) as ports:
            with trio.fail_after(LONG):
                while not nodes[0].asked or len(answers) < len(nodes):
                    async with await trio.open_tcp_stream("127.0.0.1", ports.plain) as stream:
                        await stream.send_all(UPGRADE)
                        answers.append((await stream.receive_some(4096))[:12])
        nursery.cancel_scope.cancel()

    assert set(answers) == {b"HTTP/1.1 101"}
