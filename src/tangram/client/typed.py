"""Messages of a channel as values of types, for programs that talk to declared channels."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar, cast

import msgspec

from tangram.client.channel import TIMEOUT, Channel
from tangram.declared.payload import PLACE
from tangram.errors import BadMessage, ChannelClosed
from tangram.routing.convert import problems_of, structurer
from tangram.routing.responses import encode_json

__all__ = ["TypedChannel", "TypedEvents", "typed"]

T = TypeVar("T")


def typed(channel: Channel) -> TypedChannel:
    """Return a channel whose pushes and events have types.

    Example:
        flights = typed(await socket.join("flights:eu", token=token.token))
        selected = await flights.push("select", Select("3944ef"), Selected)
        async for position in flights.events("position", Position):
            print(position.latitude)
    """
    return TypedChannel(channel)


class TypedChannel:
    """Types for the messages of one channel; made by `typed`."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    async def push(self, event: str, message: object, reply: type[T], *, timeout: float = TIMEOUT) -> T:
        """Push a message, and return the reply.

        Args:
            event: the name of the event.
            message: an attrs object, dataclass, ``msgspec.Struct``, any other JSON value, or bytes.
            reply: the type of the reply.
            timeout: seconds for all of this.

        Raises:
            Refused: with the reason of the server; ``response`` has the faults of the message.
            BadMessage: the reply is not of the type.
            ChannelClosed: the channel or the connection is closed.
            trio.TooSlowError: after ``timeout``.
        """
        response = await self.channel.push(event, _plain(message), timeout=timeout)
        return _convert(self.channel.topic, event, response, reply)

    def events(self, event: str, kind: type[T]) -> TypedEvents[T]:
        """Return the events of one name as values of a type.

        Events of other names stay for other readers.
        """
        return TypedEvents(self.channel, event, kind)


class TypedEvents(Generic[T]):
    """The events of one name; iterate over them, until the channel is closed for good."""

    def __init__(self, channel: Channel, event: str, kind: type[T]) -> None:
        self._channel = channel
        self._event = event
        self._kind = kind

    async def receive(self) -> T:
        """Return the next one.

        Raises:
            BadMessage: it is not of the type; the next call goes on behind it.
            ChannelClosed: the channel is closed for good, and has no more of them.
        """
        event = await self._channel.receive_named(self._event)
        return _convert(self._channel.topic, event.name, event.payload, self._kind)

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.receive()
        except ChannelClosed:
            raise StopAsyncIteration from None


def _plain(message: object) -> Any:
    if isinstance(message, bytes | bytearray | memoryview):
        return bytes(message)
    # The encoder of the routes knows all types; the channel takes plain values.
    return msgspec.json.decode(encode_json(message))


def _convert(topic: str, event: str, value: object, kind: type[T]) -> T:
    try:
        return cast("T", structurer(kind)(value))
    except Exception as error:
        faults = "; ".join(f"{fault.msg} @ {fault.path}" for fault in problems_of(error, (PLACE,)))
        raise BadMessage(
            f"event {event!r} of {topic!r} is no {kind.__name__}: {faults}", sender="server", topic=topic
        ) from error
