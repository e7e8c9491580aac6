from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import attrs
import pytest
import structlog
import trio
from websockets.frames import Opcode

from tangram.errors import Refused, RouteError
from tangram.plugins.plugin import Plugin
from tangram.plugins.state import BackendState
from tangram.routing import (
    APIRouter,
    Body,
    Depends,
    Header,
    HTTPException,
    Query,
    Request,
    Response,
    RouteTable,
    WebSocket,
    WebSocketDisconnect,
    check_router,
    openapi,
)
from tangram.testing import open_tangram
from tests.http.native.sockets import masked
from tests.routing.calling import scope_of, table_of


class SocketPeer:
    """The client of one WebSocket, which sends its messages and then disconnects."""

    def __init__(self, *messages: str | bytes, code: int = 1000, gone: bool = False) -> None:
        self.sent: list[dict[str, Any]] = []
        self.gone = gone
        self._events: list[dict[str, Any]] = [{"type": "websocket.connect"}]
        for message in messages:
            key = "text" if isinstance(message, str) else "bytes"
            self._events.append({"type": "websocket.receive", key: message})
        self._events.append({"type": "websocket.disconnect", "code": code, "reason": "bye"})

    async def receive(self) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return self._events.pop(0)

    async def send(self, message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        if self.gone and message["type"] == "websocket.send":
            raise OSError("the client has gone")
        self.sent.append(message)

    @property
    def types(self) -> list[str]:
        return [message["type"].removeprefix("websocket.") for message in self.sent]


@attrs.frozen
class Given:
    number: int


def socket_scope(target: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    scope = {**scope_of("GET", target, headers), "type": "websocket", "subprotocols": ["a", "b"]}
    del scope["method"]
    return scope


async def run(table: RouteTable, peer: SocketPeer, target: str = "/ws", **headers: str) -> SocketPeer:
    await table(socket_scope(target, headers), peer.receive, peer.send)
    return peer


def serving(handler: Any, path: str = "/ws", **settings: Any) -> RouteTable:
    router = APIRouter()
    router.websocket(path, **settings)(handler)
    return table_of(router, injectable=[Given], resolve=lambda _kind: Given(7))


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for message in websocket:
        await websocket.send(message)


async def test_messages_are_received_and_sent() -> None:
    """Text and bytes keep their kind; the connection is closed at the end of the handler."""
    peer = await run(serving(echo), SocketPeer("text", b"bytes"))

    assert peer.types == ["accept", "send", "send"]
    assert (peer.sent[1]["text"], peer.sent[2]["bytes"]) == ("text", b"bytes")


events: list[str] = []


async def session() -> AsyncIterator[str]:
    events.append("opened")
    yield "session"
    events.append("closed")


async def test_parameters_and_dependencies_are_bound() -> None:
    """Path, query, headers, dependencies and injected types are bound as for HTTP."""
    events.clear()

    async def handler(  # noqa: PLR0917 - each source once
        websocket: WebSocket,
        room: str,
        given: Given,
        session: Annotated[str, Depends(session)],
        x_key: Annotated[str, Header()],
        level: Annotated[int, Query(ge=1)] = 1,
    ) -> None:
        await websocket.accept("b")
        await websocket.send_json([room, given.number, session, x_key, level, websocket.subprotocols])
        await websocket.send(await websocket.receive_text())
        await websocket.send(await websocket.receive_bytes())
        await websocket.send_json(await websocket.receive_json())

    peer = SocketPeer(b"\xff", "\u00e9", '{"a": 1}')
    await run(serving(handler, "/ws/{room}"), peer, "/ws/a%2Fb?level=2", **{"x-key": "k"})

    assert events == ["opened", "closed"]
    assert peer.sent[0]["subprotocol"] == "b"
    assert peer.sent[1]["text"] == '["a/b",7,"session","k",2,["a","b"]]'
    assert [peer.sent[2]["text"], peer.sent[3]["bytes"], peer.sent[4]["text"]] == [
        "\ufffd",
        "\u00e9".encode(),
        '{"a":1}',
    ]
    assert peer.sent[-1] == {"type": "websocket.close", "code": 1000, "reason": ""}


async def test_faults_of_parameters_refuse_the_handshake() -> None:
    """The handshake is answered with 422 and the faults, as a request would be."""

    async def handler(websocket: WebSocket, level: int) -> None:
        raise AssertionError

    peer = await run(serving(handler), SocketPeer(), "/ws?level=x")

    assert peer.sent[0]["status"] == 422
    assert b"int_parsing" in peer.sent[1]["body"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (HTTPException(401, "who is it"), 401, 1008),
        (Refused("not today"), 403, 1008),
        (ValueError("a bug"), 500, 1011),
    ],
)
async def test_an_exception_is_answered_before_and_after_the_handshake(
    error: Exception, status: int, code: int
) -> None:
    """Before accept it is an HTTP status, after it a close code; bugs are logged."""

    async def early(websocket: WebSocket) -> None:
        raise error

    async def late(websocket: WebSocket) -> None:
        await websocket.accept()
        raise error

    with structlog.testing.capture_logs() as logs:
        before = await run(serving(early), SocketPeer())
        after = await run(serving(late), SocketPeer())

    assert before.sent[0]["status"] == status
    assert after.types == ["accept", "close"]
    assert after.sent[1]["code"] == code
    assert b"a bug" not in before.sent[1]["body"]
    assert "a bug" not in after.sent[1]["reason"]
    assert [record["event"] for record in logs] == (["handler failed"] * 2 if status == 500 else [])


async def test_the_end_of_the_client_is_no_failure() -> None:
    """A receive or send after the client has gone ends the handler without a log line."""
    seen: list[tuple[int, str]] = []

    async def reads(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            await websocket.receive()
        except WebSocketDisconnect as gone:
            seen.append((gone.code, gone.reason))
            raise

    async def writes(websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            await websocket.send("x")

    with structlog.testing.capture_logs() as logs:
        await run(serving(reads), SocketPeer(code=1001))
        await run(serving(writes), SocketPeer(gone=True))

    assert (seen, logs) == ([(1001, "bye")], [])


async def test_invalid_json_closes_with_1008() -> None:
    """A message that is not JSON costs its own WebSocket, and is not logged as a failure."""

    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_json()

    peer = await run(serving(handler), SocketPeer("{"))

    assert (peer.sent[-1]["code"], peer.types) == (1008, ["accept", "close"])


async def test_a_handler_that_does_not_accept_refuses() -> None:
    """The end of a handler before accept, or a path without a route, refuses the handshake."""

    async def handler(websocket: WebSocket) -> None:
        with pytest.raises(RuntimeError, match="accept"):
            await websocket.receive()

    assert (await run(serving(handler), SocketPeer())).types == ["close"]
    assert (await run(serving(handler), SocketPeer(), "/other")).types == ["close"]


async def test_long_reasons_are_cut() -> None:
    """The reason of a close frame has at most 123 bytes, and is not cut within a character."""

    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close(4000, "\u00e9" * 100)
        await websocket.close(4001)

    peer = await run(serving(handler), SocketPeer())

    assert (peer.sent[-1]["code"], peer.sent[-1]["reason"]) == (4000, "\u00e9" * 61)


def takes_request(request: Request) -> None: ...
async def wants_request(websocket: WebSocket, request: Request) -> None: ...
async def wants_response(websocket: WebSocket, response: Response) -> None: ...
async def wants_body(websocket: WebSocket, data: Annotated[bytes, Body()]) -> None: ...
async def depends_on_request(websocket: WebSocket, x: Annotated[None, Depends(takes_request)]) -> None: ...
def not_async(websocket: WebSocket) -> None: ...
async def wants_socket(websocket: WebSocket) -> None: ...


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (wants_request, "is a Request, and this route has a WebSocket"),
        (depends_on_request, "is a Request"),
        (wants_response, "has no Response"),
        (wants_body, "needs a body"),
        (not_async, "async function"),
    ],
)
def test_a_handler_that_cannot_serve_is_an_error(handler: Any, words: str) -> None:
    """The error names the parameter, and other routes are served."""
    router = APIRouter()
    router.websocket("/ws")(handler)
    with pytest.raises(RouteError, match=words):
        check_router(router, owner="me")


def test_an_http_route_has_no_websocket() -> None:
    """A WebSocket parameter of an HTTP route is an error."""
    router = APIRouter()
    router.get("/x")(wants_socket)
    with pytest.raises(RouteError, match="is a WebSocket, and this route has a Request"):
        check_router(router, owner="me")


def test_websocket_routes_stand_beside_http_routes() -> None:
    """One path may have both kinds; a second owner is a problem; OpenAPI has HTTP only."""
    router = APIRouter(prefix="/a")
    router.websocket("/x")(echo)
    outer = APIRouter(prefix="/o")
    outer.include_router(router)

    @router.get("/x")
    async def x() -> str:
        return "x"

    table = table_of(outer)
    assert [route.template.path for route in outer.websocket_routes] == ["/o/a/x"]
    assert list(openapi(table)["paths"]) == ["/o/a/x"]
    assert list(openapi(table)["paths"]["/o/a/x"]) == ["get"]
    with structlog.testing.capture_logs():
        twice = RouteTable([*table_mounts(outer), *table_mounts(outer)])
    assert [str(problem) for problem in twice.problems if "WEBSOCKET" in str(problem)] == [
        "WEBSOCKET /o/a/x: it is a route of 'me' already"
    ]


def table_mounts(router: APIRouter) -> list[Any]:
    from tangram.routing import Mount

    return [Mount(router, "me")]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["native", "hypercorn"])
