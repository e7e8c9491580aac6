"""Mistakes of operators, plugin authors and clients: clear messages, no other damage."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from tests.e2e.browser import Browser
from tests.e2e.harness import Home, Server, open_server, run_tangram, wait_until, write_plugin
from tests.e2e.phoenix import open_client


async def serve(home: Home) -> Server:
    """As an operator runs it: with the log in lines for people."""
    return await run_tangram(home, "serve", "--config", str(home.config))


def told(server: Server) -> str:
    text = "\n".join(server.err)
    assert "Traceback" not in server.log
    return text


# -- the operator ------------------------------------------------------------------------------------------


async def test_malformed_toml(home: Home) -> None:
    """A file that is no TOML ends with status 2, naming file and line."""
    home.config.write_text('[core]\nplugins = ["tangram_demo"\n[server\n')
    server = await serve(home)

    assert server.process.returncode == 2
    assert "tangram.toml:3" in told(server)


async def test_all_faults_at_once(home: Home) -> None:
    """Unknown keys and wrong values are all reported, with path and nearest known key."""
    home.config.write_text(
        '[server]\nprot = 1\nport = "many"\n[supervisor]\nstrategy = "one_for_none"\n[core]\nplugins = 3\n'
    )
    server = await serve(home)
    text = told(server)

    assert server.process.returncode == 2
    assert "server.prot" in text
    assert "'port'" in text
    assert "@ server.port" in text
    assert "@ supervisor.strategy" in text
    assert "@ core.plugins" in text


async def test_a_configuration_that_is_not_there(home: Home) -> None:
    """A file that was named and is not there ends with status 2."""
    server = await serve(home)

    assert server.process.returncode == 2
    assert "tangram.toml" in told(server)


async def test_a_port_in_use(home: Home) -> None:
    """An address in use ends the start with status 1 and is named."""
    home.configure(["tangram_demo"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", home.port))
        taken.listen()
        server = await serve(home)

    assert server.process.returncode == 1
    assert f"127.0.0.1:{home.port}" in told(server)
    assert "another program listens there" in told(server)
    assert "broker" not in told(server)


# -- the author of a plugin --------------------------------------------------------------------------------


async def test_an_unknown_plugin(home: Home) -> None:
    """A plugin that is not installed is named, with the nearest that is; the others run."""
    async with open_server(home, "tangram_dmeo", "tangram_e2e") as server:
        line = await server.wait_line("tangram_dmeo")
        listed = await server.get("/-/plugins")
        ready = await server.get("/-/readyz")
        assert ready["status"] == "ready"
        assert any("is not loaded" in reason for reason in ready["reasons"])

        assert "tangram_demo" in line.string
        assert "Traceback" not in server.log
        assert await server.get("/e2e/ping")
        assert "tangram_dmeo" in str(listed)


async def test_a_plugin_that_fails_to_import(home: Home) -> None:
    """A plugin whose import raises is named with the cause; the others run."""
    write_plugin(
        home.site,
        "tangram_broken",
        "import tangram\nplugin = tangram.Plugin()\nraise KeyError('no such table')\n",
    )
    async with open_server(home, "tangram_broken", "tangram_e2e") as server:
        line = await server.wait_line("tangram_broken")

        assert "no such table" in line.string
        assert await server.get("/e2e/ping")
        assert "tangram_broken" in str(await server.get("/-/plugins"))


async def test_an_entry_point_that_is_no_plugin(home: Home) -> None:
    """An entry point of another type is named with its value; the other plugins run."""
    write_plugin(home.site, "tangram_other", "plugin = object()\n")
    async with open_server(home, "tangram_other", "tangram_e2e") as server:
        line = await server.wait_line("tangram_other")

        assert "object" in line.string
        assert await server.get("/e2e/ping")


async def test_strict_makes_a_missing_plugin_fatal(home: Home) -> None:
    """With ``[core] strict`` the same ends the start with status 1."""
    home.configure(["tangram_dmeo"], core="strict = true")
    server = await serve(home)

    assert server.process.returncode == 1
    assert "tangram_dmeo" in told(server)


async def test_a_plugins_bad_configuration(home: Home) -> None:
    """A plugin's bad configuration ends with status 2 and lists every fault."""
    source = """
from dataclasses import dataclass
import tangram

@dataclass
class Settings:
    period: float
    city: str

plugin = tangram.Plugin(config_class=Settings)
"""
    write_plugin(home.site, "tangram_strictly", source)
    home.configure(["tangram_strictly"], extra='[plugins.tangram_strictly]\nperiod = "often"\n')
    server = await serve(home)

    assert server.process.returncode == 2
    assert "period" in told(server)
    assert "city" in told(server)


