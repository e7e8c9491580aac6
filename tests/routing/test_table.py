from __future__ import annotations

import asyncio
import errno

import pytest
import structlog
import trio
import trio.testing

from tangram.errors import BadRequest, Fault, Refused
from tangram.routing import (
    APIRouter,
    HTTPException,
    Mount,
    RouteTable,
)
from tests.routing.calling import Peer, call, ok, one_route, raising, scope_of


async def test_not_found_and_handle() -> None:
    """A path without a route is 404 for the application, and False for ``handle``."""
    table = one_route(ok)
    peer = Peer()
    answer = await call(table, "GET", "/nothing")

    assert (answer.status, answer.json()) == (404, {"detail": "Not Found"})
    assert await table.handle(scope_of("GET", "/nothing"), peer.receive, peer.send) is False
    assert peer.sent == []
    assert await table.handle(scope_of("GET", "/"), peer.receive, peer.send) is True


async def test_a_request_is_matched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of the body, the owner and the answer come from one match, kept in the scope."""
    table, peer = one_route(ok), Peer()
    scope = scope_of("GET", "/")
    assert table.body_limit(scope) == table.max_body
    with monkeypatch.context() as patched:
        patched.delattr(RouteTable, "match")
        assert table.locate(scope) is table.locate({**scope})
        assert await table.handle(scope, peer.receive, peer.send) is True

    assert peer.answer().status == 200
    assert await one_route(ok, "/other").handle(scope, peer.receive, peer.send) is False


async def test_the_root_path_is_no_part_of_a_route() -> None:
    """Paths of routes begin behind ASGI's ``root_path``."""
    table, peer = one_route(ok, "/x/y"), Peer()
    scope = {**scope_of("GET", "/below/x/y"), "root_path": "/below"}
    await table(scope, peer.receive, peer.send)

    assert peer.answer().status == 200


async def test_wrong_method() -> None:
    """405 and OPTIONS list the methods; HEAD is GET without the body."""
    table = one_route(ok)
    wrong, asked, head = [await call(table, method, "/") for method in ("POST", "OPTIONS", "HEAD")]

    assert (wrong.status, wrong.header("allow")) == (405, "GET, HEAD, OPTIONS")
    assert (asked.status, asked.header("allow"), asked.body) == (204, "GET, HEAD, OPTIONS", b"")
    assert (head.status, head.header("content-length"), head.body) == (200, "4", b"")


@pytest.mark.parametrize(
    ("registered", "asked", "location"),
    [
        ("/x/", "/x?a=1&b=%20", "/x/?a=1&b=%20"),
        ("/x", "/x/", "/x"),
        ("/{rest}/", "/%0d%0aset-cookie:a", "/%0D%0Aset-cookie:a/"),
    ],
)
async def test_last_slash(registered: str, asked: str, location: str) -> None:
    """A path with a slash too many or too few is redirected, with its query."""

    async def handler(rest: str = "") -> None: ...

    if "{" not in registered:
        handler = ok  # type: ignore[assignment]
    answer = await call(one_route(handler, registered), "GET", asked)

    assert (answer.status, answer.header("location")) == (307, location)


@pytest.mark.parametrize("path", ["//evil.example", "///evil.example", "//evil.example/", "/\\evil.example"])
@pytest.mark.parametrize("route", ["//{a}/", "///{a}/", "//{a}", "/{a}/"])
async def test_redirects_never_lead_to_another_host(path: str, route: str) -> None:
    """A redirect never leads to another host, also if the path begins with slashes."""

    async def handler(a: str) -> None: ...

    peer = Peer()
    scope = {**scope_of("GET", "/"), "path": path, "raw_path": b""}
    await one_route(handler, route)(scope, peer.receive, peer.send)
    location = peer.answer().header("location")

    assert location is None or not location.startswith(("//", "/\\", "http"))


async def test_encoded_slash_stays_in_its_segment() -> None:
    """An encoded slash is part of a value, not a separator."""

    async def handler(a: str) -> str:
        return a

    assert (await call(one_route(handler, "/{a}"), "GET", "/x%2Fy")).json() == "x/y"


async def test_below_a_root_path() -> None:
    """Behind a proxy's prefix the same routes answer, and redirects keep the prefix."""
    table = one_route(ok, "/x/")
    scope = {**scope_of("GET", "/app/x"), "root_path": "/app"}
    peer = Peer()
    await table(scope, peer.receive, peer.send)

    assert peer.answer().header("location") == "/app/x/"


async def test_two_owners_of_one_path() -> None:
    """Of two owners of a method and path the first answers, and the second is reported."""
    first, second = APIRouter(), APIRouter()
    first.add_api_route("/{a}", ok_with_a)
    second.add_api_route("/{b}", ok_with_b, methods=["GET", "POST"])
    table = RouteTable([Mount(first, "first"), Mount(second, "second")])

    assert [(problem.plugin, "'first'" in str(problem)) for problem in table.problems] == [("second", True)]
    assert (await call(table, "GET", "/x")).json() == "a"
    assert (await call(table, "POST", "/x")).json() == "b"


