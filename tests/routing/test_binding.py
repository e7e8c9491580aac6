from __future__ import annotations

import functools
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal
from uuid import UUID

import annotated_types as at
import attrs
import pytest

from tangram.errors import RouteError
from tangram.routing import (
    APIRouter,
    Body,
    Cookie,
    Depends,
    Header,
    Mount,
    Path,
    Query,
    Request,
    Response,
    RouteTable,
    check_router,
)
from tests.routing.calling import call, problems, table_of
from tests.routing.models import (
    Circle,
    Colour,
    Level,
    Named,
    Node,
    Options,
    Point,
    Square,
    State,
    echo,
    paged,
)


@dataclass
class Limits:
    level: Annotated[int, Query(le=5)] = 1
    words: list[Annotated[str, at.MaxLen(2)]] = field(default_factory=list)


MOMENT = datetime(2026, 2, 28, 12, 0, tzinfo=UTC)
SOME_ID = UUID("12345678-1234-5678-1234-567812345678")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "-12", -12),
        (float, "1.5e3", 1500.0),
        (bool, "on", True),
        (bool, "FALSE", False),
        (str, "a%20b%2Fc", "a b/c"),
        (Colour, "blue", Colour.BLUE),
        (Level, "2", Level.HIGH),
        (Literal["a", 3], "3", 3),
        (date, "2026-02-28", date(2026, 2, 28)),
        (datetime, "2026-02-28T12:00:00Z", MOMENT),
        (time, "12:30:00", time(12, 30)),
        (timedelta, "PT90S", timedelta(seconds=90)),
        (timedelta, "P2W", timedelta(weeks=2)),
        (timedelta, "-P1W", timedelta(weeks=-1)),
        (timedelta, "1.5", timedelta(seconds=1.5)),
        (UUID, str(SOME_ID), SOME_ID),
        (Decimal, "1.10", Decimal("1.10")),
        (FilePath, "a.txt", FilePath("a.txt")),
        (int | None, "3", 3),
        (int | date, "2026-02-28", date(2026, 2, 28)),
        (Annotated[int, at.Interval(ge=1, lt=5)], "4", 4),
    ],
)
@pytest.mark.parametrize("where", ["path", "query"])
async def test_text_becomes_the_annotated_type(kind: Any, text: str, value: object, where: str) -> None:
    """A path or query parameter is converted to the annotated type."""
    if where == "path":
        answer = await call(echo(kind, path="/at/{x}"), "GET", f"/at/{text}")
    else:
        answer = await call(echo(kind), "GET", f"/?x={text}")

    assert (answer.status, answer.json()) == (200, repr(value))


@pytest.mark.parametrize(
    ("kind", "text", "fault"),
    [
        (int, "1.0", "int_parsing"),
        (int, "1_000", "int_parsing"),
        (int, "9" * 5000, "int_parsing"),
        (int, "%D9%A1", "int_parsing"),
        (float, "nan", "finite_number"),
        (float, "1e999", "finite_number"),
        (float, "x", "float_parsing"),
        (bool, "2", "bool_parsing"),
        (Colour, "green", "enum"),
        (Literal["a"], "b", "literal_error"),
        (date, "2026-02-30", "date_parsing"),
        (datetime, "tomorrow", "datetime_parsing"),
        (datetime, "0.5", "datetime_parsing"),
        (timedelta, "P1Y1", "time_delta_parsing"),
        (timedelta, "P1Y", "time_delta_parsing"),
        (UUID, "12", "uuid_parsing"),
        (Decimal, "sNaN", "finite_number"),
        (FilePath, "a%00b", "path_type"),
        (Annotated[int, at.Ge(3)], "2", "greater_than_equal"),
        (Annotated[int, at.MultipleOf(3)], "4", "multiple_of"),
        (Annotated[str, at.Len(2, 3)], "a", "too_short"),
        (Annotated[str, at.MaxLen(3)], "abcd", "too_long"),
        (Annotated[str, at.Predicate(str.islower)], "A", "predicate_failed"),
        (Annotated[str, Query(pattern="^[a-z]+$")], "a1", "string_pattern_mismatch"),
    ],
)
async def test_text_that_does_not_fit_is_refused(kind: Any, text: str, fault: str) -> None:
    """Text that cannot be converted is answered with 422, its place and a stable word."""
    answer = await call(echo(kind), "GET", f"/?x={text}")

    assert problems(answer) == {(("query", "x"), fault)}


