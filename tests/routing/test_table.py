from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import attrs
import pytest
import structlog
import trio
import trio.testing

from tangram.errors import BadRequest, Fault
from tangram.routing import (
    APIRouter,
    Body,
    Depends,
    HTMLResponse,
    HTTPException,
    JSONResponse,
    Mount,
    PlainTextResponse,
    RedirectResponse,
    Request,
    Response,
    ResponseAborted,
    RouteTable,
    StreamingResponse,
)

from .calling import Peer, call, problems, scope_of, table_of


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


async def test_not_found_and_handle() -> None:
    """What no route has is 404 for the application, and False for whoever comes next."""
    table = one_route(ok)
    peer = Peer()
    answer = await call(table, "GET", "/nothing")

    assert (answer.status, answer.json()) == (404, {"detail": "Not Found"})
    assert await table.handle(scope_of("GET", "/nothing"), peer.receive, peer.send) is False
    assert peer.sent == []
    assert await table.handle(scope_of("GET", "/"), peer.receive, peer.send) is True


async def test_wrong_method() -> None:
    """405 names the methods that are there; OPTIONS is answered from them; HEAD is GET without its body."""
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
    """A path that is right but for its last slash is redirected, with its query and nothing smuggled in."""

    async def handler(rest: str = "") -> None: ...

    if "{" not in registered:
        handler = ok  # type: ignore[assignment]
    answer = await call(one_route(handler, registered), "GET", asked)

    assert (answer.status, answer.header("location")) == (307, location)


@pytest.mark.parametrize("path", ["//evil.example", "///evil.example", "//evil.example/", "/\\evil.example"])
@pytest.mark.parametrize("route", ["//{a}/", "///{a}/", "//{a}", "/{a}/"])
async def test_redirects_stay_here(path: str, route: str) -> None:
    """A redirect never names another host, however many slashes the path starts with."""

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
    """Of two owners of the same method and path the first answers, and the second is told by name."""
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


@pytest.mark.parametrize(
    ("value", "body", "kind"),
    [
        (None, b"null", "application/json"),
        ({"a": 1}, b'{"a":1}', "application/json"),
        ([Thing("n")], b'[{"name":"n"}]', "application/json"),
        ("text", b'"text"', "application/json"),
        ((1, 2), b"[1,2]", "application/json"),
        (range(2), b"[0,1]", "application/json"),
        (JSONResponse({"b": 2}), b'{"b":2}', "application/json"),
        (PlainTextResponse("é"), "é".encode(), "text/plain; charset=utf-8"),
        (HTMLResponse("<p>"), b"<p>", "text/html; charset=utf-8"),
        (Response(b"\x00", media_type="application/x-own"), b"\x00", "application/x-own"),
    ],
    ids=str,
)
async def test_answers(value: object, body: bytes, kind: str) -> None:
    """A handler returns what JSON can hold, or a Response; sync and async handlers alike."""

    async def handler() -> Any:
        return value

    for endpoint in (handler, lambda: value):
        answer = await call(one_route(endpoint), "GET", "/")

        assert (answer.status, answer.body, answer.header("content-type")) == (200, body, kind)
        assert answer.header("content-length") == str(len(body))


async def test_response_class_and_status() -> None:
    """A route may say what its plain return values become, and with which status; 204 has no body."""
    text = await call(one_route(ok, response_class=PlainTextResponse, status_code=201), "GET", "/")
    none = await call(one_route(ok, status_code=204), "GET", "/")

    assert (text.status, text.body, text.header("content-type")) == (201, b"ok", "text/plain; charset=utf-8")
    assert (none.status, none.body, none.header("content-length")) == (204, b"", None)


async def test_sync_handlers_run_in_threads() -> None:
    """A sync handler does not block the loop."""

    def handler() -> bool:
        return threading.current_thread() is not threading.main_thread()

    assert (await call(one_route(handler), "GET", "/")).json() is True


