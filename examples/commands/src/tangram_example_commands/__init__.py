"""A plugin that counts the pushes of browsers on the topic ``system``.

They arrive on the Redis channel ``from:system:<event>``.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

import tangram

plugin = tangram.Plugin()


@dataclass
class CommandSubscriberState:
    command_count: int = 0


class CommandSubscriber(tangram.Subscriber[CommandSubscriberState]):
    """Counts and prints the commands on its Redis channels."""

    async def message_handler(
        self,
        event: str,
        payload: str,
        pattern: str,  # noqa: ARG002 - the pattern that matched, useful with several patterns
        state: CommandSubscriberState,
    ) -> None:
        state.command_count += 1
        print(f"Command #{state.command_count} received on `{event}`: {payload}")


@plugin.register_service()
async def run_command_listener(backend_state: tangram.BackendState) -> None:
    """Listen for commands from the front end until the server stops."""
    subscriber = CommandSubscriber(
        name="CommandListener",
        redis_url=backend_state.config.core.redis_url,
        channels=["from:system:my-plugin-command"],
        initial_state=CommandSubscriberState(),
    )
    await subscriber.subscribe()
    try:
        await trio.sleep_forever()
    finally:
        await subscriber.cleanup()
