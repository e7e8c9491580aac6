from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from tangram.history import Published
from tangram.routing import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    ResponseAborted,
    StreamingResponse,
)
from tests.routing.calling import Peer, Thing, call, ok, one_route, scope_of

EVENTS: list[str] = []


class Celsius(float):
    """A number of a class of its own, as numpy's float64 is one."""


class Name(str):
    """A text of a class of its own."""

    __slots__ = ()


class Token(bytes):
    """Bytes of a class of their own."""


@pytest.fixture(autouse=True)
def _no_events() -> None:
    EVENTS.clear()


@pytest.mark.parametrize(
    ("value", "body", "kind"),
    [
        (None, b"null", "application/json"),
        ({"a": 1}, b'{"a":1}', "application/json"),
        ([Thing("n")], b'[{"name":"n"}]', "application/json"),
        ("text", b'"text"', "application/json"),
        ((1, 2), b"[1,2]", "application/json"),
        (range(2), b"[0,1]", "application/json"),
        (Published(3, "k3f9.7"), b"3", "application/json"),
        ([Celsius(3.5), Name("n"), Token(b"abc")], b'[3.5,"n","YWJj"]', "application/json"),
        (JSONResponse({"b": 2}), b'{"b":2}', "application/json"),
        (PlainTextResponse("é"), "é".encode(), "text/plain; charset=utf-8"),
        (HTMLResponse("<p>"), b"<p>", "text/html; charset=utf-8"),
        (Response(b"\x00", media_type="application/x-own"), b"\x00", "application/x-own"),
    ],
    ids=lambda given: "" if hasattr(given, "status_code") else str(given),
)
async def test_answers(value: object, body: bytes, kind: str) -> None:
    """Sync and async handlers return JSON values or a Response."""

    async def handler() -> Any:
        return value

    for endpoint in (handler, lambda: value):
        answer = await call(one_route(endpoint), "GET", "/")

        assert (answer.status, answer.body, answer.header("content-type")) == (200, body, kind)
        assert answer.header("content-length") == str(len(body))


async def test_response_class_and_status() -> None:
    """A route declares the class and the status of plain return values; 204 has no body."""
    text = await call(one_route(ok, response_class=PlainTextResponse, status_code=201), "GET", "/")
    none = await call(one_route(ok, status_code=204), "GET", "/")

    assert (text.status, text.body, text.header("content-type")) == (201, b"ok", "text/plain; charset=utf-8")
    assert (none.status, none.body, none.header("content-length")) == (204, b"", None)


async def test_sync_handlers_run_in_threads() -> None:
    """A sync handler does not block the event loop."""

    def handler() -> bool:
        return threading.current_thread() is not threading.main_thread()

    assert (await call(one_route(handler), "GET", "/")).json() is True


async def test_redirect_response_and_headers() -> None:
    """Line breaks in header values are refused."""
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


async def test_streaming() -> None:
    """Iterators are sent chunk by chunk, text as UTF-8; HEAD gets no chunk."""

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


async def test_a_stream_is_closed_when_the_client_disconnects() -> None:
    """A stream is closed when its client disconnects, also while it waits for a chunk."""

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
    """A stream whose send fails is closed before the request ends."""

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


async def test_a_client_that_disconnects_before_the_first_byte_is_not_a_failure() -> None:
    """A client that disconnects before the first byte is not logged as a failure."""

    class Gone(Peer):
        async def send(self, message: dict[str, Any]) -> None:
            await trio.sleep_forever()

    peer = Gone()
    peer.gone.set()
    with structlog.testing.capture_logs() as logs:
        table = one_route(lambda: StreamingResponse(iter([b"x"])))
        await table(scope_of("GET", "/"), peer.receive, peer.send)

    assert logs == []


async def test_a_stream_that_fails_ends_without_further_bytes() -> None:
    """A failure after the first byte closes the connection and sends nothing more."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ValueError

    peer = Peer()
    with structlog.testing.capture_logs() as logs, pytest.raises(ResponseAborted):
        await one_route(lambda: StreamingResponse(broken()))(scope_of("GET", "/"), peer.receive, peer.send)

    assert [message.get("body") for message in peer.sent] == [None, b"half"]
    assert not peer.complete
    assert [record["event"] for record in logs] == ["response aborted"]