async def test_redirect_response_and_headers() -> None:
    """Headers cannot be broken out of, whoever writes them."""
    answer = await call(one_route(lambda: RedirectResponse("/a b\r\nx: y")), "GET", "/")

    assert answer.header("location") == "/a%20b%0D%0Ax:%20y"
    with pytest.raises(ValueError, match="line breaks"):
        Response(headers={"x": "a\r\nb: c"})
    with pytest.raises(ValueError, match="separators"):
        Response().set_cookie("a", "b; Secure")


async def test_cookies() -> None:
    """Several cookies are several headers."""

    def handler(response: Response) -> None:
        response.set_cookie("a", "1", max_age=60, httponly=True, secure=True)
        response.delete_cookie("b")

    answer = await call(one_route(handler), "GET", "/")

    assert [value for name, value in answer.headers if name == "set-cookie"] == [
        "a=1; Path=/; SameSite=lax; Max-Age=60; Secure; HttpOnly",
        "b=; Path=/; SameSite=lax; Max-Age=0",
    ]


async def test_http_exception() -> None:
    """HTTPException is the answer: status, detail and headers; also alone in a group."""
    exc = HTTPException(418, {"tea": True}, {"X-Pot": "1"})
    for raised in (exc, ExceptionGroup("nursery", [ExceptionGroup("inner", [exc])])):
        answer = await call(raising(raised), "GET", "/")

        assert (answer.status, answer.json(), answer.header("x-pot")) == (418, {"detail": {"tea": True}}, "1")
    assert (await call(raising(HTTPException(404)), "GET", "/")).json() == {"detail": "Not Found"}


async def test_bad_request_of_a_handler() -> None:
    """A handler's own BadRequest has the same shape as ours."""
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
async def test_a_bug_is_500_with_an_id(exc: Exception) -> None:
    """An exception of a handler is a 500 with an id and no word of it; the log has the id, the story and the
    owner.
    """
    with structlog.testing.capture_logs() as logs:
        answer = await call(raising(exc), "GET", "/")

    (record,) = logs
    assert answer.status == 500
    assert answer.json() == {"detail": "internal error", "id": record["id"]}
    assert (record["plugin"], record["route"], record["log_level"]) == ("owner0", "/", "error")
    assert isinstance(record["exc_info"][1], Exception)


async def test_an_answer_that_is_no_json_is_a_bug() -> None:
    """What cannot be written as JSON is found before the first byte is sent."""

    async def handler() -> object:
        return {"a": object()}

    with structlog.testing.capture_logs() as logs:
        answer = await call(one_route(handler), "GET", "/")

    assert answer.status == 500
    assert "cannot write object as JSON" in str(logs[0]["exc_info"][1])


async def test_a_cancelled_handler_that_fails_too() -> None:
    """An exception beside a cancellation is logged, and only the cancellation goes on."""

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
        ["a handler failed while it was cancelled"],
        ["a handler failed"],
    )


# Bodies


def body_table(**settings: Any) -> RouteTable:
    router = APIRouter()

    @router.post("/")
    async def handler(thing: Thing) -> Thing:
        return thing

    return table_of(router, **settings)


async def test_body_in_chunks() -> None:
    """A body may come in any number of chunks."""
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
    """A body that does not call itself JSON is not read as JSON."""
    assert (await call(body_table(), "POST", "/", b'{"name":"n"}', {"content-type": kind})).status == 415


async def test_no_body_and_no_json() -> None:
    """A missing body is missing; a broken one is told with the offset where it breaks."""
    assert problems(await call(body_table(), "POST", "/")) == {(("body",), "missing")}
    assert problems(await call(body_table(), "POST", "/", b'{"a" 1}')) == {(("body", 5), "json_invalid")}
    assert problems(await call(body_table(), "POST", "/", b'"\xff"')) == {(("body", 0), "json_invalid")}


@pytest.mark.parametrize("announced", [True, False])
async def test_too_long_a_body(announced: bool) -> None:
    """A body over the bound is 413: at once if its length says so, else as soon as it is over."""
    peer = Peer([b"x" * 600] * 100)
    headers = {"content-type": "application/json", **({"content-length": "60000"} if announced else {})}
    await body_table(max_body=1000)(scope_of("POST", "/", headers), peer.receive, peer.send)
    answer = peer.answer()

    assert (answer.status, answer.header("connection")) == (413, "close")
    assert peer.reads == (0 if announced else 2)


