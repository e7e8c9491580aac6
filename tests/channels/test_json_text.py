"""The check of JSON text, against a parser that builds objects."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from typing import Final

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tangram.channels import json_text, simd_json
from tangram.channels.json_text import MAX_DEPTH, SLICE, check_slices, is_document, is_value

SIZE: Final = 2 * 1024 * 1024
"""Bytes of a hostile text: enough slices to see the slowest."""

TEXT: Final = st.text(st.sampled_from('a,:[]{}"\\/\n\u00e9\u20ac\U0001f600\ud7ff 0e'), max_size=40)
VALUE: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(TEXT, inner, max_size=8),
    max_leaves=60,
)
PIECES: Final = st.lists(
    st.sampled_from(
        [
            *(
                b"[",
                b"]",
                b"{",
                b"}",
                b",",
                b":",
                b'"',
                b'"a"',
                b"1",
                b"null",
                b"\\",
                b"\\\\",
                b'\\"',
                b"\\n",
            ),
            *(b"\\ud83d\\ude00", b"\\ud83d", b"\\ude00", b"\xc3\xa9", b"\xc3", b" ", b'["]",', b'{"k":0},'),
            *(b"1e999", b"1e9", b"9" * 309, b"x" * 40, b'"' + b"y" * 70 + b'"'),
        ]
    ),
    max_size=40,
).map(b"".join)


@pytest.fixture(scope="module", params=["alone", "with simdjson"])
def checker(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run each test with the check of this project alone, and behind simdjson."""
    if request.param == "with simdjson" and not simd_json.AVAILABLE:
        pytest.skip("simdjson is not installed, or has no wheel for this Python")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "alone":
            patch.setattr(json_text, "_accepts", lambda _text: False)
        yield request.param


