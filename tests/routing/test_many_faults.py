"""Values with very many faults, and bodies that take long to convert."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Annotated, Any, TypedDict

import attrs
import msgspec
import pytest

from tangram.defaults import MAX_BODY
from tangram.routing import APIRouter, Body
from tangram.routing.constraints import MAX_FAULTS
from tangram.routing.convert import problems_of, structurer
from tangram.routing.exceptions import Problem
from tangram.routing.json_slices import CONTAINER_BYTES, MAX_CONTAINERS, SLICE
from tangram.routing.request import READ_AT_ONCE
from tests.routing.calling import call, table_of
from tests.routing.models import Noting

MORE = "too_many_faults"


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    number: int = 0


class Keyed(TypedDict):
    items: list[int]


looked_at: list[object] = []


def look(_instance: Any, _attribute: Any, value: Any) -> None:
    looked_at.append(value)
    raise ValueError("never good")


@attrs.frozen
class Looking:
    number: int = attrs.field(validator=look)


def problems(kind: Any, value: object) -> list[Problem]:
    with pytest.raises(Exception) as raised:
        structurer(kind)(value)
    return problems_of(raised.value, ("body",))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (list[int], ["x"] * 5_000),
        (set[int], ["x"] * 5_000),
        (dict[str, int], {str(number): "x" for number in range(5_000)}),
        (dict[int, int], {f"k{number}": 1 for number in range(5_000)}),
        (list[list[int]], [["x"]] * 5_000),
        (list[int | list[int]], [["x"]] * 5_000),
        (Keyed, {"items": ["x"] * 5_000}),
        (Strict, {f"k{number}": 1 for number in range(5_000)}),
        (list[Strict], [{f"k{number}": 1 for number in range(50)}] * 5_000),
    ],
    ids=["list", "set", "dict", "keys", "nested", "union", "TypedDict", "struct", "structs"],
)
def test_the_faults_of_a_value_are_bounded(kind: Any, value: object) -> None:
    """A value with thousands of faulty items has some of them told, and that there are more."""
    found = problems(kind, value)

    assert MAX_FAULTS // 4 < len(found) <= MAX_FAULTS + 50
    assert found[-1].type == MORE
    assert found[-1].msg == "more than 100 faults: the others are not listed"
    assert [one.type for one in found].count(MORE) == 1


def test_all_faults_up_to_the_bound_are_told() -> None:
    """Fewer faulty items than the bound are told completely, wherever they are in the value."""
    value = [0] * 1_000 + ["x"] * (MAX_FAULTS - 1)
    found = problems(list[int], value)

    assert [one.loc for one in found] == [("body", 1_000 + index) for index in range(MAX_FAULTS - 1)]


def test_items_behind_the_bound_are_not_looked_at() -> None:
    """The time for a faulty value does not grow with its faults."""
    looked_at.clear()
    problems(list[Looking], [{"number": 1}] * 5_000)

    assert len(looked_at) == MAX_FAULTS


def test_each_value_has_its_own_bound() -> None:
    """A value with too many faults takes nothing from the next one."""
    convert = structurer(list[int])
    for _ in range(2):
        with pytest.raises(Exception) as raised:
            convert(["x"] * 5_000)
        assert len(problems_of(raised.value, ())) == MAX_FAULTS + 1


@pytest.mark.parametrize("size", [100, READ_AT_ONCE + 100])
async def test_large_bodies_are_converted_in_a_thread(size: int) -> None:
    """A body that takes long to convert does not hold the event loop; a small one stays in it."""
    router = APIRouter()

    @router.post("/take")
    async def take(body: Annotated[Noting, Body()]) -> int:
        return len(body.text)

    Noting.threads.clear()
    table = table_of(router)
    answer = await call(table, "POST", "/take", b'{"text": "%b"}' % (b"x" * size))

    assert (answer.status, answer.json()) == (200, size)
    assert len(Noting.threads) == 1
    assert (Noting.threads[0] is threading.current_thread()) is (size < READ_AT_ONCE)
    assert (Noting.thresholds[-1] == gc.get_threshold()[2]) is (size < READ_AT_ONCE)


async def test_faults_of_a_large_body_are_told() -> None:
    """A large body with faults has the same 422 as a small one."""
    router = APIRouter()

    @router.post("/take")
    async def take(body: Annotated[list[int], Body()]) -> int:
        return len(body)

    answer = await call(table_of(router), "POST", "/take", b"[%b0]" % (b"[]," * READ_AT_ONCE))

    assert answer.status == 422
    assert len(answer.json()["detail"]) == MAX_FAULTS + 1


def test_the_page_tells_the_bounds() -> None:
    """The numbers of the page are those of the code."""
    page = (Path(__file__).parents[2] / "docs" / "routing.md").read_text(encoding="utf-8")

    assert f"JSON of more than {READ_AT_ONCE:,} bytes is decoded in slices of {SLICE // 1024} KiB" in page
    assert f"may have {MAX_CONTAINERS:,} arrays and objects, or one for every {CONTAINER_BYTES} bytes" in page
    assert MAX_BODY == MAX_CONTAINERS * CONTAINER_BYTES, (
        "the page says that more than 2 MiB have more of them"
    )
    assert f"about {MAX_FAULTS} faulty items" in page
