from __future__ import annotations

from typing import Any

import pytest

from tangram.errors import RouteError
from tangram.routing import APIRouter, Depends
from tests.routing.calling import call, table_of


def said() -> None: ...


def paths(router: APIRouter) -> list[str]:
    return [route.template.path for route in router.routes]


async def noop() -> None: ...


@pytest.mark.parametrize("method", ["get", "post", "put", "patch", "delete", "options", "head"])
async def test_a_decorator_for_each_method(method: str) -> None:
    """Each method has a decorator, which returns the function unchanged."""
    router = APIRouter(prefix="/x")

    async def handler() -> str:
        return "done"

    assert getattr(router, method)("/a", status_code=201)(handler) is handler
    answer = await call(table_of(router), method.upper(), "/x/a")

    assert answer.status == 201


def test_prefixes_tags_and_dependencies_add_up() -> None:
    """A route gets the prefixes, tags and dependencies of its routers, outermost first."""
    inner = APIRouter(prefix="/inner", tags=["b"], dependencies=[Depends(said)])
    outer = APIRouter(prefix="/outer", tags=["a"])
    outer.include_router(inner, prefix="/v1", tags=["c", "b"], dependencies=[Depends(noop)])

    @inner.get("/{n}", tags=["d"])
    async def late(n: int) -> None:
        """The n-th item."""

    (route,) = outer.routes

    assert route.template.path == "/outer/v1/inner/{n}"
    assert route.tags == ("a", "c", "b", "d")
    assert [marker.dependency for marker in route.dependencies] == [noop, said]
    assert (route.name, route.description) == ("late", "The n-th item.")


def test_the_prefix_itself_is_a_path() -> None:
    """The empty path below a prefix is the prefix."""
    router = APIRouter(prefix="/x")
    router.add_api_route("", noop)

    assert paths(router) == ["/x"]


def generator() -> Any:
    yield b""


async def async_generator() -> Any:
    yield b""


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda r: APIRouter(prefix="x"), "not 'x'"),
        (lambda r: APIRouter(prefix="/x/"), "not '/x/'"),
        (lambda r: APIRouter(dependencies=[noop]), "dependencies="),
        (lambda r: r.include_router(r), "another router"),
        (lambda r: r.include_router(APIRouter(), prefix="v1"), "not 'v1'"),
        (lambda r: r.get("x")(noop), "starts with '/'"),
        (lambda r: r.get("/{a}/{a}")(noop), "each name once"),
        (lambda r: r.get("/{a")(noop), "balanced braces"),
        (lambda r: r.get("/{a b}")(noop), "{name}"),
        (lambda r: r.get("/{a:int}")(noop), "{name:path}"),
        (lambda r: r.get("/{a:path}/b")(noop), "whole end"),
        (lambda r: r.get("/")("text"), "expected a function"),
        (lambda r: r.get("/")(generator), "StreamingResponse"),
        (lambda r: r.get("/")(async_generator), "is a generator"),
        (lambda r: r.api_route("/", methods=["FETCH"])(noop), "FETCH"),
        (lambda r: r.api_route("/", methods="GET")(noop), "list of methods"),
        (lambda r: r.api_route("/", methods=[])(noop), "HTTP methods"),
    ],
)
def test_a_wrong_declaration_raises_at_once(declare: Any, words: str) -> None:
    """A wrong declaration is a RouteError at once, with the expected form."""
    with pytest.raises(RouteError) as caught:
        declare(APIRouter())

    assert words in str(caught.value)