def depth(value: object) -> int:
    """Return the levels of nesting."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def is_value_by_parser(text: bytes) -> bool:
    """Decide by building the objects."""

    def integer(literal: str) -> float:
        if float(literal) in (float("inf"), float("-inf")):
            raise ValueError(literal)
        return 0.0

    try:
        value = msgspec.json.decode(text)
        json.loads(text, parse_int=integer)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return depth(value) <= MAX_DEPTH


def in_slices(text: bytes, size: int = SLICE) -> bool:
    checking = check_slices(text, size)
    while True:
        try:
            next(checking)
        except StopIteration as stop:
            return bool(stop.value)


@pytest.mark.usefixtures("checker")
@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(PIECES | VALUE.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")))
@example(b"[1e999]")
@example(b'["1e999",1e99]')
@example(b'["\\",1e999,"]')
@example(b"[-" + b"9" * 309 + b"]")
def test_the_check_agrees_with_a_parser(text: bytes) -> None:
    """It accepts the texts that a parser accepts, with bounded depth and numbers."""
    for padded in (text, text + b" " * 2000):
        assert is_value(padded) == is_value_by_parser(padded)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    PIECES.map(lambda piece: b"[" + piece + b"]")
    | st.lists(VALUE).map(lambda value: json.dumps(value).encode())
    | st.lists(VALUE).map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
)
def test_a_check_in_slices_accepts_no_more(text: bytes) -> None:
    """Each text that passes in small slices is sound."""
    if in_slices(text, 64):
        assert is_value_by_parser(text)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(VALUE, min_size=5), st.booleans())
def test_a_check_in_slices_accepts_ordinary_documents(value: list[object], ascii_only: bool) -> None:
    """A document passes in slices that are much smaller than it."""
    text = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "replace")

    assert in_slices(text, 512)
    assert not in_slices(text + b"]", 512)
    assert not in_slices(text[:-1], 512)


@pytest.mark.usefixtures("checker")
@pytest.mark.parametrize(
    "text",
    [
        b'["]",' * 129 + b"1" + b"]" * 129,
        b'["\\"]",' * 129 + b"1" + b"]" * 129,
        b'[["[","]"],' * 65 + b"1" + b"]" * 65 + b"[" * 129,
        b"[" * 129 + b"]" * 129,
        b"[" + b"[],[[]]," * 200 + b"[" * 128 + b"]" * 128 + b"]",
    ],
)
def test_brackets_in_strings_do_not_hide_the_depth(text: bytes) -> None:
    """Brackets in strings are not counted, neither as opening nor as closing."""
    assert not is_document(text)
    assert not in_slices(text, 256)


@pytest.mark.usefixtures("checker")
@pytest.mark.parametrize(
    "text",
    [
        b'["' + b"]" * 1000 + b'"]',
        b'["' + b"[" * 1000 + b'"]',
        b"[" + b"[" * 127 + b"]" * 127 + b"]",
        b"[" + (b"[" * 127 + b"]" * 127 + b",") * 4 + b"0]",
        b'{"a":' * 128 + b"1" + b"}" * 128,
        b'["1e999","' + b"9" * 400 + b'",1e300,-1E+300]',
        b"[0." + b"1" * 400 + b"]",
    ],
)
def test_bounds_are_exact(text: bytes) -> None:
    """Depth and numbers at their bounds pass, whole and in slices."""
    assert is_document(text)
    assert in_slices(text, 1024)


@pytest.mark.parametrize(
    "text", [b"[%b,1]", b"[1,%b]", b'{%b,"a":1}', b'{"a":1,%b}', b"[1%b 2]", b"[1,%b,2]"]
)
def test_a_cut_does_not_hide_a_missing_element(text: bytes) -> None:
    """A comma without an element on either side is refused wherever the slice ends."""
    for blanks in range(200):
        assert not in_slices(b'["' + b"x" * 100 + b'",' + text % (b" " * blanks) + b"]", 64)


def hostile() -> Iterator[tuple[str, bytes]]:
    """Yield large texts that are costly for parsers."""
    for name, piece in {
        "arrays": b"[],",
        "objects": b'{"a":0},',
        "numbers": b"1,",
        "exponents": b"1e000,",
        "large exponents": b"1e100,",
        "strings": b'"",',
        "brackets in strings": b'"[",',
        "deepest": b"[" * 127 + b"]" * 127 + b",",
        "keys": b'{"a":{"b":[{"c":0}]}},',
    }.items():
        yield name, b"[" + piece * (SIZE // len(piece) - 1) + b"0]"
    for name, piece in {
        "letters": b"x",
        "escapes": b"\\n",
        "backslashes": b"\\\\",
        "utf-8": b"\xc3\xa9",
    }.items():
        yield name, b'["' + piece * (SIZE // len(piece) - 4) + b'"]'
    yield "surrogates", b'["' + b"\\ud83d\\ude00" * (SIZE // 12 - 1) + b'"]'


@pytest.mark.usefixtures("checker")
@pytest.mark.slow
@pytest.mark.parametrize(("name", "text"), [pytest.param(*one, id=one[0]) for one in hostile()])
def test_no_slice_of_a_large_text_takes_20_ms(name: str, text: bytes) -> None:
    """The check of a large text can be interrupted often enough, for any text.

    A slice that is too long is so in each of three runs. One that the hypervisor interrupted is not.
    """
    runs: list[list[float]] = []
    while len(runs) < 3 and not (runs and sorted(runs[-1])[-2] < 0.02):
        runs.append(times_of_slices(text))

    assert len(runs[-1]) >= SIZE // SLICE
    assert sorted(runs[-1])[-2] < 0.02, f"slices took up to {max(runs[-1]) * 1000:.1f} ms"


def times_of_slices(text: bytes) -> list[float]:
    """Check a good text, and return the processor time of each slice."""
    checking = check_slices(text)
    times = []
    accepted: object = None
    while accepted is None:
        began = time.thread_time()
        try:
            next(checking)
        except StopIteration as stop:
            accepted = stop.value
        times.append(time.thread_time() - began)
    assert accepted is True
    return times


@pytest.mark.usefixtures("checker")
@pytest.mark.slow
def test_real_looking_json_costs_about_the_time_of_a_parser() -> None:
    """The check of aircraft data costs about as much as a parser, without objects."""
    rng = random.Random(1)
    aircraft = [
        {
            "icao24": f"{rng.randrange(1 << 24):06x}",
            "callsign": f"AFR{rng.randrange(9999)}",
            "latitude": rng.random() * 90,
            "longitude": rng.random() * 180,
            "altitude": rng.randrange(40_000),
            "track": rng.random() * 360,
            "onground": False,
        }
        for _ in range(4000)
    ]
    text = json.dumps({"count": 4000, "aircraft": aircraft}, separators=(",", ":")).encode()
    times: dict[object, list[float]] = {is_document: [], msgspec.json.decode: []}
    for _ in range(30):
        for function in (
            is_document,
            msgspec.json.decode,
        ):  # in turn: the machine's speed changes
            began = time.thread_time()
            assert function(text)
            times[function].append(time.thread_time() - began)
    best = {function: min(taken) for function, taken in times.items()}

    assert best[is_document] < 2.5 * best[msgspec.json.decode]


PADDING = b'"%b"' % (b"x" * 2000)
"""Makes a text large, so that its skeleton is checked."""


@pytest.mark.usefixtures("checker")
@pytest.mark.parametrize(
    "number",
    [
        b"1e309",
        b"-1E+400",
        b"1.5e9999",
        b"12.5E309",
        b"9" * 400,
        b"-" + b"1" * 310 + b".5",
        b"1e" + b"0" * 300 + b"309",
        b"9" * 3000 + b"e-2600",
        b"0." + b"0" * 3000 + b"1e3400",
    ],
)
@pytest.mark.parametrize(
    "around", [b"[%b,%b]", b"[%b, %b ]", b'[%b,{"a,[:":%b}]', b'[%b,{"e":\n%b}]', b'["\\"",%b,[%b]]']
)
def test_a_number_beyond_a_double_is_found_wherever_it_stands(number: bytes, around: bytes) -> None:
    """After brackets, commas, colons and blanks, and also behind strings that look like numbers."""
    likely = b'"3e1000","x,3e1000","%b"' % (b"0e000" * 30)

    assert not is_document(around % (PADDING + b"," + likely, number))
    assert is_document(around % (PADDING + b"," + likely, b"1e308"))
    assert is_document(around % (PADDING, b'"%b"' % number))


@pytest.mark.usefixtures("checker")
@pytest.mark.parametrize(
    "digits", [b"0.%b1" % (b"0" * 3000), b"9" * 3000 + b"e-2800", b"-0.%b1e3200" % (b"0" * 3000)]
)
def test_a_long_number_is_read_to_its_end(digits: bytes) -> None:
    """A number of thousands of digits may be small, or large by its exponent alone."""
    assert is_document(b"[%b]" % digits)
    assert is_document(b"[%b,%b,%b]" % (PADDING, digits, digits))
    assert not is_document(b"[%b,%b]" % (digits, digits.partition(b"e")[0] + b"e4000"))


@pytest.mark.usefixtures("checker")
@pytest.mark.parametrize("hits", [10, 5000])
def test_strings_that_look_like_numbers_beyond_a_double_are_strings(hits: int) -> None:
    """Addresses of aircraft such as 3e1000 are no numbers, however many there are."""
    text = b"[%b]" % b",".join(
        [b'{"icao24":"3e%04d","n":1e-300}' % (number % 10000) for number in range(hits)]
    )

    assert is_document(text)
    assert not is_document(text[:-1] + b",1e999]")


@pytest.mark.usefixtures("checker")
@pytest.mark.parametrize("levels", [128, 129])
def test_depth_counts_brackets_outside_of_strings_alone(levels: int) -> None:
    """Brackets in strings neither add a level nor hide one, in texts with many or no other brackets."""
    nested = b"[" * (levels - 1) + b'"]","[{","}]"' + b"]" * (levels - 1)
    hidden = b'["]",' * levels + b"0" + b"]" * levels
    assert is_document(b"[%b,%b]" % (PADDING, nested)) is (levels <= 128)
    assert is_document(b"%b" % hidden.replace(b"0", PADDING)) is (levels <= 128)
