"""A plugin that publishes messages to browsers.

Messages on ``to:<topic>:<event>`` reach the browsers that have joined the topic. They receive a JSON object
or array as JSON, and any other text or bytes as an ``ArrayBuffer``.
"""

from __future__ import annotations

import json

import trio

import tangram

plugin = tangram.Plugin()


@plugin.register_service()
async def run_updates(backend_state: tangram.BackendState) -> None:
    redis_client = backend_state.redis_client
    count = 0
    while True:
        await redis_client.publish("to:system:update", "Hello from plugin")
        await redis_client.publish("to:system:update-count", json.dumps({"count": count}))
        count += 1
        await trio.sleep(1)