@pytest.mark.parametrize(
    ("kind", "query", "value"),
    [
        (list[int], "x=1&x=2", [1, 2]),
        (set[str], "x=a&x=a", {"a"}),
        (tuple[int, ...], "x=1", (1,)),
        (tuple[int, str], "x=1&x=b", (1, "b")),
        (frozenset[int] | None, "x=1", frozenset({1})),
    ],
)
async def test_repeated_query_parameters(kind: Any, query: str, value: object) -> None:
    """Lists, sets and tuples receive all query parameters of their name."""
    answer = await call(echo(kind), "GET", f"/?{query}")

    assert answer.json() == repr(value)


async def test_defaults() -> None:
    """A missing parameter gets the default of the signature, the marker or the factory.

    A null in the body is a value, not a missing parameter.
    """
    assert (await call(echo(int, 7), "GET", "/")).json() == "7"
    assert (await call(echo(int, Query(8, ge=1)), "GET", "/")).json() == "8"
    assert (await call(echo(Annotated[int, Query(le=9)], 9), "GET", "/")).json() == "9"
    assert (await call(echo(list[int], Query(default_factory=list)), "GET", "/")).json() == "[]"
    assert problems(await call(echo(int | None), "GET", "/")) == {(("query", "x"), "missing")}


async def test_headers_and_cookies() -> None:
    """Header names have hyphens for underscores, in any case; aliases are used unchanged."""
    router = APIRouter()

    @router.get("/")
    async def handler(
        x_token: Annotated[str, Header()],
        n: Annotated[int, Header(alias="X-Number", ge=1)],
        session: Annotated[str, Cookie()] = "none",
    ) -> list[Any]:
        return [x_token, n, session]

    table = table_of(router)
    good = await call(
        table, "GET", "/", headers={"x-token": "t", "x-number": "3", "cookie": 'a=b; session="s"'}
    )
    bad = await call(table, "GET", "/", headers={"x-number": "0"})

    assert good.json() == ["t", 3, "s"]
    assert problems(bad) == {
        (("header", "x-token"), "missing"),
        (("header", "x-number"), "greater_than_equal"),
    }


async def test_alias_of_query_and_explicit_path() -> None:
    """A parameter may have another name in the request than in the signature."""
    router = APIRouter()

    @router.get("/{item}")
    async def handler(number: Annotated[int, Path(alias="item")], q: str = Query(alias="from")) -> list[Any]:
        return [number, q]

    assert (await call(table_of(router), "GET", "/5?from=here")).json() == [5, "here"]


