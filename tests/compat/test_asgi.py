"""ASGI features of FastAPI routers, as on the published server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import trio

from tangram.compat.names import has_fastapi
from tangram.testing import RunningTangram, open_tangram
from tests.compat.websocket_client import Closed, open_websocket
from tests.machine_slack import open_lateness

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_fastapi(), reason="FastAPI is not installed here: make test-downstream"),
]

SOURCE = """
import asyncio, pathlib
from contextlib import asynccontextmanager

import tangram_core
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket, WebSocketException
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.staticfiles import StaticFiles

calls = []


@asynccontextmanager
async def lifespan(app):
    calls.append("router enters")
    yield {"greeting": "from the lifespan"}
    calls.append("router leaves")


@asynccontextmanager
async def of_plugin(state):
    calls.append("plugin enters")
    yield
    calls.append("plugin leaves")


router = APIRouter(prefix="/probe", lifespan=lifespan)
plain = APIRouter(
    on_startup=[lambda: calls.append("startup")], on_shutdown=[lambda: calls.append("shutdown")]
)
sub = FastAPI()
plain.mount("/sub", sub)
plain.mount("/files", StaticFiles(directory=pathlib.Path(__file__).parent))


@sub.get("/hello")
async def hello():
    return {"hello": "from the sub-application"}


@sub.websocket("/ws")
async def sub_ws(ws: WebSocket):
    await ws.accept()
    await ws.send_text("sub " + await ws.receive_text())
    await ws.close(4002, "done")


@router.get("/state")
async def state(request: Request):
    return {"greeting": request.state.greeting, "asgi": request.scope["asgi"]["spec_version"]}


@router.websocket("/ws")
async def ws(ws: WebSocket, name: str, state: tangram_core.InjectBackendState):
    await ws.accept(subprotocol="b" if "b" in ws.scope["subprotocols"] else None)
    await ws.send_json({"name": name, "redis": await state.redis_client.ping()})
    while True:
        message = await ws.receive()
        if message["type"] == "websocket.disconnect":
            calls.append(f"left {message['code']}")
            return
        if message.get("text") == "raise":
            raise LookupError("in the handler")
        if message.get("text") == "return":
            return
        if message.get("text") is not None:
            await ws.send_text(message["text"])
        else:
            await ws.send_bytes(message["bytes"])


@router.websocket("/closed")
async def closed(ws: WebSocket):
    await ws.close(4003)


def guard():
    raise WebSocketException(code=1008)


@router.websocket("/guarded")
async def guarded(ws: WebSocket, _: None = Depends(guard)):
    await ws.accept()


@router.websocket("/denied")
async def denied(ws: WebSocket):
    await ws.send_denial_response(PlainTextResponse("short and stout", 418))


@router.post("/upload")
async def upload(request: Request):
    return {"size": sum([len(part) async for part in request.stream()])}


@router.get("/polls")
async def polls(request: Request, count: int):
    calls.append("polls begins")
    for number in range(count):
        if await request.is_disconnected():
            calls.append("poll saw it")
            return number
        await asyncio.sleep(0.005)
    return count


@router.get("/events")
async def events(request: Request):
    calls.append("events begins")

    async def stream():
        try:
            while not await request.is_disconnected():
                yield "data: 1\\n\\n"
                await asyncio.sleep(0.01)
        finally:
            calls.append("events closed")

    return StreamingResponse(stream(), media_type="text/event-stream")


@router.get("/waits")
async def waits():
    calls.append("waits begins")

    async def stream():
        try:
            yield "x"
            await asyncio.sleep(1000)
        finally:
            calls.append("waits closed")

    return StreamingResponse(stream())


@router.get("/floods")
async def floods():
    calls.append("floods begins")

    async def stream():
        try:
            while True:
                yield b"x" * 65536
        finally:
            calls.append("floods closed")

    return StreamingResponse(stream())


plugin = tangram_core.Plugin(routers=[router, plain], lifespan=of_plugin)
"""

HANDSHAKE = {
    "connection": "upgrade",
    "upgrade": "websocket",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    "sec-websocket-version": "13",
}


@pytest.fixture(params=["native", "hypercorn"])
async def probe(
    module: Callable[..., Any], request: pytest.FixtureRequest
) -> AsyncIterator[tuple[RunningTangram, Any]]:
    probe = module("probe_plugin", SOURCE)
    config = {"server": {"engine": request.param}}
    async with open_tangram([probe.plugin], config) as tangram:
        yield tangram, probe


async def restart(tangram: RunningTangram) -> None:
    answer = await tangram.http.post("/-/plugins/plugin/restart", headers=tangram.operator)
    assert answer.is_success


async def wait_called(module: Any, call: str) -> float:
    """Wait until the plugin has recorded a call; return the seconds that it took."""
    began = trio.current_time()
    with trio.fail_after(30):
        while call not in module.calls:  # noqa: ASYNC110 - the plugin knows no Trio
            await trio.sleep(0.005)
    return trio.current_time() - began


def ws_url(tangram: RunningTangram, path: str) -> str:
    return tangram.url.rstrip("/").replace("http", "ws", 1) + path


async def test_a_websocket_route_answers(probe: tuple[RunningTangram, Any]) -> None:
    """Query, injected state, subprotocol, text, bytes, and the client's close code arrive."""
    tangram, module = probe
    url = ws_url(tangram, "/probe/ws?name=x")
    async with open_websocket(url, subprotocols=["a", "b"]) as socket:
        assert json.loads(await socket.receive()) == {"name": "x", "redis": True}
        assert socket.subprotocol == "b"
        for message in ("hi", b"\x00\xff", "y" * 100_000):
            await socket.send(message)
            assert await socket.receive() == message
        await socket.close(4007)
    await wait_called(module, "left 4007")


