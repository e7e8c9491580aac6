"""A service on one of several nodes that counts, over its moves."""

from __future__ import annotations

import json

import trio

import tangram

plugin = tangram.Plugin(instances="one")
EVERY = 0.2


@plugin.register_service()
async def count(state: tangram.BackendState) -> None:
    """Publish one number after the other; the history has the last one."""
    page = await state.history("bench", limit=1)
    number = json.loads(page.events[-1][1])["n"] if page.events else 0
    while True:
        number += 1
        await state.publish("to:bench:n", {"n": number})
        await trio.sleep(EVERY)
