from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path as FilePath
from typing import Annotated, Any
from uuid import UUID

import annotated_types as at
import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.routing import (
    Body,
    Query,
    RouteTable,
)
from tests.routing.calling import call, problems
from tests.routing.models import Circle, Colour, Named, Node, Options, Point, Square, echo

PLAIN = st.one_of(
    st.tuples(st.just(int), st.integers(-(10**30), 10**30)),
    st.tuples(st.just(float), st.floats(allow_nan=False, allow_infinity=False)),
    st.tuples(st.just(str), st.text()),
    st.tuples(st.just(bool), st.booleans()),
    st.tuples(st.just(date), st.dates()),
    st.tuples(st.just(datetime), st.datetimes(timezones=st.just(UTC))),
    st.tuples(st.just(UUID), st.uuids()),
    st.tuples(st.just(Decimal), st.decimals(allow_nan=False, allow_infinity=False, places=3)),
    st.tuples(st.just(timedelta), st.timedeltas()),
    st.tuples(st.just(Colour), st.sampled_from(Colour)),
)


@pytest.mark.slow
@given(PLAIN)
async def test_binding_round_trips(case: tuple[Any, Any]) -> None:
    """A value written as JSON is read back as an equal value, alone and in a list."""
    import msgspec

    kind, value = case
    body = msgspec.json.encode([value])
    table = echo(list[kind], method="POST")  # type: ignore[valid-type]
    answer = await call(table, "POST", "/", body)

    assert answer.json() == repr([value.replace(fold=0) if kind is datetime else value])


ANYTHING = (
    int,
    float,
    bool,
    Decimal,
    datetime,
    date,
    time,
    timedelta,
    UUID,
    bytes,
    FilePath,
    Colour,
    list[int],
    int | str | None,
    Annotated[float, at.MultipleOf(0.3)],
    Annotated[str, at.Len(1, 3)],
)
QUERY_TABLES = [echo(Annotated[kind, Query()]) for kind in ANYTHING]
BODY_TABLES = [
    echo(Annotated[kind, Body()], method="POST")
    for kind in (*ANYTHING, Any, Point, Named, Options, Circle | Square, Node, dict[str, Any], set[Any])
]


@pytest.mark.slow
@given(st.binary(max_size=40), st.sampled_from(QUERY_TABLES))
async def test_any_query_is_answered(query: bytes, table: RouteTable) -> None:
    """No query string leads to a server error."""
    from tests.routing.calling import Peer, scope_of

    peer = Peer()
    await table({**scope_of("GET", "/"), "query_string": b"x=" + query}, peer.receive, peer.send)

    assert peer.answer().status in (200, 422)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["lat", "name", "points", "kind", "value", "children", "size", "side"]), inner
        )
    ),
    max_leaves=12,
)


@pytest.mark.slow
@given(
    st.one_of(st.binary(max_size=60), JSON_VALUES.map(lambda v: __import__("json").dumps(v).encode())),
    st.data(),
)
async def test_any_body_is_answered(body: bytes, data: st.DataObject) -> None:
    """No body leads to a server error, for any type of parameter."""
    table = data.draw(st.sampled_from(BODY_TABLES))
    answer = await call(table, "POST", "/", body)

    assert answer.status in (200, 422)


@pytest.mark.parametrize("table", BODY_TABLES)
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b'{"value":1,"children":[' * 400 + b"]}" * 400,
        b"1" * 5000,
        b"1e400",
        b"[1e400]",
        b"NaN",
        b'"\\ud800"',
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"lat":1} x',
    ],
)
async def test_hostile_bodies(table: RouteTable, body: bytes) -> None:
    """Deep, huge and broken JSON is answered as an error of the client."""
    answer = await call(table, "POST", "/", body)

    assert answer.status in (200, 422)


async def test_ambiguous_unions_are_bounded() -> None:
    """The time for nested unions does not double with each level."""
    table = echo(A | B, method="POST")
    body = b'{"next":' * 60 + b'"x"' + b"}" * 60
    answer = await call(table, "POST", "/", body)

    assert "union_too_deep" in {kind for _, kind in problems(answer)}


@attrs.define
class A:
    next: A | B


@attrs.define
class B:
    next: A | B
