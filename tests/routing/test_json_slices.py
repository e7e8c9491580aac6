"""JSON that is decoded in slices: the same values and faults as at once, and a bound for each step."""

from __future__ import annotations

import random
from functools import partial
from typing import Annotated, Any

import msgspec
import pytest
import trio

from tangram.routing import APIRouter, Body, Request, json_slices
from tangram.routing.exceptions import InvalidRequest
from tangram.routing.json_slices import CONTAINER_BYTES, MAX_CONTAINERS, JSONSlices, TooManyContainers
from tangram.routing.request import READ_AT_ONCE, decode_any, decode_json
from tests.routing.calling import call, table_of

PIECES = (b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b"0", b"e", b"-", b".", b"\xff", b" ", b"nul")


def sliced(text: bytes) -> Any:
    slices = JSONSlices(text)
    while not slices.done:
        slices.decode_next()
    return slices.value


async def outcome(text: bytes, *, at_once: bool) -> object:
    """Return the representation of the value, which tells the order of keys as well, or the faults."""
    try:
        return repr(decode_json(text) if at_once else await decode_any(text))
    except InvalidRequest as error:
        return error.problems


def a_string(chance: random.Random) -> str:
    parts = (
        "a",
        ",",
        "[",
        "]",
        "{",
        "}",
        ":",
        "\\\\",
        '\\"',
        "\\n",
        "\u00e9",
        "\\ud83d\\ude00",
        "\U0001f600",
    )
    return '"' + "".join(chance.choices(parts, k=chance.choice((0, 1, 1, 2, 6)))) + '"'


def a_value(chance: random.Random, depth: int) -> str:
    """Return JSON; objects often have a key twice."""
    blank = chance.choice(("", "", " ", "\n"))
    kind = chance.random()
    if not depth or kind < 0.3:
        return chance.choice(("1", "-2.5e3", "true", "null", "10", a_string(chance)))
    count = chance.randint(0, 5)
    if kind < 0.65:
        return "[" + f"{blank},{blank}".join(a_value(chance, depth - 1) for _ in range(count)) + f"{blank}]"
    members = (f"{a_string(chance)}{blank}:{a_value(chance, depth - 1)}" for _ in range(count))
    return "{" + f",{blank}".join(members) + "}"


def wrong(chance: random.Random, text: bytes) -> bytes:
    """Return a text with one change, which mostly makes it wrong."""
    at, end = sorted((chance.randint(0, len(text)), chance.randint(0, len(text))))
    return text[:at] + chance.choice(PIECES) + text[chance.choice((at, at + 1, end)) :]


@pytest.fixture(params=[1, 3, 8, 30])
def _small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tangram.routing.request.JSONSlices", partial(JSONSlices, size=request.param))
    monkeypatch.setattr("tangram.routing.request.READ_AT_ONCE", 0)


