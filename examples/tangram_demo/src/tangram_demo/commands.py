"""Counts what browsers push as ``command`` on the topic ``demo``, and tells everyone who joined it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import tangram


@dataclass
class CommandCount:
    """How many commands came since this plugin was started, and where to tell it."""

    redis_client: Any
    count: int = 0


class CommandCounter(tangram.Subscriber[CommandCount]):
    async def message_handler(
        self,
        event: str,  # noqa: ARG002 - only one event is listened to
        payload: str,  # noqa: ARG002 - a command is counted, whatever it says
        pattern: str,  # noqa: ARG002 - only one pattern
        state: CommandCount,
    ) -> None:
        state.count += 1
        await state.redis_client.publish("to:demo:count", json.dumps({"count": state.count}))
