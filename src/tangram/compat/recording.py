"""``redis_client.publish`` of existing plugins, where topics have a history.

The message is published and recorded in one step by the function on Redis, so that no restart can lose it. If
Redis lacks the function, the message is published as by any other program, and the recorder records it.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import ResponseError

from tangram.history import Rules

__all__ = ["recording_client", "recording_cluster"]


def recording_client(rules: Rules) -> type[Redis]:
    """Return the class of clients that record messages of topics with a history."""

    class RecordingRedis(Redis):
        async def publish(self, channel: Any, message: Any, **kwargs: Any) -> Any:
            receivers = await _publish_recorded(self, rules, channel, message)
            return await super().publish(channel, message, **kwargs) if receivers is None else receivers

    return RecordingRedis


def recording_cluster(rules: Rules) -> type[RedisCluster]:
    """Return the same for clients of a Redis Cluster."""

    class RecordingCluster(RedisCluster):
        async def publish(self, channel: Any, message: Any, **kwargs: Any) -> Any:
            receivers = await _publish_recorded(self, rules, channel, message)
            return await super().publish(channel, message, **kwargs) if receivers is None else receivers

    return RecordingCluster


async def _publish_recorded(client: Any, rules: Rules, channel: Any, message: Any) -> int | None:
    """Publish and record in one step; return None if the message is to be published plainly."""
    plain = isinstance(channel, bytes | str) and isinstance(message, bytes | str)
    call = rules.publishing(channel, message) if plain else None
    if call is None:
        return None
    words = (len(call.keys), *call.keys, *call.arguments)
    try:
        answer = await client.execute_command("FCALL", call.function, *words)
    except ResponseError as error:
        if not _lacks_function(str(error)):
            raise
        return None
    return int(rules.published(answer))


def _lacks_function(error: str) -> bool:
    """Return whether Redis has not run the function."""
    return "unknown command" in error or "Function not found" in error or "no permissions" in error
