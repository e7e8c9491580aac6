"""A plugin that publishes messages to browsers.

They reach the browsers that have joined the topic ``system``: ``Count`` as a JSON object, ``bytes`` as an
``ArrayBuffer``. On Redis their channels are ``to:system:update`` and ``to:system:update-count``.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

import tangram


@dataclass
class Count:
    """The number of messages before this one."""

    count: int


plugin = tangram.Plugin()
system = plugin.channel("system")
update = system.sends("update", bytes)
update_count = system.sends("update-count", Count)


@plugin.register_service()
async def run_updates(_backend_state: tangram.BackendState) -> None:
    count = 0
    while True:
        await update.publish(b"Hello from plugin")
        await update_count.publish(Count(count))
        count += 1
        await trio.sleep(1)
