"""nginx and HAProxy from Debian in front of a server, with their defaults and with the documented lines."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import trio

from tangram.client import fetch_token, open_socket
from tangram.testing import free_port
from tests.e2e.harness import LONG, Home, Server, open_server, wait_until
from tests.e2e.prepare import find_proxy

BROWSER: Final = {"host": "maps.example", "user-agent": "Mozilla/5.0 (X11; Linux x86_64)"}
CLIENT: Final = "127.0.0.2"
"""The address of the client, which the proxy sees and which is no trusted proxy."""
SETTINGS: Final = {"TANGRAM_SERVER__HOSTS": "['maps.example']"}
EVENT: Final = "a proxy does not send the addresses of its clients"

NGINX: Final = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            {lines}
        }}
    }}
}}
"""
HAPROXY: Final = """
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend web
    bind 127.0.0.1:{port}
    default_backend tangram
backend tangram
    {lines}
    server tangram 127.0.0.1:{upstream}
"""


def documented(title: str) -> str:
    """Return the block of the operations page that follows ``title``."""
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    block = page.split(f"\n{title}", 1)[1].split("\n\n", 2)[1]
    return "\n".join(line.strip() for line in block.splitlines())


def nginx_lines() -> str:
    """Return the documented directives without those that the test's configuration has."""
    return "\n".join(
        line for line in documented("nginx:").splitlines() if line.startswith("proxy_") and "pass" not in line
    )


def haproxy_lines() -> str:
    """Return the documented lines of the backend without those that the test's configuration has."""
    lines = documented("HAProxy,").splitlines()
    return "\n    ".join(line for line in lines if line.startswith(("option", "http-request")))


def nginx(folder: Path) -> list[str]:
    return ["-p", str(folder), "-c", str(folder / "proxy.conf"), "-e", "stderr"]


def haproxy(folder: Path) -> list[str]:
    return ["-f", str(folder / "proxy.conf")]


PROXIES: Final[Mapping[str, tuple[str, Callable[[], str], Callable[[Path], list[str]]]]] = {
    "nginx": (NGINX, nginx_lines, nginx),
    "haproxy": (HAPROXY, haproxy_lines, haproxy),
}


@asynccontextmanager
async def open_proxy(name: str, upstream: int, folder: Path, *, ours: bool) -> AsyncIterator[str]:
    """Run a proxy for the block, with its defaults or with the documented lines; yield its URL."""
    program = find_proxy(name)
    assert program is not None
    template, lines, arguments = PROXIES[name]
    port = free_port()
    folder.mkdir()  # noqa: ASYNC240 - a temporary folder
    text = template.format(folder=folder, port=port, upstream=upstream, lines=lines() if ours else "")
    (folder / "proxy.conf").write_text(text)
    process = await trio.lowlevel.open_process(
        [program, *arguments(folder)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=folder
    )
    try:
        await wait_until(lambda: answers(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        with trio.move_on_after(5, shield=True):
            await process.wait()
        if process.returncode is None:
            process.kill()


async def answers(port: int) -> bool:
    try:
        async with await trio.open_tcp_stream("127.0.0.1", port):
            return True
    except OSError:
        return False


async def ask(url: str, path: str, **headers: str) -> httpx.Response:
    transport = httpx.AsyncHTTPTransport(local_address=CLIENT)
    async with httpx.AsyncClient(base_url=url, transport=transport, timeout=LONG) as client:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.get(path, headers={**BROWSER, **named})


def token_of(server: Server) -> str:
    return f"Bearer {(server.home.state / 'operator-token').read_text().strip()}"


@pytest.fixture(params=list(PROXIES))
def proxy(request: pytest.FixtureRequest) -> Any:
    if find_proxy(request.param) is None:
        pytest.skip(f"{request.param} is not installed and could not be: see tests/e2e/prepare.py")
    return request.param


@pytest.mark.parametrize("ours", [False, True], ids=["defaults", "documented"])
async def test_no_details_without_the_token(home: Home, tmp_path: Path, proxy: str, ours: bool) -> None:
    """Behind a proxy, whose clients all seem local, only the token opens details."""
    spoofed = {"x_forwarded_for": "127.0.0.1", "x_real_ip": "127.0.0.1", "forwarded": "for=127.0.0.1"}
    async with (
        open_server(home, "tangram_e2e", environ=SETTINGS) as server,
        open_proxy(proxy, home.port, tmp_path / "proxy", ours=ours) as url,
    ):
        for headers in ({}, spoofed, *({name: value} for name, value in spoofed.items())):
            shown = (await ask(url, "/-/supervision", **headers)).json()
            assert "url" not in shown["broker"], headers
        trusted = (await ask(url, "/-/supervision", authorization=token_of(server))).json()
        restarted = await ask(url, "/-/plugins/tangram_e2e/restart", **spoofed)

    assert "url" in trusted["broker"]
    assert restarted.status_code == 405


async def test_missing_headers_are_logged_once(home: Home, tmp_path: Path, proxy: str) -> None:
    """A proxy with its defaults works, and the log says once which lines it lacks."""
    async with (
        open_server(home, "tangram_e2e", environ=SETTINGS) as server,
        open_proxy(proxy, home.port, tmp_path / "proxy", ours=False) as url,
    ):
        for _ in range(3):
            assert (await ask(url, "/-/healthz")).status_code == 200
        await server.wait_line(EVENT)

    assert server.log.count(EVENT) == 1
    assert "proxy_set_header X-Forwarded-For" in server.log
    assert "option forwardfor" in server.log


async def test_with_the_documented_lines_clients_are_known(home: Home, tmp_path: Path, proxy: str) -> None:
    """Client addresses, the browser's host and WebSockets come through, and nothing is logged about it."""
    async with (
        open_server(home, "tangram_e2e", environ=SETTINGS) as server,
        open_proxy(proxy, home.port, tmp_path / "proxy", ours=True) as url,
    ):
        seen = (await ask(url, "/e2e/client", x_forwarded_for="198.51.100.7")).json()
        manifest = (await ask(url, "/manifest.json", x_forwarded_for="198.51.100.7")).json()
        foreign = await ask(url, "/-/healthz", host="evil.example")
        token = await fetch_token(url, "e2e")
        async with open_socket(url) as socket:
            channel = await socket.join("e2e", token=token.token)
            await channel.leave()

    assert seen == {"client": CLIENT, "scheme": "http"}
    assert manifest["core"]["config"]["channel"]["url"] == "http://maps.example"
    assert foreign.status_code == 421
    assert EVENT not in server.log