@pytest.mark.parametrize(
    ("kind", "body", "value"),
    [
        (Point, {"lat": 1, "lon": "2.5"}, Point(1.0, 2.5)),
        (Named, {"name": "n", "points": [{"lat": 3}]}, Named("n", [Point(3.0)])),
        (Options, {"size": "3", "colour": "red"}, {"size": 3, "colour": Colour.RED}),
        (list[Point], [{"lat": 1}], [Point(1.0)]),
        (dict[str, list[int]], {"a": [1]}, {"a": [1]}),
        (Circle | Square, {"kind": "square", "side": 2}, Square("square", 2.0)),
        (Point | None, None, None),
        (Point | list[Point], [{"lat": 1}], [Point(1.0)]),
        (Node, {"value": 1, "children": [{"value": 2}]}, Node(1, [Node(2)])),
        (Annotated[Any, Body()], {"a": [None, 1.5]}, {"a": [None, 1.5]}),
        (Annotated[int | str, Body()], 3, 3),
        (Annotated[int | str, Body()], "4", "4"),
        (Annotated[bytes, Body()], [1, 2], b"[1, 2]"),
        (dict[int, str], {"1": "a"}, {1: "a"}),
        (Limits, {"level": 5, "words": ["ab"]}, Limits(5, ["ab"])),
        (Annotated[timedelta, Body()], 90, timedelta(seconds=90)),
    ],
)
async def test_json_body(kind: Any, body: Any, value: object) -> None:
    """A class, dictionary or union in the signature is read from the JSON body."""
    table = echo(kind, method="POST")
    raw = b"null" if body is None else b""
    answer = await call(table, "POST", "/", raw, json_body=body)

    assert (answer.status, answer.json()) == (200, repr(value))


@pytest.mark.parametrize(
    ("kind", "body", "faults"),
    [
        (Point, [1], {(("body",), "model_type")}),
        (Point, {"lon": True}, {(("body", "lat"), "missing"), (("body", "lon"), "float_type")}),
        (list[int], "abc", {(("body",), "list_type")}),
        (list[int], [1, 1.5, "x"], {(("body", 1), "int_from_float"), (("body", 2), "int_parsing")}),
        (Options, {}, {(("body", "size"), "missing")}),
        (dict[str, int], {"a": "x"}, {(("body", "a"), "int_parsing")}),
        (tuple[int, int], [1], {(("body",), "tuple_length")}),
        (set[Any], [[1]], {(("body",), "set_item")}),
        (Annotated[datetime, Body()], 0, {(("body",), "datetime_type")}),
        (Annotated[bool, Body()], 1, {(("body",), "bool_type")}),
        (Limits, {"level": 6}, {(("body", "level"), "less_than_equal")}),
        (Limits, {"words": ["abc"]}, {(("body", "words", 0), "too_long")}),
        (list[Limits], [{"level": "x"}], {(("body", 0, "level"), "int_parsing")}),
        (
            Circle | Square,
            {"kind": "circle", "radius": -1},
            {
                (("body", "Circle", "radius"), "greater_than"),
                (("body", "Square", "kind"), "literal_error"),
                (("body", "Square", "side"), "missing"),
            },
        ),
        (
            Named,
            {"points": [{"lat": 0}, {"lat": "x"}, 3]},
            {
                (("body", "name"), "missing"),
                (("body", "points", 1, "lat"), "float_parsing"),
                (("body", "points", 2), "model_type"),
            },
        ),
    ],
)
async def test_every_fault_of_a_body_has_its_place(kind: Any, body: Any, faults: set[Any]) -> None:
    """All faults of a body are reported at once, each with its place."""
    answer = await call(echo(kind, method="POST"), "POST", "/", json_body=body)

    assert problems(answer) == faults


async def test_faults_of_all_sources_come_together() -> None:
    """Faults of path, query, headers and body, also of dependencies, are in one answer."""
    router = APIRouter()

    @router.post("/{n}")
    async def handler(
        n: int, point: Point, limit: Annotated[int, Depends(paged)], x_a: Annotated[int, Header()]
    ) -> None:
        raise AssertionError

    answer = await call(table_of(router), "POST", "/a?limit=0", headers={"x-a": "b"}, json_body={})

    assert problems(answer) == {
        (("path", "n"), "int_parsing"),
        (("query", "limit"), "greater_than_equal"),
        (("header", "x-a"), "int_parsing"),
        (("body", "lat"), "missing"),
    }


