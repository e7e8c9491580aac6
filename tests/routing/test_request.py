from __future__ import annotations

from typing import Annotated, Any

import pytest
import structlog

from tangram.errors import RouteError
from tangram.routing import (
    APIRouter,
    Body,
    HTTPException,
    Request,
    RouteTable,
)
from tests.routing.calling import Peer, Thing, call, ok, one_route, problems, raising, scope_of, table_of


def body_table(**settings: Any) -> RouteTable:
    router = APIRouter()

    @router.post("/")
    async def handler(thing: Thing) -> Thing:
        return thing

    return table_of(router, **settings)


async def test_body_in_chunks() -> None:
    """A body may arrive in any number of chunks."""
    answer = await call(
        body_table(),
        "POST",
        "/",
        [b'{"na', b"", b'me":"n"}'],
        {"content-type": "application/ld+json; charset=utf-8"},
    )

    assert answer.json() == {"name": "n"}


@pytest.mark.parametrize("kind", ["text/plain", "", "application/jsonx", "multipart/form-data"])
async def test_wrong_content_type(kind: str) -> None:
    """A body with another content type than JSON is answered with 415."""
    assert (await call(body_table(), "POST", "/", b'{"name":"n"}', {"content-type": kind})).status == 415


async def test_no_body_and_no_json() -> None:
    """A missing body is a missing value; invalid JSON is reported with its offset."""
    assert problems(await call(body_table(), "POST", "/")) == {(("body",), "missing")}
    assert problems(await call(body_table(), "POST", "/", b'{"a" 1}')) == {(("body", 5), "json_invalid")}
    assert problems(await call(body_table(), "POST", "/", b'"\xff"')) == {(("body", 0), "json_invalid")}


async def test_a_json_error_keeps_the_word_json() -> None:
    """The message of a syntax error begins with a small letter, except for an abbreviation."""
    answer = await call(body_table(), "POST", "/", b'{"a" 1}')

    assert answer.json()["detail"][0]["msg"].startswith("JSON is malformed")


async def test_a_byte_order_mark_before_json_is_ignored() -> None:
    """RFC 8259, section 8.1, allows a reader to ignore the mark that some editors write."""
    assert (await call(body_table(), "POST", "/", b'\xef\xbb\xbf{"name":"n"}')).status == 200


async def test_a_compressed_body_is_415() -> None:
    """A body with a content coding is refused by its coding, not as malformed JSON."""
    answer = await call(body_table(), "POST", "/", b"\x1f\x8b", {"content-encoding": "gzip"})

    assert answer.status == 415
    assert "'gzip'" in answer.json()["detail"]
    assert ("accept-encoding", "identity") in answer.headers
    same = await call(body_table(), "POST", "/", b'{"name":"n"}', {"content-encoding": "identity"})
    assert same.status == 200


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit(announced: bool) -> None:
    """A body over the limit is 413: by its announced length, or as soon as it is over."""
    peer = Peer([b"x" * 600] * 100)
    headers = {"content-type": "application/json", **({"content-length": "60000"} if announced else {})}
    await body_table(max_body=1000)(scope_of("POST", "/", headers), peer.receive, peer.send)
    answer = peer.answer()

    assert (answer.status, answer.header("connection")) == (413, "close")
    assert peer.reads == (0 if announced else 2)


async def test_bound_is_exact() -> None:
    """A body of exactly the limit is accepted."""
    body = b'{"name":"n"}'

    assert (await call(body_table(max_body=len(body)), "POST", "/", body)).status == 200
    assert (await call(body_table(max_body=len(body) - 1), "POST", "/", body)).status == 413


@pytest.mark.parametrize("announced", [True, False])
async def test_no_bound(announced: bool) -> None:
    """A limit of 0 accepts every body, as in the engines."""
    body = b'{"name":"%s"}' % (b"n" * 3_000_000)
    headers = {"content-type": "application/json"}
    if announced:
        headers["content-length"] = str(len(body))

    answer = await call(body_table(max_body=0), "POST", "/", [body[:100], body[100:]], headers)
    assert answer.status == 200


