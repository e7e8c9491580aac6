"""Real FastAPI routers on an island: ``make test-downstream`` runs this with FastAPI."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import structlog
import trio

from tangram import APIRouter as NativeRouter
from tangram.compat.names import has_fastapi
from tangram.plugins import Plugin as NativePlugin
from tangram.testing import RunningTangram, open_tangram

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_fastapi(), reason="FastAPI is not installed here: make test-downstream"),
]

SOURCE = """
from __future__ import annotations

import asyncio
from typing import Annotated

import tangram_core
from fastapi import APIRouter, BackgroundTasks, Depends, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel

router = APIRouter(
    prefix="/shop", tags=["shop"], responses={404: {"description": "Not found"}},
)


class Item(BaseModel):
    name: str
    price: float = 1.0
    secret: str = "hidden"


class Shown(BaseModel):
    name: str
    price: float


@router.post("/items", response_model=Shown, status_code=201)
async def add(item: Item, state: tangram_core.InjectBackendState):
    await state.redis_client.set(f"item:{item.name}", item.price)
    return item


@router.get("/items/{name}")
async def get(name: str, state: tangram_core.InjectBackendState, much: Annotated[int, Query(ge=1)] = 1):
    price = await state.redis_client.get(f"item:{name}")
    if price is None:
        raise HTTPException(404, f"no item {name}")
    return {"name": name, "price": float(price) * much}


def current(request: Request) -> str:
    return request.headers.get("x-user", "nobody")


async def session():
    calls.append("open")
    try:
        yield "session"
    finally:
        calls.append("closed")


calls: list[str] = []
go_on = asyncio.Event()


@router.get("/who")
def who(user: Annotated[str, Depends(current)], session: Annotated[str, Depends(session)]):
    import threading

    return {"user": user, "session": session, "thread": threading.current_thread() is threading.main_thread()}


@router.get("/stream")
async def stream():
    async def numbers():
        for number in range(3):
            await asyncio.sleep(0)
            yield f"{number}\\n"

    return StreamingResponse(numbers(), media_type="text/plain")


@router.get("/endless")
async def endless():
    async def numbers():
        try:
            while True:
                await asyncio.sleep(0.01)
                yield "x"
        finally:
            calls.append("endless ends")

    return StreamingResponse(numbers())


@router.get("/torn")
async def torn():
    async def numbers():
        yield "1"
        await asyncio.sleep(0)
        raise LookupError("half-way")

    return StreamingResponse(numbers())


@router.get("/file")
def file():
    return FileResponse(__file__)


@router.get("/temporary")
async def temporary():
    import tempfile

    with tempfile.NamedTemporaryFile(delete=False) as opened:
        opened.write(bytes(range(256)) * 3000)
    background = BackgroundTasks()
    background.add_task(remove, opened.name)
    return FileResponse(opened.name, background=background)


def remove(name: str) -> None:
    import os

    os.unlink(name)
    calls.append("removed")


@router.get("/fast")
async def fast():
    return [1, 2]


@router.get("/state")
async def state_of(request: Request):
    return {"same": request.app.state.backend_state.config.core.plugins}


@router.post("/echo")
async def echo(request: Request, later: BackgroundTasks):
    body = await request.body()
    later.add_task(calls.append, "later")
    return Response(body, media_type="application/octet-stream", headers={"x-length": str(len(body))})


@router.get("/behind")
async def behind(later: BackgroundTasks):
    async def wait():
        await go_on.wait()
        calls.append("behind")
        raise LookupError("behind the answer")

    later.add_task(wait)
    return "begun"


@router.get("/go-on")
async def release():
    go_on.set()
    return "ok"


@router.get("/broken")
async def broken():
    raise LookupError("a secret of the author's")


@router.get("/slow")
async def slow():
    await asyncio.sleep(1000)


