"""The assembler gives the same messages as the protocol's own parser."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from tangram.http.native.message_assembly import LARGEST, FragmentBuffer, MessageAssembler

MAX_MESSAGE = 200_000


def protocol() -> ServerProtocol:
    return ServerProtocol(state=OPEN, max_size=MAX_MESSAGE)


def serialized(frame: Frame) -> bytes:
    return frame.serialize(mask=True)


sizes = st.one_of(
    st.integers(0, 130), st.sampled_from([125, 126, 127, 1000, LARGEST, LARGEST + 1, 70_000, MAX_MESSAGE + 1])
)
frames = st.one_of(
    st.builds(
        lambda opcode, size, fin: serialized(Frame(opcode, b"x" * size, fin)),
        st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.CONT]),
        sizes,
        st.booleans() | st.just(True),
    ),
    st.builds(lambda opcode: serialized(Frame(opcode, b"")), st.sampled_from([Opcode.PING, Opcode.PONG])),
    st.sampled_from(
        [
            serialized(Frame(Opcode.CLOSE, b"\x03\xe8")),
            Frame(Opcode.TEXT, b"unmasked").serialize(mask=False),
            b"\xc1\x80abcd",  # a reserved bit
            b"\x83\x80abcd",  # a reserved opcode
            b"\x81\xff" + b"\xff" * 12,  # longer than anything
        ]
    ),
)


def by_the_protocol(chunks: list[bytes]) -> tuple[list[tuple[int, bytes]], ServerProtocol]:
    referee, whole = protocol(), FragmentBuffer()
    messages = []
    for chunk in chunks:
        referee.receive_data(chunk)
        for event in referee.events_received():
            assert isinstance(event, Frame)
            if event.opcode < 8:
                message = whole.add(event)
                if message is not None:
                    messages.append((message[0], bytes(message[1])))
    return messages, referee


@given(st.lists(frames, max_size=8), st.lists(st.integers(1, 300_000), max_size=8))
def test_the_same_messages_as_the_protocol(stream: list[bytes], cuts: list[int]) -> None:
    """Messages, answers and the end are the protocol's, for any bytes cut anywhere."""
    data = b"".join(stream)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    chunks = [data[begin:end] for begin, end in pairwise(places)]
    ours = protocol()
    inbox = MessageAssembler(ours, MAX_MESSAGE)
    messages = [(opcode, bytes(data)) for chunk in chunks for opcode, data in inbox.feed(chunk)]
    expected, referee = by_the_protocol(chunks)

    assert messages == expected
    assert ours.state is referee.state
    assert type(ours.parser_exc) is type(referee.parser_exc)
    assert ours.data_to_send() == referee.data_to_send()


def test_common_frames_do_not_reach_the_protocol() -> None:
    """Small frames are cut out; the start of the next one is kept until its end comes."""
    ours = protocol()
    inbox = MessageAssembler(ours, MAX_MESSAGE)
    ours.receive_data = None  # type: ignore[assignment, method-assign]  # would fail if it were called
    frame = serialized(Frame(Opcode.TEXT, b"hello"))

    assert inbox.feed(frame * 3 + frame[:7]) == [(1, b"hello")] * 3
    assert inbox.feed(frame[7:]) == [(1, b"hello")]


def test_bytes_after_a_close_frame_are_no_messages() -> None:
    """After a close frame no bytes become a message."""
    ours = protocol()
    inbox = MessageAssembler(ours, MAX_MESSAGE)
    close, frame = serialized(Frame(Opcode.CLOSE, b"\x03\xe8")), serialized(Frame(Opcode.TEXT, b"late"))

    assert inbox.feed(close + frame) == []
    assert inbox.feed(frame) == []
    assert ours.close_rcvd is not None


def test_the_answer_to_our_close_frame_is_read() -> None:
    """After our close frame earlier messages still arrive, and then the answer."""
    ours = protocol()
    inbox = MessageAssembler(ours, MAX_MESSAGE)
    ours.send_close(1001)
    frame, answer = (
        serialized(Frame(Opcode.TEXT, b"on its way")),
        serialized(Frame(Opcode.CLOSE, b"\x03\xe9")),
    )
    cut = len(frame) - 2

    assert inbox.feed(frame[:cut]) == []
    assert inbox.feed(frame[cut:] + answer) == [(1, b"on its way")]
    assert ours.close_rcvd is not None


def test_a_message_within_another_is_an_error() -> None:
    """A whole message between two fragments ends the connection."""
    ours = protocol()
    inbox = MessageAssembler(ours, MAX_MESSAGE)
    begun = serialized(Frame(Opcode.TEXT, b"a", fin=False))

    assert inbox.feed(begun + serialized(Frame(Opcode.TEXT, b"b"))) == []
    assert ours.parser_exc is not None


def test_a_message_in_fragments_holds_no_more_than_its_bytes() -> None:
    """Any number of empty fragments takes no memory."""
    whole = FragmentBuffer()
    whole.add(Frame(Opcode.TEXT, b"ab", fin=False))
    tracemalloc.start()
    try:
        for _ in range(50_000):
            whole.add(_EMPTY)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held < 10_000
    assert whole.add(Frame(Opcode.CONT, b"c")) == (1, b"abc")


_EMPTY = Frame(Opcode.CONT, b"", fin=False)