async def test_a_websockets_handler_ends_with_its_code(probe: tuple[RunningTangram, Any]) -> None:
    """A return closes with 1000, an exception with 1011, and the log names the plugin."""
    tangram, _ = probe
    for message, code in (("return", 1000), ("raise", 1011)):
        async with open_websocket(ws_url(tangram, "/probe/ws?name=x")) as socket:
            await socket.receive()
            await socket.send(message)
            with pytest.raises(Closed) as caught:
                await socket.receive()
            assert caught.value.code == code
    (record,) = [one for one in tangram.logs if one["event"] == "handler failed"]

    assert (record["plugin"], record["route"]) == ("plugin", "/probe/ws")


@pytest.mark.parametrize(
    ("path", "status"),
    [("closed", 403), ("guarded", 403), ("denied", 418), ("missing", 403), ("ws", 403)],
)
async def test_a_handshake_is_refused(probe: tuple[RunningTangram, Any], path: str, status: int) -> None:
    """By the handler, a dependency, a response, a missing route, or a missing parameter."""
    tangram, _ = probe
    answer = await tangram.http.get(f"/probe/{path}", headers=HANDSHAKE)

    assert answer.status_code == status


async def test_a_foreign_page_opens_no_websocket(probe: tuple[RunningTangram, Any]) -> None:
    """The origin of a browser is checked as for channels."""
    tangram, _ = probe
    headers = {**HANDSHAKE, "origin": "https://elsewhere.example"}
    answer = await tangram.http.get("/probe/ws?name=x", headers=headers)

    assert answer.status_code == 403


async def test_a_restart_closes_websockets_with_1012(probe: tuple[RunningTangram, Any]) -> None:
    """The client should come back, and finds the route again."""
    tangram, _ = probe
    url = ws_url(tangram, "/probe/ws?name=x")
    async with open_websocket(url) as socket:
        await socket.receive()
        await restart(tangram)
        with pytest.raises(Closed) as caught, trio.fail_after(30):
            await socket.receive()
        assert caught.value.code == 1012
    async with open_websocket(url) as socket:
        assert await socket.receive()


async def test_mounted_applications_answer(probe: tuple[RunningTangram, Any]) -> None:
    """A sub-application, its WebSocket and a folder of files have their published paths."""
    tangram, _ = probe
    assert (await tangram.http.get("/sub/hello")).json() == {"hello": "from the sub-application"}
    assert b"SOURCE" not in (await tangram.http.get("/files/probe_plugin.py")).content[:20]
    assert (await tangram.http.get("/files/probe_plugin.py")).status_code == 200
    assert (await tangram.http.get("/files/missing")).status_code == 404
    async with open_websocket(ws_url(tangram, "/sub/ws")) as socket:
        await socket.send("hi")
        assert await socket.receive() == "sub hi"
        with pytest.raises(Closed) as caught:
            await socket.receive()
        assert (caught.value.code, caught.value.reason) == (4002, "done")


async def test_lifespans_of_routers_are_entered(probe: tuple[RunningTangram, Any]) -> None:
    """After the plugin's own, once for each incarnation, and their state reaches the requests."""
    tangram, module = probe
    entered = ["plugin enters", "router enters", "startup"]
    left = ["shutdown", "router leaves", "plugin leaves"]

    assert (await tangram.http.get("/probe/state")).json() == {
        "greeting": "from the lifespan",
        "asgi": "2.3",
    }
    assert module.calls == entered
    await restart(tangram)
    assert module.calls == [*entered, *left, *entered]


async def test_uploads_have_no_limit_by_default(probe: tuple[RunningTangram, Any]) -> None:
    """[server] max_body does not apply to FastAPI's routes, as on the published server."""
    tangram, _ = probe
    answer = await tangram.http.post("/probe/upload", content=b"x" * 5_000_000)

    assert (answer.status_code, answer.json()) == (200, {"size": 5_000_000})


async def test_the_operator_may_limit_uploads(module: Callable[..., Any]) -> None:
    """[compat] max_body is the limit of FastAPI's routes."""
    plugin = module("limited_plugin", SOURCE).plugin
    async with open_tangram([plugin], {"compat": {"max_body": 1000}}) as tangram:
        assert (await tangram.http.post("/probe/upload", content=b"x" * 1000)).status_code == 200
        assert (await tangram.http.post("/probe/upload", content=b"x" * 1001)).status_code == 413


async def test_polling_for_the_client_does_not_end_the_request(probe: tuple[RunningTangram, Any]) -> None:
    """Twelve handlers at once poll thirty times each, and all answer."""
    tangram, _ = probe
    answers: list[int] = []

    async def ask() -> None:
        answers.append((await tangram.http.get("/probe/polls?count=30")).json())

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(ask)

    assert answers == [30] * 12


@pytest.mark.parametrize(
    ("path", "call"),
    [
        ("polls?count=1000", "poll saw it"),
        ("events", "events closed"),
        ("waits", "waits closed"),
        ("floods", "floods closed"),
    ],
)
async def test_a_handler_learns_that_its_client_has_left(
    probe: tuple[RunningTangram, Any], path: str, call: str
) -> None:
    """Within 100 ms: by a poll, in a stream's wait, or at a blocked ``yield``."""
    tangram, module = probe
    address = httpx.URL(tangram.url)
    stream = await trio.open_tcp_stream(address.host, address.port or 80)
    async with stream:
        await stream.send_all(f"GET /probe/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        await wait_called(module, f"{path.partition('?')[0]} begins")
        await trio.sleep(0.2)  # it is in its loop, or in its stream
    with open_lateness() as late:
        took = await wait_called(module, call)
    assert took <= 0.1 + late.allowed