plugin = tangram_core.Plugin(routers=[router])
"""


@pytest.fixture
async def shop(module: Callable[..., Any]) -> AsyncIterator[tuple[RunningTangram, Any]]:
    shop = module("shop_plugin", SOURCE)
    async with open_tangram([shop.plugin]) as tangram:
        yield tangram, shop


async def test_validation_models_and_errors(shop: tuple[RunningTangram, Any]) -> None:
    """Bodies, parameters, response models and HTTPException answer word for word as FastAPI's."""
    http = shop[0].http
    made = await http.post("/shop/items", json={"name": "pear", "price": "2.5"})
    bad = await http.post("/shop/items", json={"price": "dear"})
    few = await http.get("/shop/items/pear", params={"much": 0})

    assert (made.status_code, made.json()) == (201, {"name": "pear", "price": 2.5})
    assert (await http.get("/shop/items/pear?much=2")).json() == {"name": "pear", "price": 5.0}
    assert [(one["type"], one["loc"]) for one in bad.json()["detail"]] == [
        ("missing", ["body", "name"]),
        ("float_parsing", ["body", "price"]),
    ]
    assert few.json()["detail"][0]["loc"] == ["query", "much"]
    assert (await http.get("/shop/items/plum")).json() == {"detail": "no item plum"}
    assert (await http.delete("/shop/items/pear")).status_code == 405


async def test_dependencies_and_threads(shop: tuple[RunningTangram, Any]) -> None:
    """Dependencies are called and cleaned up; a sync handler runs in a thread that ends."""
    tangram, module = shop
    asked = [await tangram.http.get("/shop/who", headers={"x-user": "ann"}) for _ in range(20)]

    assert asked[0].json() == {"user": "ann", "session": "session", "thread": False}
    assert module.calls == ["open", "closed"] * 20
    before = threading.active_count()
    await tangram.http.post("/-/plugins/plugin/restart", headers=tangram.operator)
    assert threading.active_count() <= before


async def test_streams_files_and_bodies(shop: tuple[RunningTangram, Any]) -> None:
    """Streams, files with ranges, response classes, raw bodies and background tasks work."""
    http, module = shop[0].http, shop[1]
    body = bytes(range(256)) * 4000
    echoed = await http.post("/shop/echo", content=body)
    part = await http.get("/shop/file", headers={"range": "bytes=1-4"})

    assert (await http.get("/shop/stream")).text == "0\n1\n2\n"
    assert (part.status_code, part.text) == (206, SOURCE[1:5])
    temporary = await http.get("/shop/temporary")
    assert temporary.content == bytes(range(256)) * 3000
    assert temporary.headers["content-length"] == str(256 * 3000)
    assert (await http.get("/shop/fast")).json() == [1, 2]
    assert echoed.content == body
    assert echoed.headers["x-length"] == str(len(body))
    assert "later" in module.calls
    with trio.fail_after(30):
        while "removed" not in module.calls:  # noqa: ASYNC110 - the plugin knows no Trio
            await trio.sleep(0.01)
    assert (await http.get("/shop/state")).json() == {"same": []}
    head = await http.head("/shop/file")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(SOURCE)), b"")
    assert (await http.head("/shop/echo")).status_code == 405  # the route takes POST alone


