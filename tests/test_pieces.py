"""Messages in pieces: the same bytes as in one piece, and no copy of a whole message."""

from __future__ import annotations

import trio
from hypothesis import given
from hypothesis import strategies as st

from tangram.pieces import LARGE, PART, PieceBuffer, Pieces, encode_slices, join_in_steps

parts = st.lists(st.binary(max_size=12), max_size=6)


@given(parts, st.integers(-80, 80) | st.none(), st.integers(-80, 80) | st.none())
def test_a_part_has_the_bytes_of_the_whole(pieces: list[bytes], start: int | None, stop: int | None) -> None:
    """A slice of pieces is that of the joined bytes, for any places."""
    whole, message = b"".join(pieces), Pieces(pieces)

    assert message[start:stop] == whole[start:stop]
    assert len(message) == len(whole)
    assert bytes(message) == whole


@given(parts, st.data())
def test_a_cut_has_the_bytes_between_two_places(pieces: list[bytes], data: st.DataObject) -> None:
    """A cut of a cut is the same part of the bytes; the pieces are views of the first ones."""
    whole = b"".join(pieces)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    cut = Pieces(pieces).cut(start, stop)
    middle = (stop - start) // 2

    assert bytes(cut) == whole[start:stop]
    assert bytes(cut.cut(middle, stop - start)) == whole[start + middle : stop]


def test_a_cut_copies_nothing() -> None:
    """The payload of a large frame is a view of the pieces that were read."""
    pieces = [b"a" * 70_000, b"b" * 70_000, b"c" * 70_000]
    first, second, third = Pieces(pieces).cut(10, 200_000).pieces

    assert isinstance(first, memoryview)
    assert first.obj is pieces[0]
    assert second is pieces[1]
    assert isinstance(third, memoryview)
    assert third.obj is pieces[2]


@given(st.lists(st.integers(0, 3 * PART), max_size=60))
def test_a_buffer_keeps_the_order_and_gathers_small_pieces(sizes: list[int]) -> None:
    """Any pieces come out in order; there are never more than two for each ``PART`` bytes, and one."""
    pieces = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    buffer = PieceBuffer()
    for piece in pieces:
        buffer.append(piece)
    size, message = buffer.size, buffer.take()

    assert size == sum(sizes)
    assert bytes(message) == b"".join(pieces)
    assert isinstance(message, Pieces) is (size > LARGE)
    if isinstance(message, Pieces):
        assert len(message.pieces) <= 2 * (size // PART) + 1
    assert buffer.size == 0
    assert buffer.take() == b""


def test_one_byte_at_a_time_makes_few_pieces() -> None:
    """A client that sends each byte alone does not multiply its memory."""
    buffer = PieceBuffer()
    for _ in range(LARGE + PART):
        buffer.append(b"x")
    message = buffer.take()

    assert isinstance(message, Pieces)
    assert len(message.pieces) == LARGE // PART + 1


@given(st.text(max_size=40), st.integers(1, 7))
def test_slices_of_a_text_are_its_utf8(text: str, size: int) -> None:
    """A text that is encoded in slices has the bytes of the text; lone surrogates are question marks."""
    assert b"".join(encode_slices(text, size)) == text.encode(errors="replace")


@given(parts, st.integers(1, 9))
async def test_a_copy_in_steps_pauses_after_each(pieces: list[bytes], size: int) -> None:
    """The bytes are those of all pieces, and the loop has a turn after each step."""
    whole, message = b"".join(pieces), Pieces(pieces)
    pauses: list[None] = []

    async def pause() -> None:
        pauses.append(None)

    assert await join_in_steps(message, pause, size) == whole
    assert len(pauses) == (-(-len(whole) // size) if len(message.pieces) != 1 else 0)


async def test_a_single_piece_is_not_copied() -> None:
    """A message that is in one piece already is handed over as it is."""
    whole = b"x" * 1000

    assert bytes(Pieces([whole])) is whole
    assert await join_in_steps(Pieces([b"", whole]), trio.lowlevel.checkpoint) is whole
    assert await join_in_steps(whole, trio.lowlevel.checkpoint) is whole
