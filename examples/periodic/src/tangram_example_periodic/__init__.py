"""A plugin with a background service that publishes a message every 10 seconds."""

from __future__ import annotations

import trio

import tangram

plugin = tangram.Plugin()


@plugin.register_service()
async def run_periodic_task(backend_state: tangram.BackendState) -> None:
    """Publish a message every 10 seconds, until the server cancels the service."""
    redis_client = backend_state.redis_client
    while True:
        await redis_client.publish("my-plugin:status", "alive")
        await trio.sleep(10)