async def test_unknown_attrs_validators_are_reported_at_their_class() -> None:
    """The message of an unknown attrs validator is reported at the place of its class."""

    @attrs.define
    class Even:
        n: int = attrs.field()

        @n.validator
        def _even(self, _: Any, value: int) -> None:
            if value % 2:
                raise ValueError(f"{value} is odd")

    answer = await call(echo(Annotated[Even, Body()], method="POST"), "POST", "/", json_body={"n": 3})

    assert answer.json() == {"detail": [{"loc": ["body"], "msg": "3 is odd", "type": "value_error"}]}


async def test_several_bodies_are_members_of_one() -> None:
    """Two body parameters, or one with ``embed``, are read from members of the body."""
    router = APIRouter()

    @router.post("/two")
    async def two(a: Point, b: Annotated[int, Body()] = 5) -> list[Any]:
        return [a, b]

    @router.post("/one")
    async def one(a: Annotated[Point, Body(embed=True)]) -> Point:
        return a

    table = table_of(router)

    assert (await call(table, "POST", "/two", json_body={"a": {"lat": 1}})).json() == [
        {"lat": 1.0, "lon": 0.0},
        5,
    ]
    assert (await call(table, "POST", "/one", json_body={"a": {"lat": 1}})).status == 200
    assert problems(await call(table, "POST", "/two", json_body={"b": "x"})) == {
        (("body", "a"), "missing"),
        (("body", "b"), "int_parsing"),
    }
    assert problems(await call(table, "POST", "/two", json_body=[1])) >= {(("body",), "model_type")}


async def test_request_response_and_injected_types() -> None:
    """Request, Response and injectable types are recognised by their annotation.

    Names and metadata do not matter.
    """
    router = APIRouter()

    @router.get("/")
    async def handler(
        r: Request, out: Response, s: State, again: Annotated[State, "whatever"], q: int = 1
    ) -> list[Any]:
        out.headers["x-extra"] = "yes"
        out.status_code = 202
        return [r.method, r.url, r.client, s.name, again is s, q]

    state = State()
    answer = await call(table_of(router, injectable=[State], resolve=lambda _: state), "GET", "/?q=2")

    assert answer.json() == ["GET", "http://localhost:2346/?q=2", ["127.0.0.1", 4000], "the state", True, 2]
    assert (answer.status, answer.header("x-extra")) == (202, "yes")


def test_partial_and_callable_object() -> None:
    """Partials, methods and callable objects are valid handlers."""

    class Handler:
        async def __call__(self, n: int) -> int:
            return n

        async def method(self, n: int) -> int:
            return n

    async def function(k: str, n: int) -> int:
        return n

    for endpoint in (Handler(), Handler().method, functools.partial(function, "k")):
        router = APIRouter()
        router.add_api_route("/{n}", endpoint)
        check_router(router, owner="me")


def bad_path_object(x: Point) -> None: ...
def bad_hint(x: Unknown) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - an unknown name, on purpose
def bad_kind(x: functools.partial[int]) -> None: ...
def bad_positional(x: int, /) -> None: ...
def bad_unused() -> None: ...


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        (bad_path_object, "is an object, and a path parameter is text"),
        (bad_hint, "'Unknown' is not known at run time"),
        (bad_kind, "cannot be read as"),
        (bad_positional, "positional-only"),
        (bad_unused, "to have a parameter 'x', as in the path"),
    ],
)
def test_a_signature_that_cannot_be_bound_is_reported_with_its_owner(endpoint: Any, words: str) -> None:
    """A signature that cannot be bound is a RouteError with its owner.

    The other routes are served.
    """
    router = APIRouter()
    router.add_api_route("/{x}", endpoint)

    @router.get("/good")
    async def good() -> None: ...

    with pytest.raises(RouteError, match=words) as caught:
        check_router(router, owner="mine")
    table = RouteTable([Mount(router, "mine")])

    assert caught.value.plugin == "mine"
    assert [problem.plugin for problem in table.problems] == ["mine"]
    assert [endpoint.route.name for endpoint in table.endpoints] == ["good"]