async def test_bound_is_exact() -> None:
    """A body of exactly the bound is taken."""
    body = b'{"name":"n"}'

    assert (await call(body_table(max_body=len(body)), "POST", "/", body)).status == 200
    assert (await call(body_table(max_body=len(body) - 1), "POST", "/", body)).status == 413


async def test_hang_up_while_the_body_is_read() -> None:
    """A client that goes away within its body costs nothing: no handler, no answer, no log."""
    peer = Peer([b'{"name"'], cut=True)
    with structlog.testing.capture_logs() as logs:
        await body_table()(
            scope_of("POST", "/", {"content-type": "application/json"}), peer.receive, peer.send
        )

    assert (peer.sent, logs) == ([], [])


async def test_hang_up_while_answering() -> None:
    """A client that goes away while it is answered is nobody's failure."""
    peer = Peer()
    peer.gone.set()
    with structlog.testing.capture_logs() as logs:
        await one_route(ok)(scope_of("GET", "/"), peer.receive, peer.send)
        await raising(HTTPException(404))(scope_of("GET", "/"), peer.receive, peer.send)

    assert logs == []


async def test_request_reads_its_body_once_or_streams_it() -> None:
    """body() may be asked twice, stream() once."""
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
    """A body of type bytes is taken as it is, whatever it calls itself."""

    async def handler(data: Annotated[bytes, Body()]) -> int:
        return len(data)

    answer = await call(
        one_route(handler, method="POST"), "POST", "/", b"\xff\xfe", {"content-type": "image/png"}
    )

    assert answer.json() == 2


async def test_too_many_query_parameters() -> None:
    """A query of thousands of parameters is refused before it is taken apart."""

    async def handler(a: list[str]) -> int:
        return len(a)

    table = one_route(handler)

    assert (await call(table, "GET", "/?" + "&".join(["a=1"] * 1000))).json() == 1000
    assert problems(await call(table, "GET", "/?" + "&".join(["a=1"] * 1001))) == {(("query",), "too_long")}
    assert problems(await call(table, "GET", "/?a=%ff")) == {(("query",), "unicode_error")}


# Dependencies

EVENTS: list[str] = []


@pytest.fixture(autouse=True)
def _no_events() -> None:
    EVENTS.clear()


async def base() -> AsyncIterator[str]:
    EVENTS.append("base opens")
    try:
        yield "base"
    except HTTPException:
        EVENTS.append("base sees the failure")
        raise
    finally:
        await trio.lowlevel.checkpoint()
        EVENTS.append("base closes")


def above(base: Annotated[str, Depends(base)]) -> Iterator[str]:
    EVENTS.append("above opens")
    yield base + "+above"
    EVENTS.append("above closes")


@attrs.define
class Page:
    limit: int = 10
    tags: list[str] = attrs.field(factory=list)


async def test_dependencies_nest_and_are_called_once() -> None:
    """Dependencies are called once per request, in order, and cleaned up in reverse after the answer."""
    router = APIRouter(dependencies=[Depends(above)])

    @router.get("/")
    async def handler(
        a: Annotated[str, Depends(above)], b: Annotated[str, Depends(base)], page: Annotated[Page, Depends()]
    ) -> list[Any]:
        EVENTS.append("handler")
        return [a, b, page]

    class Watching(Peer):
        async def send(self, message: dict[str, Any]) -> None:
            EVENTS.append(message["type"])
            await super().send(message)

    peer = Watching()
    await table_of(router)(scope_of("GET", "/?limit=3&tags=x"), peer.receive, peer.send)

    assert peer.answer().json() == ["base+above", "base", {"limit": 3, "tags": ["x"]}]
    assert EVENTS == [
        "base opens",
        "above opens",
        "handler",
        "http.response.start",
        "http.response.body",
        "above closes",
        "base closes",
    ]