async def test_a_plugins_websocket_on_both_engines(engine: Literal["native", "hypercorn"]) -> None:
    """A plugin serves WebSockets behind either engine; other origins are refused."""
    router = APIRouter(prefix="/demo")

    @router.websocket("/ws/{room}")
    async def room(websocket: WebSocket, room: str, state: BackendState) -> None:
        if room == "locked":
            raise HTTPException(403, "locked")
        await websocket.accept()
        async for message in websocket:
            await websocket.send(f"{room} {message!r} {state.base_url.startswith('http')}")
            if message == "crash":
                raise RuntimeError("planted")

    config = {"server": {"engine": engine}}
    async with open_tangram([Plugin(routers=[router])], config, fakes=True) as running:
        port = int(running.url.rpartition(":")[2])
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(handshake(port, "/demo/ws/a"))
            answer = await stream.receive_some()
            await stream.send_all(masked(b"hello") + masked(b"bytes", Opcode.BINARY) + masked(b"crash"))
            answer += await read_all(stream)
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert b"a 'hello' True" in answer
        assert b"a b'bytes' True" in answer
        assert b"\x88\x10" + (1011).to_bytes(2, "big") + b"internal error" in answer
        assert b'{"detail":"locked"}' in await refusal(port, "/demo/ws/locked")
        assert await refusal(port, "/demo/ws/a", "Origin: https://attacker.example")


def handshake(port: int, path: str, *lines: str) -> bytes:
    head = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *lines,
    ]
    return "\r\n".join([*head, "", ""]).encode()


async def read_all(stream: trio.SocketStream) -> bytes:
    """Read until the server closes, or sends nothing for a second."""
    answer = b""
    while True:
        with trio.move_on_after(1):
            chunk = await stream.receive_some()
            answer += chunk
            if chunk:
                continue
        return answer


async def refusal(port: int, path: str, *lines: str) -> bytes:
    """Return the answer to a handshake that is refused."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(handshake(port, path, *lines))
        answer = await read_all(stream)
    assert answer.startswith(b"HTTP/1.1 403 "), answer
    return answer
