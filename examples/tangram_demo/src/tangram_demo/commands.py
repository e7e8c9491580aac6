"""Count the commands that browsers push on the topic ``demo``, and publish the number."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import tangram


@dataclass
class CommandCount:
    """The number of commands since the start of the plugin, and the client to publish it with."""

    redis_client: Any
    count: int = 0


class CommandCounter(tangram.Subscriber[CommandCount]):
    """Counts messages."""

    async def message_handler(
        self,
        event: str,  # noqa: ARG002 - there is only one event
        payload: str,  # noqa: ARG002 - every command counts
        pattern: str,  # noqa: ARG002 - there is only one pattern
        state: CommandCount,
    ) -> None:
        state.count += 1
        await state.redis_client.publish("to:demo:count", json.dumps({"count": state.count}))