# -- the client --------------------------------------------------------------------------------------------


async def test_bad_requests_to_a_route(home: Home) -> None:
    """Malformed bodies get 422 with every fault; a raising route gets 500 with a logged id."""
    async with open_server(home, "tangram_e2e") as server:
        typed = await server.request("GET", "/e2e/typed/seven", params={"flag": "perhaps"})
        broken = await server.request(
            "POST", "/e2e/orders", content=b'{"item": ', headers={"content-type": "application/json"}
        )
        wrong = await server.request("POST", "/e2e/orders", json={"item": 3, "count": "x"})
        raised = await server.request("GET", "/e2e/raise")
        good = await server.request("POST", "/e2e/orders", json={"item": "tea", "count": 2})

        async def logged() -> bool:
            return raised.json()["id"] in server.log

        await wait_until(logged)

        assert typed.status_code == 422
        assert {tuple(fault["loc"]) for fault in typed.json()["detail"]} == {
            ("path", "number"),
            ("query", "flag"),
        }
        assert broken.status_code in {400, 422}
        assert wrong.status_code == 422
        assert {tuple(fault["loc"])[-1] for fault in wrong.json()["detail"]} == {"item", "count"}
        assert raised.status_code == 500
        assert "planted" not in raised.text
        assert good.json() == {"item": "tea", "count": 2}


MALFORMED = [
    pytest.param("no json", id="no-json"),
    pytest.param("[]", id="empty"),
    pytest.param('["1","1","e2e","wave"]', id="four"),
    pytest.param("[1,2,3,4,5]", id="numbers"),
    pytest.param('{"topic":"e2e"}', id="object"),
    pytest.param('["1","1","nowhere","phx_leave",{}]', id="leave-what-is-not"),
    pytest.param('[null,null,"e2e","phx_join",{}]', id="no-refs"),
    pytest.param("[" * 5000, id="deep"),
    pytest.param(b"", id="empty-binary"),
    pytest.param(b"\x00\xff\xff\xff\xff", id="truncated-binary"),
    pytest.param(b"\x07\x00\x00\x00\x00", id="unknown-kind"),
]


@asynccontextmanager
async def open_socket(server: Server) -> AsyncIterator[WebSocketConnection]:
    """Open a WebSocket that sends frames unchecked."""
    address = f"127.0.0.1:{server.home.port}"
    async with await trio.open_tcp_stream("127.0.0.1", server.home.port) as stream:
        async with trio.open_nursery() as nursery:
            yield await wrap_client_stream(nursery, stream, address, "/websocket?vsn=2.0.0")
            nursery.cancel_scope.cancel()


async def heartbeat(connection: WebSocketConnection) -> str:
    """Send a heartbeat and return its reply, after all earlier messages."""
    await connection.send_message('[null,"beat","phoenix","heartbeat",{}]')
    with trio.fail_after(30):
        while True:
            message = await connection.get_message()
            if '"beat"' in str(message):
                return str(message)


@pytest.fixture
async def server(home: Home) -> object:
    async with open_server(home, "tangram_e2e") as server:
        yield server


@pytest.mark.parametrize("frame", MALFORMED)
async def test_malformed_frames(server: Server, frame: str | bytes) -> None:
    """A malformed frame costs itself at most: the connection that sent it is still served."""
    async with open_socket(server) as connection:
        await connection.send_message(frame)

        assert '"ok"' in await heartbeat(connection)


async def test_an_oversized_frame(home: Home, browser: Browser) -> None:
    """A message over ``max_message`` closes its own connection with 1009 and no other."""
    async with open_server(home, "tangram_e2e", extra="[channel]\nmax_message = 65536\n") as server:
        client = await open_client(browser, server.url)
        await client.join("e2e", "beat")
        async with open_socket(server) as connection:
            await connection.send_message(f'["1","1","e2e","wave","{"x" * 100_000}"]')
            with trio.fail_after(10), pytest.raises(ConnectionClosed) as closed:
                await connection.get_message()
        await client.wait_more("beat")

        assert closed.value.reason is not None
        assert closed.value.reason.code == 1009
        assert await client.page.run("return states") == ["open"]
