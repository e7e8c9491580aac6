"""Publish for existing plugins, with histories of topics and fences of placed plugins.

1. A message of a topic with a history is published and recorded in one step by the function on Redis, so that
   no restart can lose it. If Redis lacks the function, the message is published as by any other program, and
   the recorder records it.
2. A plugin that runs on one of several nodes publishes with the token of its lease, in pipelines and by
   ``execute_command("PUBLISH", ...)``, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from tangram.bus.scripts import is_publication
from tangram.cluster.fencing import FENCED
from tangram.cluster.placement import HELD_LEASE
from tangram.errors import BrokerRefused, BrokerUnavailable

if TYPE_CHECKING:
    from tangram.bus.scripts import FunctionCall, Words
    from tangram.history import Rules

__all__ = ["ClientFence", "FencedCommands", "publishing_client", "publishing_cluster"]

LOST: Final = ("UNFENCED", "Function not found", "NOSCRIPT")
"""The beginnings of errors by which Redis says that it has lost its data."""


class FencedCommands(Protocol):
    """The commands by which a placed plugin publishes."""

    def fenced_words(
        self, lease: str, channel: bytes, payload: bytes, recording: FunctionCall | None
    ) -> Words:
        """Return the command that publishes with the token of a lease.

        Raises:
            BrokerRefused: this node does not hold the lease any more.
            BrokerUnavailable: Redis has not been reached yet.
        """

    async def take_again(self, lease: str) -> None:
        """Take a lease again, of which Redis has lost the token; awaited on Trio."""

    def lose(self, lease: str) -> None:
        """Note that another node holds a lease."""


class ClientFence:
    """The fence of one client.

    Args:
        lease: the lease of the plugin; None for a plugin that runs on every node, whose services may have
            leases of their own.
        commands: returns the commands of the running bus.
    """

    def __init__(self, lease: str | None, commands: FencedCommands) -> None:
        self._lease = lease
        self._commands = commands

    def held(self) -> str | None:
        """Return the lease under which the running task publishes; None if it needs none."""
        return HELD_LEASE.get() or self._lease

    def words(
        self, client: Any, lease: str, channel: Any, message: Any, recording: FunctionCall | None = None
    ) -> Words:
        """Return the command that publishes with the lease's token.

        Raises:
            ResponseError: this node does not hold the lease any more.
            RedisConnectionError: Redis has not been reached yet.
        """
        encode = client.get_encoder().encode
        try:
            return self._commands.fenced_words(lease, encode(channel), encode(message), recording)
        except BrokerRefused as error:
            raise ResponseError(str(error)) from None
        except BrokerUnavailable as error:
            raise RedisConnectionError(str(error)) from None

    def note_refusal(self, lease: str, error: str) -> None:
        """Note an error of Redis, which may say that another node holds the lease."""
        if error.startswith(FENCED):
            self._commands.lose(lease)

    async def take_again(self, lease: str) -> None:
        """Take the lease again; awaited on the island's loop."""
        import trio_asyncio

        await trio_asyncio.trio_as_aio(self._commands.take_again)(lease)


class _Publishing:
    """How the clients of one plugin publish."""

    def __init__(self, rules: Rules | None, fence: ClientFence | None) -> None:
        self._rules = rules
        self._fence = fence

    def is_fenced(self, words: Sequence[Any]) -> bool:
        """Return whether a command of the running task is a publication that needs a token."""
        return self._fence is not None and is_publication(words) and self._fence.held() is not None

    async def publish(self, client: Any, channel: Any, message: Any) -> int | None:
        """Publish with history and token; return None if the message needs neither."""
        plain = isinstance(channel, bytes | str) and isinstance(message, bytes | str)
        recording = self._rules.publishing(channel, message) if plain and self._rules else None
        lease = None if self._fence is None else self._fence.held()
        if lease is not None:
            return await self._publish_fenced(client, lease, channel, message, recording)
        if recording is None:
            return None
        words = ("FCALL", recording.function, len(recording.keys), *recording.keys, *recording.arguments)
        try:
            return self._receivers(await client.execute_command(*words), recording)
        except ResponseError as error:
            if not _lacks_function(str(error)):
                raise
            return None

    async def _publish_fenced(
        self, client: Any, lease: str, channel: Any, message: Any, recording: FunctionCall | None
    ) -> int:
        assert self._fence is not None
        words = self._fence.words(client, lease, channel, message, recording)
        try:
            answer = await client.execute_command(*words)
        except ResponseError as error:
            if not any(one in f"{type(error).__name__} {error}" for one in LOST):
                self._fence.note_refusal(lease, str(error))
                raise
            # The message was not published.
            await self._fence.take_again(lease)
            words = self._fence.words(client, lease, channel, message, recording)
            answer = await client.execute_command(*words)
        return self._receivers(answer, recording)

    def _receivers(self, answer: Any, recording: FunctionCall | None) -> int:
        if recording is None or self._rules is None:
            return int(answer)
        return int(self._rules.published(answer))

    def guard_pipeline(self, client: Any, pipe: Any) -> Any:
        """Let a pipeline send the command with a token instead of each publication that needs one."""
        fence = self._fence
        if fence is None:
            return pipe
        plain: Callable[..., Any] = pipe.execute_command

        def execute_command(*words: Any, **options: Any) -> Any:
            lease = fence.held() if is_publication(words) else None
            if lease is not None:
                words = fence.words(client, lease, words[1], words[2])
            return plain(*words, **options)

        pipe.execute_command = execute_command
        return pipe


class _PublishingCommands:
    """Stands before the class of a client, and takes over the commands that publish."""

    how: ClassVar[_Publishing]

    async def publish(self, channel: Any, message: Any, **kwargs: Any) -> Any:
        receivers = await self.how.publish(self, channel, message)
        if receivers is not None:
            return receivers
        return await super().publish(channel, message, **kwargs)  # type: ignore[misc]

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if self.how.is_fenced(args):
            return await self.how.publish(self, args[1], args[2])
        return await super().execute_command(*args, **options)  # type: ignore[misc]

    def pipeline(self, *args: Any, **kwargs: Any) -> Any:
        return self.how.guard_pipeline(self, super().pipeline(*args, **kwargs))  # type: ignore[misc]


def publishing_client(rules: Rules | None, fence: ClientFence | None) -> type[Redis]:
    """Return the class of clients that record and fence their publications."""

    class PublishingRedis(_PublishingCommands, Redis):  # type: ignore[misc] # among the bases of Redis
        how = _Publishing(rules, fence)

    return PublishingRedis


def publishing_cluster(rules: Rules | None, fence: ClientFence | None) -> type[RedisCluster]:
    """Return the same for clients of a Redis Cluster."""

    class PublishingCluster(_PublishingCommands, RedisCluster):  # type: ignore[misc] # as above
        how = _Publishing(rules, fence)

    return PublishingCluster


def _lacks_function(error: str) -> bool:
    """Return whether Redis has not run the function."""
    return "unknown command" in error or "Function not found" in error or "no permissions" in error