async def ok_with_a(a: str) -> str:
    return "a"


async def ok_with_b(b: str) -> str:
    return "b"


async def test_http_exception() -> None:
    """HTTPException is answered with its status, detail and headers, also in a group."""
    exc = HTTPException(418, {"tea": True}, {"X-Pot": "1"})
    for raised in (exc, ExceptionGroup("nursery", [ExceptionGroup("inner", [exc])])):
        answer = await call(raising(raised), "GET", "/")

        assert (answer.status, answer.json(), answer.header("x-pot")) == (418, {"detail": {"tea": True}}, "1")
    assert (await call(raising(HTTPException(404)), "GET", "/")).json() == {"detail": "Not Found"}


async def test_refused() -> None:
    """A refusal is 403 with its reason."""
    answer = await call(raising(Refused("not yours")), "GET", "/")

    assert (answer.status, answer.json()) == (403, {"detail": "not yours"})


async def test_bad_request_of_a_handler() -> None:
    """A BadRequest of a handler is answered like a fault of binding."""
    answer = await call(raising(BadRequest([Fault("too far", "body.items[2].lat", "far")])), "GET", "/")

    assert answer.status == 422
    assert answer.json() == {
        "detail": [{"loc": ["body", "items", 2, "lat"], "msg": "too far", "type": "far"}]
    }


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("secret"),
        ExceptionGroup("two", [ValueError("secret"), HTTPException(404)]),
        HTTPException(400, object()),
        HTTPException(400, "x", {"a": "b\r\nc: d"}),
    ],
    ids=["error", "group", "detail", "header"],
)
async def test_an_unexpected_exception_is_500_with_an_id(exc: Exception) -> None:
    """An exception is answered with a 500 and an id; the log has id, traceback and owner."""
    with structlog.testing.capture_logs() as logs:
        answer = await call(raising(exc), "GET", "/")

    (record,) = logs
    assert answer.status == 500
    assert answer.json() == {"detail": "internal error", "id": record["id"]}
    assert (record["plugin"], record["route"], record["log_level"]) == ("owner0", "/", "error")
    assert isinstance(record["exc_info"][1], Exception)


async def test_a_call_of_asyncio_in_a_handler_is_explained_in_the_log() -> None:
    """The log of the 500 has the counterpart on Trio and the line."""

    async def handler() -> None:
        await asyncio.sleep(1)

    with structlog.testing.capture_logs() as logs:
        assert (await call(one_route(handler), "GET", "/")).status == 500

    assert "use trio.sleep" in logs[0]["hint"]
    assert __file__ in logs[0]["hint"]


async def test_an_answer_that_json_cannot_represent_is_500() -> None:
    """A value that JSON cannot represent is found before the first byte is sent."""

    async def handler() -> object:
        return {"a": object()}

    with structlog.testing.capture_logs() as logs:
        answer = await call(one_route(handler), "GET", "/")

    assert answer.status == 500
    assert "cannot write object as JSON" in str(logs[0]["exc_info"][1])


async def test_a_cancelled_handler_that_fails_too() -> None:
    """An exception beside a cancellation is logged, and the cancellation is raised."""

    async def handler() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError

    with structlog.testing.capture_logs() as logs, trio.CancelScope() as scope:
        peer = Peer()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one_route(handler), scope_of("GET", "/"), peer.receive, peer.send)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()

    assert scope.cancelled_caught
    assert peer.sent == []
    assert [record["event"] for record in logs] in (
        ["handler failed during cancellation"],
        ["handler failed"],
    )


async def test_websockets_are_refused() -> None:
    """A WebSocket that reaches the table is refused before it is accepted."""
    peer = Peer()
    await one_route(ok)({"type": "websocket", "path": "/"}, peer.receive, peer.send)

    assert peer.sent == [{"type": "websocket.close", "code": 1008}]


async def test_a_handler_without_descriptors_is_503() -> None:
    """EMFILE in a handler, also behind a failed connection attempt, is no internal error."""
    router = APIRouter()

    @router.get("/open")
    async def open_file() -> None:
        raise OSError(errno.EMFILE, "too many open files")

    @router.get("/dial")
    async def dial() -> None:
        raise OSError("all attempts to connect failed") from ExceptionGroup(
            "", [OSError(errno.EMFILE, "too many open files")]
        )

    for path in ("/open", "/dial"):
        answer = await call(RouteTable([Mount(router, "demo")]), "GET", path)
        assert (answer.status, answer.header("retry-after")) == (503, "5")
