"""One topic as a client sees it: events, pushes with replies, presence."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import trio

from tangram.channels import codec
from tangram.channels.frames import (
    CLOSE,
    ERROR,
    JOIN,
    LEAVE,
    PRESENCE_DIFF,
    PRESENCE_STATE,
    REPLY,
    SocketMessage,
)
from tangram.errors import ChannelClosed, Refused

__all__ = ["TIMEOUT", "Channel", "Event"]

TIMEOUT: Final = 10.0
"""Seconds to wait for an answer."""
BUFFER: Final = 1024
"""Events kept for a reader that is slower than its channel; the oldest go first, and are counted."""


class _Carrier(Protocol):
    """What a channel needs of its socket."""

    def next_ref(self) -> str: ...
    async def call(self, message: SocketMessage) -> Mapping[str, Any]: ...
    async def send(self, message: SocketMessage) -> None: ...
    def forget(self, channel: Channel) -> None: ...
    def rejoin(self, channel: Channel) -> None: ...


class Event(NamedTuple):
    """One message of a channel."""

    name: str
    payload: Any
    """The decoded JSON, or bytes if the message was binary."""
    binary: bool = False


class Channel:
    """One topic. Iterate over it for its events; the iteration ends when the channel is closed for good."""

    def __init__(self, socket: _Carrier, topic: str, payload: Callable[[], Mapping[str, Any]]) -> None:
        self.topic = topic
        self.id: str | None = None
        """The agent id that the server gave."""
        self.presence: dict[str, list[Mapping[str, Any]]] = {}
        """External id to its metas."""
        self.missed = 0
        """Events that were dropped because nobody read them in time."""
        self.joins = 0
        """How often it was joined."""
        self._socket = socket
        self._payload = payload
        self._join_ref: str | None = None
        self._events: deque[Event] = deque()
        self._closed: ChannelClosed | None = None
        self._joined = False
        self._leaving = False
        self._changed = trio.Condition()
        self._early_diffs: list[Mapping[str, Any]] | None = []
        self._news = trio.Event()

    @property
    def joined(self) -> bool:
        return self._joined

    @property
    def closed(self) -> bool:
        return self._closed is not None

    @property
    def wants_join(self) -> bool:
        """Whether it should be joined again: it is not, and nobody leaves or has closed it."""
        return not self._joined and not self._leaving and self._closed is None

    async def push(self, event: str, payload: Any = None, *, timeout: float = TIMEOUT) -> Any:
        """Send, wait for the reply, and return its ``response``. Bytes are sent as they are.

        Raises Refused (the server's reason), ChannelClosed, or trio.TooSlowError; ValueError for an event
        with a colon, which no server takes. Waits while the channel is joined anew.
        """
        _check(event)
        with trio.fail_after(timeout):
            await self.wait_joined()
            reply = await self._socket.call(self._message(event, payload))
        return _response(reply)

    async def push_nowait(self, event: str, payload: Any = None) -> None:
        """Send without asking for a reply. Raises ChannelClosed if there is no connection, and ValueError for
        an event with a colon.
        """
        _check(event)
        await self._socket.send(self._message(event, payload))

    def _message(self, event: str, payload: Any) -> SocketMessage:
        binary = isinstance(payload, (bytes, bytearray, memoryview))
        data = bytes(payload) if binary else codec.encode_json({} if payload is None else payload)
        return SocketMessage(self._join_ref, None, self.topic, event, data, binary)

    async def leave(self, *, timeout: float = TIMEOUT) -> None:
        """Leave for good."""
        self._leaving = True
        with trio.fail_after(timeout):
            message = SocketMessage(self._join_ref, None, self.topic, LEAVE, b"{}")
            try:
                if self._closed is None:
                    await self._socket.call(message)
            finally:
                self.close(ChannelClosed("left"))

    async def wait_joined(self) -> None:
        """Until it is joined; raises ChannelClosed if it never will be."""
        while not self._joined:
            if self._closed is not None:
                raise self._closed
            await self._wait_news()

    async def receive(self) -> Event:
        """The next event; raises ChannelClosed after the last one."""
        while not self._events:
            if self._closed is not None:
                raise self._closed
            await self._wait_news()
        await trio.lowlevel.checkpoint()
        return self._events.popleft()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self.receive()
        except ChannelClosed:
            raise StopAsyncIteration from None

    async def wait_presence(self, condition: Callable[[Mapping[str, Any]], bool]) -> None:
        """Until ``condition(presence)`` holds."""
        while not condition(self.presence):
            if self._closed is not None:
                raise self._closed
            await self._wait_news()

    async def _wait_news(self) -> None:
        await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    # What the socket calls.

    async def join_once(self) -> None:
        """One attempt; raises Refused, ChannelClosed or TooSlowError."""
        ref = self._socket.next_ref()
        self._join_ref = ref
        self._joined = False
        self._early_diffs = []
        message = SocketMessage(ref, ref, self.topic, JOIN, codec.encode_json(self._payload()))
        with trio.fail_after(TIMEOUT):
            response = _response(await self._socket.call(message))
        if self._join_ref == ref:
            self.id = response.get("id") if isinstance(response, dict) else None
            self._joined = True
            self.joins += 1
            self._tell()

    def lost(self) -> None:
        """The connection or the membership is gone, and may come back."""
        self._joined = False
        self._tell()

    def close(self, error: ChannelClosed) -> None:
        if self._closed is None:
            self._closed = error
            self._joined = False
            self._socket.forget(self)
            self._tell()

    def take(self, message: SocketMessage) -> None:
        """A message of the server for this topic."""
        if message.join_ref not in (None, self._join_ref):
            return
        if message.event == CLOSE:
            self.close(ChannelClosed(f"the server closed {self.topic!r}"))
        elif message.event == ERROR:
            self.lost()
            self._socket.rejoin(self)
        elif message.event == PRESENCE_STATE:
            self._sync(msgspec.json.decode(message.payload))
        elif message.event == PRESENCE_DIFF:
            self._differ(msgspec.json.decode(message.payload))
        elif message.event != REPLY:
            payload = message.payload if message.binary else msgspec.json.decode(message.payload)
            if len(self._events) >= BUFFER:
                self._events.popleft()
                self.missed += 1
            self._events.append(Event(message.event, payload, message.binary))
            self._tell()

    def _sync(self, state: Mapping[str, Any]) -> None:
        self.presence = {id_: list(entry["metas"]) for id_, entry in state.items()}
        early, self._early_diffs = self._early_diffs or [], None
        for diff in early:
            self._differ(diff)
        self._tell()

    def _differ(self, diff: Mapping[str, Any]) -> None:
        if self._early_diffs is not None:
            self._early_diffs.append(diff)
            return
        for id_, entry in diff["joins"].items():
            known = self.presence.setdefault(id_, [])
            refs = {meta["phx_ref"] for meta in known}
            known.extend(meta for meta in entry["metas"] if meta["phx_ref"] not in refs)
        for id_, entry in diff["leaves"].items():
            gone = {meta["phx_ref"] for meta in entry["metas"]}
            left = [meta for meta in self.presence.get(id_, ()) if meta["phx_ref"] not in gone]
            if left:
                self.presence[id_] = left
            else:
                self.presence.pop(id_, None)
        self._tell()


def _check(event: str) -> None:
    if ":" in event:
        raise ValueError(f"the event {event!r} holds a colon, which would make it part of the topic")


def _response(reply: Mapping[str, Any]) -> Any:
    response = reply.get("response")
    if reply.get("status") == "ok":
        return response
    reason = response.get("reason") if isinstance(response, dict) else None
    raise Refused(str(reason or response))
