"""The bound on wrong tokens."""

from __future__ import annotations

from tangram.console.attempts import MAX_ADDRESSES, MAX_WRONG, WINDOW, Attempts


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_five_wrong_tokens_a_minute() -> None:
    """The sixth must wait until the first is a minute old; other addresses need not."""
    clock = Clock()
    attempts = Attempts(clock)
    for _ in range(MAX_WRONG):
        assert attempts.wait("a") == 0
        attempts.note_wrong("a")
        clock.now += 1

    assert attempts.wait("a") == WINDOW - MAX_WRONG
    assert attempts.wait("b") == 0
    clock.now = WINDOW
    assert attempts.wait("a") == 0
    attempts.note_wrong("a")
    assert attempts.wait("a") == 1


def test_the_memory_of_addresses_is_bounded() -> None:
    """The one whose last attempt is the oldest is forgotten."""
    clock = Clock()
    attempts = Attempts(clock)
    for number in range(MAX_ADDRESSES):
        attempts.note_wrong(str(number))
    attempts.note_wrong("0")
    attempts.note_wrong("new")

    assert len(attempts._wrong) == MAX_ADDRESSES
    assert "1" not in attempts._wrong
    assert len(attempts._wrong["0"]) == 2
