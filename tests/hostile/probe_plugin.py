"""The plugin of a server under attack, which measures the loop.

The scenario installs this file into the server's folder. It blocks nothing: its service wakes up every
5 ms.
"""

from __future__ import annotations

import time
from typing import Any

import trio

import tangram

router = tangram.APIRouter(prefix="/probe")
plugin = tangram.Plugin(routers=[router])

EVERY = 0.005
"""Seconds between two looks at the clock."""

blocks: list[float] = [0.0]
"""Seconds of CPU between two looks, since the last request."""


@router.get("/longest")
async def take_longest() -> dict[str, float]:
    """Return the longest block of the loop since the last request, in seconds of CPU."""
    found = max(blocks)
    blocks[:] = [0.0]
    return {"seconds": found}


@plugin.register_service()
async def look(state: Any) -> None:
    """Measure the CPU time of the loop's thread between two looks.

    CPU time and not real time: another process on the same core delays the loop and does not block it.
    """
    before = time.thread_time()
    while True:
        await trio.sleep(EVERY)
        now = time.thread_time()
        blocks[:] = [max(blocks[0], now - before - EVERY)]
        before = now


@plugin.register_service()
async def echo(state: Any) -> None:
    """Publish every ``echo`` push to the members of its topic."""
    async for message in state.subscribe("from:*:echo"):
        topic = message.channel.removeprefix("from:").removesuffix(":echo")
        await state.publish(f"to:{topic}:echo", message.payload)
