"""Call a ``RouteTable`` in a test as a server would."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs
import trio

from tangram.routing import APIRouter, Mount, RouteTable


@attrs.frozen
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    chunks: list[bytes]

    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


class Peer:
    """The client of one request.

    Set ``gone`` to disconnect it; after that, sending to it raises.
    """

    def __init__(self, body: Sequence[bytes] = (b"",), *, cut: bool = False) -> None:
        self.sent: list[dict[str, Any]] = []
        self.gone = trio.Event()
        self.reads = 0
        self._chunks = list(body)
        self._cut = cut

    async def receive(self) -> dict[str, Any]:
        self.reads += 1
        await trio.lowlevel.checkpoint()
        if self._chunks:
            chunk = self._chunks.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(self._chunks) or self._cut}
        if not self._cut:
            await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        if self.gone.is_set():
            raise trio.BrokenResourceError
        self.sent.append(message)

    @property
    def complete(self) -> bool:
        return bool(self.sent) and not self.sent[-1].get("more_body", False) and len(self.sent) > 1

    def answer(self) -> Answer:
        start, *rest = self.sent
        assert start["type"] == "http.response.start"
        assert all(message["type"] == "http.response.body" for message in rest)
        assert all(message.get("more_body") for message in rest[:-1])
        assert rest
        assert not rest[-1].get("more_body", False)
        chunks = [message["body"] for message in rest]
        headers = [(key.decode(), value.decode("latin-1")) for key, value in start["headers"]]
        return Answer(start["status"], headers, b"".join(chunks), chunks)


def scope_of(method: str, target: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    from urllib.parse import unquote

    path, _, query = target.partition("?")
    pairs = {"host": "localhost:2346", **(headers or {})}
    return {
        "type": "http",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(key.encode(), value.encode("latin-1")) for key, value in pairs.items()],
        "client": ("127.0.0.1", 4000),
    }


async def call(  # noqa: PLR0917 - the parts of a request
    table: RouteTable,
    method: str,
    target: str,
    body: bytes | Sequence[bytes] = b"",
    headers: dict[str, str] | None = None,
    json_body: Any = None,
) -> Answer:
    headers = dict(headers or {})
    if json_body is not None:
        body = json.dumps(json_body).encode()
    if body and isinstance(body, bytes):
        headers.setdefault("content-type", "application/json")
        headers.setdefault("content-length", str(len(body)))
    peer = Peer([body] if isinstance(body, bytes) else body)
    await table(scope_of(method, target, headers), peer.receive, peer.send)
    return peer.answer()


def table_of(*routers: APIRouter, **settings: Any) -> RouteTable:
    """Return a table with one owner per router, and check that no route was left out."""
    resolve = settings.pop("resolve", None)
    table = RouteTable([Mount(r, f"owner{i}", resolve) for i, r in enumerate(routers)], **settings)
    assert table.problems == []
    return table


def problems(answer: Answer) -> set[tuple[tuple[str | int, ...], str]]:
    """Return place and type of each fault of a 422."""
    assert answer.status == 422, answer
    assert all(item["msg"] for item in answer.json()["detail"])
    return {(tuple(item["loc"]), item["type"]) for item in answer.json()["detail"]}


@attrs.define
class Thing:
    name: str


def one_route(endpoint: Any, path: str = "/", method: str = "GET", **settings: Any) -> RouteTable:
    router = APIRouter()
    router.add_api_route(path, endpoint, methods=[method], **settings)
    return table_of(router)


def raising(exc: BaseException) -> RouteTable:
    async def handler() -> None:
        raise exc

    return one_route(handler)


async def ok() -> str:
    return "ok"
