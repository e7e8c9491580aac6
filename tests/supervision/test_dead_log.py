"""A log that raises does not prevent a restart or a stop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
import trio

from tangram.supervision import Backoff, Child
from tangram.testing import open_supervised


@pytest.fixture
def dead_log() -> Iterator[None]:
    """The log of a program whose standard error is closed."""

    def fail(*_: object) -> structlog.typing.EventDict:
        raise BrokenPipeError

    structlog.configure(processors=[fail], cache_logger_on_first_use=False)
    yield
    structlog.reset_defaults()


async def test_a_log_that_raises_does_not_prevent_a_restart(autojump_clock: object, dead_log: None) -> None:
    """Records are lost; the siblings restart in order and stop in order."""
    runs: list[str] = []

    async def crash_once() -> None:
        runs.append("a")
        if runs.count("a") == 1:
            await trio.sleep(1)
            raise ValueError("once")
        await trio.sleep_forever()

    async def stay() -> None:
        runs.append("b")
        await trio.sleep_forever()

    async with open_supervised([Child("a", crash_once), Child("b", stay)], backoff=Backoff(initial=0)):
        await trio.sleep(2)

    assert runs == ["a", "b", "a", "b"]
