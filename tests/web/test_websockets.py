"""WebSocket routes of plugins' blueprints, behind either engine."""

from __future__ import annotations

from typing import Any, Literal, cast

import pytest
import trio
from quart import Blueprint, websocket
from structlog.testing import capture_logs

from tangram.asgi import ASGIApp
from tangram.config.model import Config, ServerConfig
from tangram.plugins.plugin import Plugin
from tangram.testing.run.transport import open_engine
from tangram.web.site import Site
from tests.plugins.fakes import loaded
from tests.web.asgi import FakeOperator, site_of

pytestmark = pytest.mark.slow

HANDSHAKE = (
    "GET /demo/ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.fixture(params=["native", "hypercorn"])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.param


def site_with(opened: list[str], **parts: Any) -> Site:
    made = Blueprint("demo", __name__, url_prefix="/demo")

    @made.websocket("/ws")
    async def own() -> None:
        opened.append("yes")
        await websocket.accept()

    server = ServerConfig(host="0.0.0.0", hosts=("maps.example",), allowed_origins=("https://other.example",))
    return site_of(loaded(Plugin(blueprints=[made])), config=Config(server=server), **parts)


async def shake(engine: Literal["native", "hypercorn"], site: Site, *lines: str) -> tuple[int, bytes]:
    """Status and head of the answer to a handshake with these header lines."""
    with trio.fail_after(60):
        async with open_engine(engine, cast("ASGIApp", site), settings=ServerConfig()) as running:
            stream = await trio.open_tcp_stream("127.0.0.1", running.port)
            async with stream:
                await stream.send_all(
                    (HANDSHAKE + "".join(f"{line}\r\n" for line in lines) + "\r\n").encode()
                )
                answer = b""
                while b"\r\n\r\n" not in answer:
                    answer += await stream.receive_some()
            return int(answer[9:12]), answer.lower()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Host: localhost"], 101),
        (["Host: localhost", "Origin: http://localhost:5173"], 101),
        (["Host: maps.example", "Origin: http://maps.example"], 101),
        (["Host: maps.example", "Origin: https://other.example"], 101),
        (["Host: 192.0.2.8:2346", "Origin: http://192.0.2.8:2346"], 101),
        (["Host: localhost", "Origin: https://attacker.example"], 403),
        (["Host: attacker.example", "Origin: http://attacker.example"], 421),
        (["Host: attacker.example"], 421),
        (["Host: 192.0.2.9:2346", "Origin: http://192.0.2.8:2346"], 403),
        (["Host: localhost", "Origin: null"], 403),
        (["Host: localhost", "Origin:"], 403),
        (["Host: localhost", "Origin: http://localhost", "Origin: http://localhost"], 403),
    ],
)
async def test_a_foreign_page_opens_no_websocket_of_a_plugin(
    engine: Literal["native", "hypercorn"], lines: list[str], expected: int
) -> None:
    """Pages of other origins are refused with 403, foreign hosts with 421; the others connect."""
    opened: list[str] = []
    status, answer = await shake(engine, site_with(opened), *lines)

    assert (status, opened) == (expected, ["yes"] if expected == 101 else [])
    assert expected == 101 or b"text/plain" in answer


async def test_a_plugin_that_is_down_opens_no_websocket(engine: Literal["native", "hypercorn"]) -> None:
    """The handshake of a plugin that does not run is answered with 503."""
    opened: list[str] = []
    operator = FakeOperator(down={"demo": "plugin 'demo' is quarantined"})
    status, answer = await shake(engine, site_with(opened, operator=operator), "Host: localhost")

    assert (status, opened) == (503, [])
    assert b"retry-after: 1" in answer


async def test_a_failing_websocket_of_a_blueprint_is_logged_with_its_path(engine: Any) -> None:
    """The handshake gets 500, and the log names the path and the cause."""
    made = Blueprint("failing", __name__, url_prefix="/demo")

    @made.websocket("/ws")
    async def own() -> None:
        raise LookupError("no such sensor")

    with capture_logs() as lines:
        status, _ = await shake(engine, site_of(loaded(Plugin(blueprints=[made]))), "Host: 127.0.0.1")

    [line] = [line for line in lines if line["event"] == "request failed"]
    assert (status, line["path"], str(line["exc_info"])) == (500, "/demo/ws", "no such sensor")