async def test_a_failure_passes_through_its_dependencies() -> None:
    """What a handler raises is thrown into the generators that it depends on, and answered afterwards."""

    async def handler(a: Annotated[str, Depends(base)]) -> None:
        raise HTTPException(409)

    answer = await call(one_route(handler), "GET", "/")

    assert answer.status == 409
    assert EVENTS == ["base opens", "base sees the failure", "base closes"]


async def swallowing() -> AsyncIterator[None]:
    with contextlib.suppress(ValueError):
        yield


async def failing_late() -> AsyncIterator[None]:
    yield
    raise ValueError("late")


async def test_a_swallowed_failure_is_still_answered() -> None:
    """A dependency that swallows the handler's failure leaves a bug, not a request without an answer."""

    async def handler(a: Annotated[None, Depends(swallowing)]) -> None:
        raise ValueError

    with structlog.testing.capture_logs():
        assert (await call(one_route(handler), "GET", "/")).status == 500


async def test_a_failing_clean_up_spoils_no_answer() -> None:
    """A clean-up that fails after the answer is logged; the answer stands."""

    async def handler(a: Annotated[None, Depends(failing_late)]) -> str:
        return "good"

    with structlog.testing.capture_logs() as logs:
        answer = await call(one_route(handler), "GET", "/")

    assert (answer.status, answer.json()) == (200, "good")
    assert [record["event"] for record in logs] == ["a clean-up failed after its response"]


async def guard() -> None:
    raise HTTPException(401)


async def test_a_guard_answers_before_faults_are_told() -> None:
    """A dependency that refuses is the answer, whatever else is wrong with the request."""
    router = APIRouter(dependencies=[Depends(guard)])

    @router.get("/{n}")
    async def handler(n: int) -> None: ...

    assert (await call(table_of(router), "GET", "/x")).status == 401


def reading(thing: Thing) -> Thing:
    return thing


async def using(thing: Annotated[Thing, Depends(reading)]) -> str:
    EVENTS.append("called")
    return thing.name


async def test_nothing_is_called_without_what_it_depends_on() -> None:
    """With a broken body, what depends on the body through others is not called; a guard still is."""

    async def handler(name: Annotated[str, Depends(using)]) -> str:
        return name

    router = APIRouter()
    router.add_api_route("/open", handler, methods=["POST"])
    router.add_api_route("/guarded", handler, methods=["POST"], dependencies=[Depends(guard)])
    table = table_of(router)

    assert (await call(table, "POST", "/open", b'{"name":"n"}')).json() == "n"
    assert EVENTS.pop() == "called"
    assert problems(await call(table, "POST", "/open", b"{")) == {(("body", 1), "json_invalid")}
    assert problems(await call(table, "POST", "/open", b"{}")) == {(("body", "name"), "missing")}
    assert (await call(table, "POST", "/guarded", b"{")).status == 401
    assert EVENTS == []


async def test_a_shared_response_keeps_its_headers() -> None:
    """Headers added by an injected Response go to this answer, not into a response object used for all."""
    shared = PlainTextResponse("same")

    def handler(out: Response) -> Response:
        out.headers.append("x-n", "1")
        return shared

    table = one_route(handler)
    for _ in range(2):
        answer = await call(table, "GET", "/")

        assert [value for name, value in answer.headers if name == "x-n"] == ["1"]


COUNT = [0]


def counting() -> int:
    COUNT[0] += 1
    return COUNT[0]


async def test_overrides_and_uncached() -> None:
    """Tests may put another function in a dependency's place; use_cache=False calls again."""

    async def handler(
        a: Annotated[int, Depends(counting, use_cache=False)],
        b: Annotated[int, Depends(counting, use_cache=False)],
    ) -> bool:
        return a == b

    router = APIRouter()
    router.add_api_route("/", handler)

    assert (await call(table_of(router), "GET", "/")).json() is False
    assert (await call(table_of(router, overrides={counting: lambda: 7}), "GET", "/")).json() is True


# Streaming


