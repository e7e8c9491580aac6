"""A log that raises costs nobody a restart or a stop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
import trio

from tangram.supervision import Backoff, Child
from tangram.testing import open_supervised


@pytest.fixture
def dead_log() -> Iterator[None]:
    """What a program that embeds a supervisor may have: a log that writes where nobody reads any more."""

    def fail(*_: object) -> structlog.typing.EventDict:
        raise BrokenPipeError

    structlog.configure(processors=[fail], cache_logger_on_first_use=False)
    yield
    structlog.reset_defaults()


async def test_a_log_that_raises_keeps_nobody_from_a_restart(autojump_clock: object, dead_log: None) -> None:
    """The lines are lost. The sibling is stopped, both are started again, and the stop is in order."""
    lives: list[str] = []

    async def crash_once() -> None:
        lives.append("a")
        if lives.count("a") == 1:
            await trio.sleep(1)
            raise ValueError("once")
        await trio.sleep_forever()

    async def stay() -> None:
        lives.append("b")
        await trio.sleep_forever()

    async with open_supervised([Child("a", crash_once), Child("b", stay)], backoff=Backoff(initial=0)):
        await trio.sleep(2)

    assert lives == ["a", "b", "a", "b"]
