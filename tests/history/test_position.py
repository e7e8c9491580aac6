"""Positions: their text, and the outcome of a publication."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram import Published
from tangram.history import Position, parse_position


@given(epoch=st.text("0123456789abcdefxyz", min_size=1, max_size=16), offset=st.integers(0, 10**15 - 1))
def test_a_position_is_read_from_its_own_text(epoch: str, offset: int) -> None:
    """Each position that a server can make survives the way to the browser and back."""
    position = Position(epoch, offset)

    assert parse_position(str(position)) == position


@given(st.text())
def test_any_other_text_is_no_position(text: str) -> None:
    """A text is a position only if it is exactly the text of that position."""
    position = parse_position(text)

    assert position is None or str(position) == text


NEAR_MISSES = ("", ".", "a.", ".1", "a.01", "a.-1", "a.1e3", "A.1", "a.1\n", "a.\u0663", "a.1.2")
TOO_LONG = ("a" * 17 + ".1", "a.1" + "0" * 15)


@pytest.mark.parametrize("text", [*NEAR_MISSES, *TOO_LONG])
def test_shapes_that_look_like_positions_are_refused(text: str) -> None:
    """Near misses are no positions."""
    assert parse_position(text) is None


def test_a_publication_is_still_the_number_of_its_receivers() -> None:
    """Code that was written before positions existed goes on working."""
    published = Published(3, "k3f9.7")

    assert published == 3
    assert published.receivers == 3
    assert published.position == "k3f9.7"
    assert Published(0).position is None
    assert not Published(0)
