"""Stops in the middle of an engine's start."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tangram.config import ServerConfig
from tangram.http.native import serve_native


async def _no_app(_scope: object, _receive: object, _send: object) -> None:
    raise AssertionError("nobody asks")


@pytest.mark.parametrize("steps", range(12))
async def test_a_stop_in_any_step_of_the_start_ends_the_engine(autojump_clock: MockClock, steps: int) -> None:
    """Cancelled at any step of its start, the engine ends at once."""
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: serve_native(_no_app, [], ServerConfig(), grace=lambda: 1.0))
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
