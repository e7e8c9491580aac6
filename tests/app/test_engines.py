"""The whole server behind either engine: routes, pages, channels and closing."""

from __future__ import annotations

from typing import Literal

import pytest
import trio
from quart import Blueprint, websocket

import tangram
from tangram.client import Channel
from tangram.testing import open_tangram
from tests.app.helpers import Journal, make_plugin
from tests.compat.websocket_client import Closed, open_websocket

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("engine", ["native", "hypercorn"])]


async def until_closed(channel: Channel) -> None:
    with trio.fail_after(60):
        try:
            while True:
                await channel.receive()
        except tangram.ChannelClosed:
            return


def server(engine: str, **more: object) -> dict[str, dict[str, object]]:
    return {"server": {"engine": engine, **more}}


async def test_routes_pages_and_documents_are_served(engine: str) -> None:
    """Routes of plugins and of the operator, the page and the docs answer on both engines."""
    async with open_tangram([make_plugin(Journal())], server(engine)) as running:
        answers = {
            path: (await running.http.get(path)).status_code
            for path in ["/probe/value", "/", "/static/app.js", "/docs", "/openapi.json", "/manifest.json"]
        }
        ready = await running.http.get("/-/readyz")
        unknown = await running.http.get("/nowhere")
        wrong = await running.http.request("DELETE", "/probe/value")

        assert set(answers.values()) == {200}, answers
        assert ready.json() == {"status": "ready", "reasons": []}
        assert (unknown.status_code, unknown.json()) == (404, {"detail": "Not Found"})
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_a_browser_gets_messages_and_pushes(engine: str) -> None:
    """A client joins with a token, receives messages, and its push is answered."""
    async with open_tangram([make_plugin(Journal())], server(engine)) as running:
        token = await tangram.fetch_token(running.url, "probe")
        async with running.open_socket() as socket:
            channel = await socket.join("probe", token=token.token)
            with trio.fail_after(60):
                while (await channel.receive()).name != "tick":
                    pass
                reply = await channel.push("hello", {"n": 1})

        assert reply == {}


@pytest.mark.parametrize(("ending", "code"), [("restart", 1012), ("stop", 1001)])
async def test_websockets_are_closed_with_the_reason_of_the_stop(engine: str, ending: str, code: int) -> None:
    """A planned restart closes with 1012, a stop with 1001; phoenix.js reconnects after both."""
    async with open_tangram([make_plugin(Journal())], server(engine)) as running:
        token = await tangram.fetch_token(running.url, "probe")
        async with running.open_socket(reconnect=False) as socket:
            channel = await socket.join("probe", token=token.token)
            async with trio.open_nursery() as nursery:
                if ending == "restart":
                    nursery.start_soon(running.server.restart)
                else:
                    running.server.stop()
                await until_closed(channel)

        assert socket.close_code == code


async def test_an_answer_in_flight_is_finished_by_a_planned_restart(engine: str) -> None:
    """A request that is being answered when the restart begins gets the whole answer."""
    router = tangram.APIRouter()
    began = trio.Event()

    @router.get("/slow")
    async def slow() -> dict[str, bool]:
        began.set()
        await trio.sleep(0.3)
        return {"whole": True}

    async with open_tangram([tangram.Plugin(routers=[router])], server(engine)) as running:
        answers = []

        async def ask() -> None:
            answers.append(await running.http.get("/slow"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await began.wait()
            await running.server.restart()

        assert answers[0].json() == {"whole": True}
        assert running.server.ready_count == 2


async def test_a_stopping_server_refuses_clients_at_once(engine: str) -> None:
    """Also while a plugin still ends: a client that waited in the kernel's queue would be reset at last."""
    plugin, refused = tangram.Plugin(), trio.Event()

    @plugin.register_service()
    async def ends_late(state: tangram.BackendState) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 4):
                await refused.wait()

    async with open_tangram([plugin], server(engine)) as running:
        held = running.server.held[0]
        running.server.stop()
        with trio.fail_after(3):
            while not refused.is_set():
                try:
                    await (await trio.open_tcp_stream(held.host, held.port)).aclose()
                except OSError:
                    refused.set()
        assert not running.ended


def plugin_with_socket(kind: str, ended: list[str]) -> tangram.Plugin:
    """A plugin with a WebSocket at ``/live``, by a route or by a blueprint."""
    router, blueprint = tangram.APIRouter(), Blueprint("live", __name__)

    @router.websocket("/live")
    async def by_route(socket: tangram.WebSocket) -> None:
        await socket.accept()
        await socket.send("hello")
        try:
            await trio.sleep_forever()
        finally:
            ended.append("route")

    @blueprint.websocket("/live")
    async def by_blueprint() -> None:
        await websocket.send("hello")
        try:
            await trio.sleep_forever()
        finally:
            ended.append("blueprint")

    plugin = tangram.Plugin(routers=[router]) if kind == "route" else tangram.Plugin(blueprints=[blueprint])
    plugin.name = "live"
    return plugin


@pytest.mark.parametrize("kind", ["route", "blueprint"])
async def test_websockets_of_a_plugin_end_with_it(engine: str, kind: Literal["route", "blueprint"]) -> None:
    """A plugin that restarts alone cancels its handlers and closes with 1012; other WebSockets stay."""
    ended: list[str] = []
    plugins = [plugin_with_socket(kind, ended), make_plugin(Journal())]
    config = server(engine) | {"supervisor": {"strategy": "one_for_one"}}
    async with open_tangram(plugins, config) as running:
        url = running.url.replace("http", "ws", 1) + "/live"
        token = await tangram.fetch_token(running.url, "probe")
        async with running.open_socket(reconnect=False) as other, open_websocket(url) as socket:
            channel = await other.join("probe", token=token.token)
            assert await socket.receive() == "hello"
            await running.http.post("/-/plugins/live/restart", headers=running.operator)
            with pytest.raises(Closed) as caught, trio.fail_after(30):
                await socket.receive()
            assert await channel.push("hello", {}) == {}

        assert (caught.value.code, ended) == (1012, [kind])
        async with open_websocket(url) as socket:
            assert await socket.receive() == "hello"
