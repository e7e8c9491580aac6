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
    """Dependencies are called in order, once per request, and cleaned up in reverse order."""
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
    """An exception of the handler is thrown into its generators, and answered afterwards."""

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
    """A dependency that swallows the exception of its handler leads to a 500."""

    async def handler(a: Annotated[None, Depends(swallowing)]) -> None:
        raise ValueError

    with structlog.testing.capture_logs():
        assert (await call(one_route(handler), "GET", "/")).status == 500


async def test_a_failing_clean_up_does_not_change_the_answer() -> None:
    """A clean-up that fails after the answer is logged, and the answer stays valid."""

    async def handler(a: Annotated[None, Depends(failing_late)]) -> str:
        return "good"

    with structlog.testing.capture_logs() as logs:
        answer = await call(one_route(handler), "GET", "/")

    assert (answer.status, answer.json()) == (200, "good")
    assert [record["event"] for record in logs] == ["dependency clean-up failed after the response"]


async def guard() -> None:
    raise HTTPException(401)


async def test_a_dependency_that_refuses_takes_precedence_over_faults() -> None:
    """An HTTPException of a dependency takes precedence over faults of parameters."""
    router = APIRouter(dependencies=[Depends(guard)])

    @router.get("/{n}")
    async def handler(n: int) -> None: ...

    assert (await call(table_of(router), "GET", "/x")).status == 401


def reading(thing: Thing) -> Thing:
    return thing


async def using(thing: Annotated[Thing, Depends(reading)]) -> str:
    EVENTS.append("called")
    return thing.name


async def test_a_function_is_called_only_if_its_dependencies_are_complete() -> None:
    """With a broken body, functions that depend on the body are not called; others are."""

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
    """Headers of an injected Response are sent with this answer only.

    A response object that answers several requests is not changed.
    """
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
    """``overrides`` replace dependencies, and ``use_cache=False`` calls again."""

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
    """A cancelled request does not wait for its thread, which is counted as abandoned."""
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
    with trio.fail_after(30):
        await table.threads.run(int)