@pytest.mark.usefixtures("_small")
async def test_slices_have_the_value_and_the_faults_of_the_whole() -> None:
    """Wherever a text is cut, its value, the order of keys, and the words and place of a fault are equal."""
    chance = random.Random(17)
    for _ in range(150):
        text = a_value(chance, 5).encode()
        for one in (text, wrong(chance, text), b"\xef\xbb\xbf" + text):
            assert await outcome(one, at_once=False) == await outcome(one, at_once=True), one


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    "text",
    [
        b'{"a":[1,2],"b":{},"a":[3,4,5,6,7,8,9]}',
        b'[{"a":{"c":[1,2,3,4,5,6,7,8,9]},"b":[[]],"a":{"c":[1,2,3,4,5,6,7,8,9]}},1]',
        b'{"":{"":[1,2,{"":3,"x":4}],"":5},"":[6,7]}',
        b'["\\\\",",","\\\\\\",[",{"]":"}","k":"\\""}]',
        b"[" * 40 + b"1,2" + b"],[3,4]" * 39 + b"]",
        b"[1,2,]",
        b"[1,2],[3,4]",
        b"1,2",
        b'{"a":1,"b"}',
        b"[1,nul,2]",
        b"[[1,2},3]",
        b"[1,2",
        b'{"a":"\xff,","b":1}',
        b"",
    ],
)
async def test_edges_are_those_of_the_whole(text: bytes) -> None:
    """Keys that come twice, empty keys, escapes, deep brackets and wrong texts are read as at once."""
    assert await outcome(text, at_once=False) == await outcome(text, at_once=True)


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"[]," * 60_000 + b"1]",
        b"[" + b'{"a":{"b":[1]}},' * 12_000 + b"1]",
        b"[" + (b"[" * 200 + b"1" + b"]" * 200 + b",") * 500 + b"1]",
        b"[" + b'",[","\\\\",' * 20_000 + b"1]",
        b"{" + b",".join(b'"k%d":[%d]' % (n, n) for n in range(15_000)) + b"}",
    ],
    ids=["arrays", "objects", "deep", "strings", "one object"],
)
def test_each_step_is_bounded(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser gets the bytes of two slices at most at once, and the brackets around them."""
    lengths = []
    decode = json_slices._decode

    def noting(document: bytes) -> Any:
        lengths.append(len(document))
        return decode(document)

    monkeypatch.setattr(json_slices, "_decode", noting)
    assert sliced(text) == msgspec.json.decode(text)
    assert max(lengths) < 2 * json_slices.SLICE + 1_000
    assert len(lengths) > len(text) // json_slices.SLICE - 2


def test_long_strings_need_no_comma() -> None:
    """A string without a comma outside of it is one slice, and so is a text that ends in it."""
    text = b'[1,"' + b"x,\\\\" * 30_000 + b'",[2,3]]'
    assert sliced(text) == msgspec.json.decode(text)


@pytest.mark.parametrize("size", [1, 3])
def test_arrays_and_objects_have_a_bound(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text with an array for every three bytes is refused; brackets in strings do not count."""
    monkeypatch.setattr(json_slices, "MAX_CONTAINERS", 1_000 * size)
    fitting = b"[" + b'{"a":"[[["},' * (1_000 * size - 1) + b"1]"
    assert len(sliced(fitting)) == 1_000 * size

    with pytest.raises(TooManyContainers, match="expected at most"):
        sliced(b"[" + b"[]," * 20_000 * size + b"1]")


def test_longer_texts_may_have_more_of_them() -> None:
    """The bound grows with the text."""
    text = b"[" + b"[1234567]," * MAX_CONTAINERS + b"1]"
    assert len(text) // CONTAINER_BYTES > MAX_CONTAINERS
    assert len(sliced(text)) == MAX_CONTAINERS + 1


async def test_dense_bodies_get_422() -> None:
    """A body with too many arrays is refused with the bound."""
    router = APIRouter()

    @router.post("/take")
    async def take(body: Annotated[list[list[int]], Body()]) -> int:
        return len(body)

    answer = await call(table_of(router), "POST", "/take", b"[%b[]]" % (b"[]," * MAX_CONTAINERS))

    assert answer.status == 422
    assert answer.json()["detail"] == [
        {
            "loc": ["body"],
            "msg": f"expected at most {MAX_CONTAINERS} arrays and objects in JSON of this length",
            "type": "too_many_values",
        }
    ]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the id of the text of each step."""
    noted: list[int] = []
    step = JSONSlices.decode_next

    def noting(slices: JSONSlices) -> None:
        noted.append(id(slices))
        step(slices)

    monkeypatch.setattr(JSONSlices, "decode_next", noting)
    return noted


class Passes(trio.abc.Instrument):
    """The largest number of steps in one pass of the event loop."""

    def __init__(self, steps: list[int]) -> None:
        self._steps = steps
        self._before = 0
        self.most = 0

    def before_io_wait(self, timeout: float) -> None:
        self.most = max(self.most, len(self._steps) - self._before)
        self._before = len(self._steps)


@pytest.mark.parametrize("path", ["/bound", "/read"])
async def test_large_bodies_take_turns(path: str, steps: list[int]) -> None:
    """Two large bodies are decoded in turn, a slice in each pass of the event loop."""
    router = APIRouter()

    @router.post("/bound")
    async def bound(body: Annotated[list[int], Body()]) -> int:
        return len(body)

    @router.post("/read")
    async def read(request: Request) -> int:
        return len(await request.json())

    table = table_of(router)
    answers = []

    async def ask() -> None:
        answers.append(await call(table, "POST", path, b"[%b1]" % (b"1," * 4 * READ_AT_ONCE)))

    passes = Passes(steps)
    trio.lowlevel.add_instrument(passes)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
    trio.lowlevel.remove_instrument(passes)

    assert passes.most == 1
    assert [answer.json() for answer in answers] == [4 * READ_AT_ONCE + 1] * 2
    assert len(set(steps[: len(steps) // 2])) == 2, "the second body waited for the first one"