async def test_streaming() -> None:
    """Async and sync iterators are sent chunk by chunk, text as UTF-8, and HEAD sends none of it."""

    async def numbers() -> AsyncIterator[str]:
        for n in range(3):
            yield f"é{n}"

    for make in (numbers, lambda: iter([b"\xc3\xa90", "é1", "é2"])):
        table = one_route(lambda make=make: StreamingResponse(make(), media_type="text/plain"))
        answer = await call(table, "GET", "/")
        head = await call(table, "HEAD", "/")

        assert answer.chunks == ["é0".encode(), "é1".encode(), "é2".encode(), b""]
        assert (answer.header("content-type"), answer.header("content-length")) == (
            "text/plain; charset=utf-8",
            None,
        )
        assert (head.status, head.body) == (200, b"")


async def test_a_stream_ends_when_the_client_goes() -> None:
    """A stream whose client hangs up is closed at once, also while it waits for its next chunk."""

    async def forever() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await trio.sleep_forever()
        finally:
            EVENTS.append("closed")

    peer = Peer()
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            table = one_route(lambda: StreamingResponse(forever()))
            nursery.start_soon(table, scope_of("GET", "/"), peer.receive, peer.send)
            while len(peer.sent) < 2:
                await trio.testing.wait_all_tasks_blocked(0.001)
            peer.gone.set()

    assert EVENTS == ["closed"]
    assert logs == []


async def test_a_stream_is_closed_when_sending_fails() -> None:
    """A stream whose client is found gone while a chunk is sent is closed before the request ends."""

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"chunk"
        finally:
            await trio.lowlevel.checkpoint()
            EVENTS.append("closed")

    class Leaving(Peer):
        async def receive(self) -> dict[str, Any]:
            await trio.sleep_forever()
            raise AssertionError

        async def send(self, message: dict[str, Any]) -> None:
            await super().send(message)
            if len(self.sent) == 3:
                self.gone.set()

    peer = Leaving()
    await one_route(lambda: StreamingResponse(endless()))(scope_of("GET", "/"), peer.receive, peer.send)

    assert EVENTS == ["closed"]


async def test_a_stream_whose_client_never_listened() -> None:
    """A client that is gone before the first byte is nobody's failure."""

    class Gone(Peer):
        async def send(self, message: dict[str, Any]) -> None:
            await trio.sleep_forever()

    peer = Gone()
    peer.gone.set()
    with structlog.testing.capture_logs() as logs:
        table = one_route(lambda: StreamingResponse(iter([b"x"])))
        await table(scope_of("GET", "/"), peer.receive, peer.send)

    assert logs == []


async def test_a_stream_that_fails_is_cut_and_not_garnished() -> None:
    """After the first byte a failure ends the connection: nothing is sent behind what was half sent."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ValueError

    peer = Peer()
    with structlog.testing.capture_logs() as logs, pytest.raises(ResponseAborted):
        await one_route(lambda: StreamingResponse(broken()))(scope_of("GET", "/"), peer.receive, peer.send)

    assert [message.get("body") for message in peer.sent] == [None, b"half"]
    assert not peer.complete
    assert [record["event"] for record in logs] == ["a response broke off"]


async def test_an_abandoned_thread_is_counted() -> None:
    """A request that is cancelled does not wait for its thread; the thread is counted as left behind."""
    release, entered = threading.Event(), threading.Event()

    def stubborn() -> None:
        entered.set()
        release.wait(5)

    table = one_route(stubborn)
    peer = Peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(table, scope_of("GET", "/"), peer.receive, peer.send)
        await trio.to_thread.run_sync(entered.wait)
        nursery.cancel_scope.cancel()

    assert table.threads.abandoned == 1
    release.set()
    with trio.fail_after(5):
        await table.threads.run(int)


async def test_websockets_are_not_ours() -> None:
    """A WebSocket that reaches the table is refused before it is accepted."""
    peer = Peer()
    await one_route(ok)({"type": "websocket", "path": "/"}, peer.receive, peer.send)

    assert peer.sent == [{"type": "websocket.close", "code": 1008}]
