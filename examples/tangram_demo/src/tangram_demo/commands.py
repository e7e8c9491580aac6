"""Count the commands that browsers push on the topic ``demo``, and publish the number."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import tangram


@dataclass(frozen=True, slots=True)
class Count:
    """The number of commands, as browsers receive it."""

    count: int


@dataclass
class CommandCount:
    """The number of commands since the start of the plugin, and the function that publishes it."""

    publish: Callable[[Count], Awaitable[object]]
    count: int = 0


class CommandCounter(tangram.Subscriber[CommandCount]):
    """Counts messages.

    A subscriber receives the pushes to all servers on one Redis; the handler of a declared push would count
    those to its own server.
    """

    async def message_handler(
        self,
        event: str,  # noqa: ARG002 - there is only one event
        payload: str,  # noqa: ARG002 - every command counts
        pattern: str,  # noqa: ARG002 - there is only one pattern
        state: CommandCount,
    ) -> None:
        state.count += 1
        await state.publish(Count(state.count))
