"""``redis_client.publish`` of existing plugins, where topics have a history.

The message is published and recorded in one step by the function on Redis, so that no restart can lose it. If
Redis lacks the function, the message is published as by any other program, and the recorder records it.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tangram.history import Rules

__all__ = ["recording_client"]


def recording_client(rules: Rules) -> type[Redis]:
    """Return the class of clients that record messages of topics with a history."""

    class RecordingRedis(Redis):
        async def publish(self, channel: Any, message: Any, **kwargs: Any) -> Any:
            plain = isinstance(channel, bytes | str) and isinstance(message, bytes | str)
            call = rules.publishing(channel, message) if plain else None
            if call is not None:
                words = (len(call.keys), *call.keys, *call.arguments)
                try:
                    run: Any = self.execute_command
                    answer = await run("FCALL", call.function, *words)
                except ResponseError as error:
                    if not _lacks_function(str(error)):
                        raise
                else:
                    return int(rules.published(answer))
            return await super().publish(channel, message, **kwargs)

    return RecordingRedis


def _lacks_function(error: str) -> bool:
    """Return whether Redis has not run the function."""
    return "unknown command" in error or "Function not found" in error or "no permissions" in error
