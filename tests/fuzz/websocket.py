"""Frames of a WebSocket; the referee is the parser of ``websockets``."""

from __future__ import annotations

from collections.abc import Hashable

from websockets.frames import Frame
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from tangram.http.native.message_assembly import CONTROL, FragmentBuffer, MessageAssembler
from tests.fuzz.pieces import cut

__all__ = ["check_frames"]

MAX_MESSAGE = 60_000


def check_frames(data: bytes) -> Hashable:
    """Messages, answers and the end are the referee's, for any cut of the bytes."""
    pieces = cut(data)
    ours = ServerProtocol(state=OPEN, max_size=MAX_MESSAGE)
    assembler = MessageAssembler(ours, MAX_MESSAGE)
    messages = [message for piece in pieces for message in assembler.feed(piece)]
    expected, referee = _by_the_referee(pieces)

    assert messages == expected
    assert ours.state is referee.state
    assert type(ours.parser_exc) is type(referee.parser_exc)
    assert ours.data_to_send() == referee.data_to_send()
    return (
        tuple((opcode, len(payload).bit_length()) for opcode, payload in messages[:3]),
        ours.state,
        str(ours.parser_exc)[:20],
        min(assembler.controls, 3),
    )


def _by_the_referee(pieces: list[bytes]) -> tuple[list[tuple[int, bytes]], ServerProtocol]:
    referee, fragments = ServerProtocol(state=OPEN, max_size=MAX_MESSAGE), FragmentBuffer()
    messages = []
    for piece in pieces:
        referee.receive_data(piece)
        for event in referee.events_received():
            assert isinstance(event, Frame)
            if event.opcode < CONTROL:
                message = fragments.add(event)
                if message is not None:
                    messages.append((message[0], bytes(message[1])))
    return messages, referee