async def test_a_route_has_a_limit_of_its_own() -> None:
    """``max_body`` of a route replaces the table's, higher or lower; 0 is no limit."""
    router = APIRouter(prefix="/r")

    @router.post("/high", max_body=100)
    @router.post("/low", max_body=5)
    @router.post("/none", max_body=0)
    @router.post("/default")
    async def take(data: Annotated[bytes, Body()]) -> int:
        return len(data)

    table = table_of(router, max_body=10)
    for path, limit in (("high", 100), ("low", 5), ("default", 10)):
        assert (await call(table, "POST", f"/r/{path}", b"x" * limit)).json() == limit
        answer = await call(table, "POST", f"/r/{path}", b"x" * (limit + 1))
        assert answer.status == 413
        assert str(limit) in answer.json()["detail"]
        assert table.body_limit(scope_of("POST", f"/r/{path}")) == limit
    assert (await call(table, "POST", "/r/none", b"x" * 1000)).json() == 1000
    assert table.body_limit(scope_of("POST", "/nowhere")) == table.body_limit(scope_of("GET", "/r/low")) == 10


@pytest.mark.parametrize("limit", [-1, 1.5, "5MB", True])
def test_a_limit_that_is_no_number_of_bytes_is_an_error(limit: Any) -> None:
    """``max_body`` is a whole number of bytes."""
    with pytest.raises(RouteError, match="max_body of '/x' in bytes"):
        APIRouter().post("/x", max_body=limit)(take_nothing)


async def take_nothing() -> None: ...


async def test_hang_up_while_the_body_is_read() -> None:
    """A client that disconnects within its body calls no handler and logs nothing."""
    peer = Peer([b'{"name"'], cut=True)
    with structlog.testing.capture_logs() as logs:
        await body_table()(
            scope_of("POST", "/", {"content-type": "application/json"}), peer.receive, peer.send
        )

    assert (peer.sent, logs) == ([], [])


async def test_hang_up_while_answering() -> None:
    """A client that disconnects during the answer is not logged as a failure."""
    peer = Peer()
    peer.gone.set()
    with structlog.testing.capture_logs() as logs:
        await one_route(ok)(scope_of("GET", "/"), peer.receive, peer.send)
        await raising(HTTPException(404))(scope_of("GET", "/"), peer.receive, peer.send)

    assert logs == []


async def test_request_reads_its_body_once_or_streams_it() -> None:
    """``body()`` may be called twice, ``stream()`` once."""
    router = APIRouter()

    @router.post("/twice")
    async def twice(request: Request) -> list[Any]:
        return [
            await request.json(),
            (await request.body()).decode(),
            [c.decode() async for c in request.stream()],
        ]

    @router.post("/stream")
    async def stream(request: Request) -> list[Any]:
        chunks = [chunk.decode() async for chunk in request.stream()]
        with pytest.raises(RuntimeError, match="streamed already"):
            await request.body()
        return chunks

    table = table_of(router)

    assert (await call(table, "POST", "/twice", [b"[1", b"]"])).json() == [[1], "[1]", ["[1]"]]
    assert (await call(table, "POST", "/stream", [b"a", b"b"])).json() == ["a", "b"]
    assert problems(await call(table, "POST", "/twice", b"[")) == {(("body", 1), "json_invalid")}


async def test_raw_body() -> None:
    """A body parameter of type bytes accepts every content type."""

    async def handler(data: Annotated[bytes, Body()]) -> int:
        return len(data)

    answer = await call(
        one_route(handler, method="POST"), "POST", "/", b"\xff\xfe", {"content-type": "image/png"}
    )

    assert answer.json() == 2


async def test_too_many_query_parameters() -> None:
    """A query of thousands of parameters is refused before it is parsed."""

    async def handler(a: list[str]) -> int:
        return len(a)

    table = one_route(handler)

    assert (await call(table, "GET", "/?" + "&".join(["a=1"] * 1000))).json() == 1000
    assert problems(await call(table, "GET", "/?" + "&".join(["a=1"] * 1001))) == {(("query",), "too_long")}
    assert problems(await call(table, "GET", "/?a=%ff")) == {(("query",), "unicode_error")}
