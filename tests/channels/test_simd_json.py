"""The check by simdjson: the answers are the same with it and without it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tangram.channels import json_text, simd_json
from tangram.channels.json_text import MAX_DEPTH, is_document, is_value
from tests.channels.test_json_text import PIECES, VALUE

if not simd_json.AVAILABLE:
    pytest.skip("simdjson is not installed, or has no wheel for this Python", allow_module_level=True)

ENDS: Final = {b"[": b"]", b'{"a":': b"}"}
STRING: Final = b'"%b"' % (b"x" * 20_000)
"""Makes a text so large that it is put into arrays."""


@pytest.fixture
def accepts() -> Callable[[bytes], bool]:
    """Return a check as the server has it."""
    return simd_json.acceptor(MAX_DEPTH)


@pytest.fixture(scope="module")
def in_arrays_at_once() -> Iterator[None]:
    """Put small texts into arrays, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simd_json, "WRAPPED", 32)
        patch.setattr(simd_json, "FEW", 1)
        patch.setattr(json_text, "SMALL", 16)
        yield


def alone(text: bytes) -> bool:
    """Return the answer without simdjson."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "_accepts", lambda _text: False)
        return is_value(text)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return JSON of which a few bytes are removed, added or replaced."""
    value = draw(VALUE)
    text = json.dumps(value, ensure_ascii=draw(st.booleans())).encode("utf-8", "replace")
    bits = st.sampled_from(
        [b"", b"[", b"]", b"],[", b"}", b'"', b",", b"\\", b"\0", b"\xff", b"\xef\xbb\xbf", b"-", b"e999"]
    )
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(bits) + text[at + draw(st.integers(0, 2)) :]
    return text[: draw(st.none() | st.integers(0, len(text)))]


@st.composite
def nested(draw: st.DrawFn) -> bytes:
    """Return arrays and objects of about ``MAX_DEPTH`` levels, now and then one bracket off."""
    levels = draw(st.integers(MAX_DEPTH - 2, MAX_DEPTH + 2))
    opened = draw(st.lists(st.sampled_from(list(ENDS)), min_size=levels, max_size=levels))
    closed = [ENDS[one] for one in reversed(opened)]
    if draw(st.integers(0, 4)) == 0:
        closed.pop()
    inner = draw(st.sampled_from([b"", b"1", b"[]", b"{}", b"[1]", b'"["', b'"]}"', b"1]],[[2"]))
    return b"".join([*opened, inner, *closed])


@pytest.mark.slow
@pytest.mark.usefixtures("in_arrays_at_once")
@settings(max_examples=400, deadline=None)
@given(
    mutated() | nested() | PIECES,
    st.sampled_from([b"%b", b"[%b]", b"%b ", b"\n%b", b'[[0],{"a":"[{"},%b]', b"[[[%b]]]"]),
)
@example(b"1]],[[2", b"[[%b]]")
@example(b"1]],[[2", b"%b")
@example(b"1],[2,%b]" % b",".join([b"1"] * 40), b"[%b")
@example(b'["\\ud800","\\udc00\\ud800"]', b"%b")
@example(b'["\\ud83d\\ude00","\\u0000","\x7f"]', b"%b")
@example(b'["\xed\xa0\x80"]', b"%b")
@example(b"[18446744073709551615,18446744073709551616]", b"%b")
@example(b"[-9223372036854775808,-9223372036854775809]", b"%b")
@example(b"[1e308,1.7976931348623157e308,1.7976931348623159e308]", b"%b")
@example(b"[1e309,-0,0e999999999999,1e-999999999999]", b"%b")
@example(b"[0.%b1,%b]" % (b"0" * 2000, b"1" * 300), b"%b")
@example(b"\xef\xbb\xbf[1,2,3,4,5,6,7,8,9,10,11,12,13,14]", b"%b")
@example(b"[01,NaN,Infinity,+1,1.,.5]", b"%b")
def test_the_answer_is_the_same_with_simdjson(text: bytes, around: bytes) -> None:
    """Arbitrary, mutated and deep texts, alone and in the middle of others."""
    text = around % text

    for padded in (text, text + b" " * 40):
        assert is_value(padded) is alone(padded)


@pytest.mark.parametrize("opening", ENDS)
@pytest.mark.parametrize("inner", [b"", b"1"])
def test_no_deeper_text_is_accepted(accepts: Callable[[bytes], bool], opening: bytes, inner: bytes) -> None:
    """With as many levels as allowed a text is accepted, or left to the other check; with more it is not."""
    for levels in (MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1):
        deep = opening * (levels - 1)
        if opening != b"[":
            inner = inner or b"{}"
        text = b"[%b,%b%b%b]" % (STRING, deep, inner, ENDS[opening] * (levels - 1))
        fits = levels + (inner == b"{}") <= MAX_DEPTH
        assert is_document(text) is fits
        assert accepts(text) <= fits
        assert accepts(text) or levels >= MAX_DEPTH - 1


def test_large_texts_are_accepted(accepts: Callable[[bytes], bool]) -> None:
    """Aircraft, strings with brackets and one long string are not left to the other check."""
    aircraft = b'{"hex":"3e1000","lat":43.25,"seen":[]}'
    for text in (
        b"[%b]" % b",".join([aircraft] * 2000),
        b"[%b]" % b",".join([b'"[[{]"'] * 5000),
        b'{"z":%b}' % STRING,
        b"[%b]" % b",".join([aircraft] * 30),
        STRING,
    ):
        assert accepts(text)
        assert not accepts(text[:-1])
        assert not accepts(text + b"]")


@pytest.mark.parametrize("levels", [1, 2, 130, 895])
def test_a_text_that_leaves_its_arrays_is_not_accepted(accepts: Callable[[bytes], bool], levels: int) -> None:
    """Brackets that match only inside of other arrays do not make a document."""
    for first, last in ((STRING, b"2"), (b"[],[[]]," * 20 + STRING, b"2,3,4"), (b"1", STRING)):
        assert not accepts(first + b"]" * levels + b"," + b"[" * levels + last)
        assert not is_value(first + b"]" * levels + b"," + b"[" * levels + last)


def test_a_large_parser_is_not_kept() -> None:
    """The memory that is kept is bounded by the size of the texts whose parser is used again."""
    acceptor = simd_json._Acceptor(MAX_DEPTH)
    assert acceptor.accepts(STRING)
    assert len(acceptor._kept) == 1
    assert acceptor.accepts(b'"%b"' % (b"x" * simd_json.MAX_KEPT))
    assert acceptor._kept == []
    assert not acceptor.accepts(STRING + b",")
    assert acceptor.accepts(STRING)
    assert len(acceptor._kept) == 1
