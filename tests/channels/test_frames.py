from __future__ import annotations

from tangram.channels.frames import TEXT, Encoded


def test_a_frame_remembers_its_framed_bytes() -> None:
    """The slot for the framed bytes is empty until a transport fills it for all members."""
    frame = Encoded(TEXT, b"x")
    assert frame.wire is None

    frame.wire = b"\x81\x01x"
    assert frame.wire == b"\x81\x01x"
    assert not hasattr(frame, "__dict__")