async def test_a_background_task_does_not_delay_the_next_request(shop: tuple[RunningTangram, Any]) -> None:
    """The next request on the connection is answered while a background task runs.

    An exception of the task is logged.
    """
    tangram, module = shop
    address = httpx.URL(tangram.url)
    stream = await trio.open_tcp_stream(address.host, address.port or 80)
    async with stream:
        with structlog.testing.capture_logs() as logs, trio.fail_after(30):
            for path, text in (("behind", b"begun"), ("go-on", b"ok")):
                await stream.send_all(b"GET /shop/%b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % path.encode())
                received = b""
                while text not in received:
                    received += await stream.receive_some()
            while not logs:
                await tangram.http.get("/-/healthz")

    (logged,) = logs
    assert module.calls == ["behind"]
    assert (logged["event"], logged["route"]) == ("handler failed", "/shop/behind")
    assert str(logged["exc_info"]) == "behind the answer"


async def test_a_handler_ends_when_its_client_leaves(shop: tuple[RunningTangram, Any]) -> None:
    """A stream is closed on the island when its client leaves."""
    tangram, module = shop
    address = httpx.URL(tangram.url)
    stream = await trio.open_tcp_stream(address.host, address.port or 80)
    async with stream:
        await stream.send_all(b"GET /shop/endless HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"200 OK" in await stream.receive_some()
    with trio.fail_after(30):
        while "endless ends" not in module.calls:
            gc.collect()  # Starlette leaves the generator to be found
            await tangram.http.get("/-/healthz")


async def test_a_failure_is_logged_and_not_shown(shop: tuple[RunningTangram, Any]) -> None:
    """The response to a handler's exception is a 500 with the id of its log record."""
    with structlog.testing.capture_logs() as logs:
        answer = await shop[0].http.get("/shop/broken")
    (logged,) = [record for record in logs if record["event"] == "handler failed"]

    assert answer.status_code == 500
    assert answer.json() == {"detail": "internal error", "id": logged["id"]}
    assert logged["plugin"] == "plugin"
    assert shop[0].server.ready_count == 1


async def test_a_torn_stream_is_logged(shop: tuple[RunningTangram, Any]) -> None:
    """A stream that fails half-way is logged, and its client sees that it is incomplete."""
    with structlog.testing.capture_logs() as logs, pytest.raises(httpx.RemoteProtocolError):
        await shop[0].http.get("/shop/torn")

    assert [record["route"] for record in logs if record["event"] == "handler failed"] == ["/shop/torn"]
    assert (await shop[0].http.get("/shop/fast")).json() == [1, 2]


async def test_a_restart_answers_requests_in_flight(shop: tuple[RunningTangram, Any]) -> None:
    """A request whose plugin is restarted gets a 503 with retry-after; the next one succeeds."""
    tangram = shop[0]
    answers: list[int] = []

    async def ask() -> None:
        answers.append((await tangram.http.get("/shop/slow")).status_code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        tree = tangram.server.tree
        assert tree is not None
        host: Any = tree.incarnation.hosts["plugin"]
        with trio.fail_after(30):
            while not any("slow" in task.get_name() for task in host.resident.tasks):
                await tangram.http.get("/-/healthz")
        await tangram.http.post("/-/plugins/plugin/restart", headers=tangram.operator)

    assert answers == [503]
    assert (await tangram.http.get("/shop/fast")).json() == [1, 2]


async def test_one_document_for_all(module: Callable[..., Any]) -> None:
    """Native and FastAPI routes stand in one document; schemas of one name are distinguished."""
    import attrs
    from openapi_spec_validator import validate

    @attrs.frozen
    class Item:
        number: int

    router = NativeRouter(prefix="/native")

    async def put(item: Item) -> Item:
        return item

    put.__annotations__ = {"item": Item, "return": Item}
    router.post("/items")(put)
    native = NativePlugin(routers=[router])
    native.name = "native"
    shop = module("shop_plugin", SOURCE).plugin
    shop.name = "shop"
    async with open_tangram([native, shop]) as tangram:
        document = (await tangram.http.get("/openapi.json")).json()
        preflight = await tangram.http.options(
            "/shop/items", headers={"origin": tangram.url, "access-control-request-method": "POST"}
        )
    schemas = document["components"]["schemas"]
    operations = [one["operationId"] for item in document["paths"].values() for one in item.values()]

    validate(document)
    assert {"/native/items", "/shop/items", "/-/readyz"} <= document["paths"].keys()
    assert set(schemas["Item"]["properties"]) == {"number"}
    assert set(schemas["shop_Item"]["properties"]) == {"name", "price", "secret"}
    reference = document["paths"]["/shop/items"]["post"]["requestBody"]["content"]["application/json"]
    assert reference["schema"] == {"$ref": "#/components/schemas/shop_Item"}
    assert len(set(operations)) == len(operations)
    assert preflight.headers["access-control-allow-origin"] == tangram.url
    assert json.dumps(document)
