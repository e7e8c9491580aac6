"""A service that crashes on request, which ends the connections of all clients."""

from __future__ import annotations

import tangram

plugin = tangram.Plugin()


@plugin.register_service()
async def crash(state: tangram.BackendState) -> None:
    """Crash once a message asks for it."""
    async for _ in state.subscribe("from:bench:crash"):
        raise RuntimeError("crash on request")
