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

from tangram.routing import (
    APIRouter,
    Depends,
    HTTPException,
    PlainTextResponse,
    Response,
)
from tests.routing.calling import Peer, Thing, call, one_route, problems, scope_of, table_of

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
    assert [record["event"] for record in logs] == ["dependency clean-up failed after the response"]


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
