from __future__ import annotations

from typing import Any

import pytest
import structlog

from tangram.asgi import Receive, Scope, Send, send_json
from tangram.errors import RouteError
from tangram.plugins.plugin import Plugin
from tangram.routing import APIRouter, Mount, RouteTable, openapi
from tests.plugins.fakes import loaded
from tests.routing.calling import call, table_of
from tests.routing.test_websocket import SocketPeer, run
from tests.web import asgi


class App:
    """An ASGI application that answers with its part of the scope."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": scope["root_path"]})
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["path"].endswith("/crash"):
            raise ValueError("a bug")
        await send_json(scope, send, 200, [scope["method"], scope["root_path"], scope["path"]])


def mounted(**settings: Any) -> RouteTable:
    router = APIRouter(prefix="/p")

    @router.get("/app/own")
    async def own() -> str:
        return "own"

    router.mount("/app", App(), **settings)
    return table_of(router, max_body=10)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("rest", ["", "a", "a/b", "a%2Fb"])
async def test_an_application_answers_everything_below_its_path(method: str, rest: str) -> None:
    """The application gets every method and path, with the mount in ``root_path``."""
    answer = await call(mounted(), method, f"/p/app/{rest}")

    assert answer.json() == [method, "/p/app", f"/p/app/{rest.replace('%2F', '/')}"]


async def test_routes_take_precedence_and_a_missing_slash_is_redirected() -> None:
    """A static route below the mount answers first; the path of the mount itself gets a slash."""
    table = mounted()

    assert (await call(table, "GET", "/p/app/own")).json() == "own"
    assert (await call(table, "GET", "/p/app")).header("location") == "/p/app/"
    assert (await call(table, "GET", "/p/apple")).status == 404
    assert openapi(table)["paths"].keys() == {"/p/app/own"}


async def test_a_failure_of_an_application_is_a_500() -> None:
    """An exception is answered and logged with the owner, like one of a handler."""
    with structlog.testing.capture_logs() as logs:
        answer = await call(mounted(name="tiles"), "GET", "/p/app/crash")

    assert answer.status == 500
    assert (logs[0]["plugin"], logs[0]["handler"]) == ("owner0", "tiles")


async def test_a_mount_has_a_limit_of_its_own() -> None:
    """``max_body`` of a mount is asked for by the engine."""
    scope = {"type": "http", "method": "POST", "path": "/p/app/x"}

    assert mounted(max_body=500).body_limit(dict(scope)) == 500
    assert mounted().body_limit(dict(scope)) == 10


async def test_an_application_serves_websockets() -> None:
    """WebSockets below the mount are the application's."""
    peer = await run(mounted(), SocketPeer(), "/p/app/live")

    assert peer.types == ["accept", "send", "close"]
    assert peer.sent[1]["text"] == "/p/app"
    assert (await run(mounted(), SocketPeer(), "/p/other")).types == ["close"]


@pytest.mark.parametrize("path", ["", "x", "/", "/x/", "/{a:path}"])
def test_a_mount_needs_a_plain_path(path: str) -> None:
    """A path that is malformed, or ends with a slash, is an error at once."""
    with pytest.raises(RouteError):
        APIRouter().mount(path, App())


async def test_a_plugin_mounts_an_application_in_the_site() -> None:
    """The site serves a mount, answers 503 while its plugin is down, and reports a conflict."""
    router = APIRouter(prefix="/p")
    router.mount("/app", App())
    plugin = loaded(Plugin(routers=[router]), "demo")

    assert (await asgi.call(asgi.site_of(plugin), "GET", "/p/app/x")).status == 200
    down = asgi.FakeOperator(down={"demo": "it restarts"})
    assert (await asgi.call(asgi.site_of(plugin, operator=down), "GET", "/p/app/x")).status == 503
    with structlog.testing.capture_logs():
        twice = RouteTable([Mount(router, "a"), Mount(router, "b")])
    assert {problem.plugin for problem in twice.problems} == {"b"}
