"""One topic for a client: events, pushes with replies, presence."""

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
    PRESENCE_COUNT,
    PRESENCE_DIFF,
    PRESENCE_STATE,
    REPLY,
    SocketMessage,
)
from tangram.errors import ChannelClosed, Refused

__all__ = ["TIMEOUT", "Channel", "Event"]

TIMEOUT: Final = 10.0
"""Seconds to wait for a reply."""
POSITION: Final = "tangram:position"
"""The event with the position behind the events so far."""
BUFFER: Final = 1024
"""Events kept for a reader that is slower than its channel; then the oldest are dropped and counted."""


class _Carrier(Protocol):
    """The part of the socket that a channel calls."""

    def next_ref(self) -> str: ...
    async def call(self, message: SocketMessage) -> Mapping[str, Any]: ...
    async def send(self, message: SocketMessage) -> None: ...
    def forget(self, channel: Channel) -> None: ...
    def rejoin(self, channel: Channel) -> None: ...


class Event(NamedTuple):
    """One event of a channel."""

    name: str
    payload: Any
    """The decoded JSON, or bytes if the event was binary."""
    binary: bool = False


class Channel:
    """One topic; iterate over it for its events, until the channel is closed for good."""

    def __init__(
        self,
        socket: _Carrier,
        topic: str,
        payload: Callable[[], Mapping[str, Any]],
        *,
        position: str | None = None,
    ) -> None:
        self.topic = topic
        self.position = position
        """The position behind the events so far; None if the channel does not ask for positions, or the topic
        has no history."""
        self.recovered: bool | None = None
        """Whether the last join missed nothing since ``position``; None if the topic has no history."""
        self.reason: str | None = None
        """Why the last join has not recovered; None also for a first join."""
        self._asks = position is not None
        self._moved: str | None = None
        self.id: str | None = None
        """The agent id of the last join, from the server."""
        self.presence: dict[str, list[Mapping[str, Any]]] = {}
        """External ids of the members, with their metas; empty while the server sends their number instead.
        """
        self._present: int | None = None
        self.missed = 0
        """The number of events that were dropped because they were not read in time."""
        self.joins = 0
        """The number of successful joins."""
        self._socket = socket
        self._payload = payload
        self._join_ref: str | None = None
        self._events: deque[Event] = deque()
        self._closed: ChannelClosed | None = None
        self._joined = False
        self._losses = 0
        self._leaving = False
        self._early_diffs: list[Mapping[str, Any]] | None = []
        self._changed = trio.Event()

    @property
    def joined(self) -> bool:
        """Whether it is joined now."""
        return self._joined

    @property
    def closed(self) -> bool:
        """Whether it is closed for good."""
        return self._closed is not None

    @property
    def wants_join(self) -> bool:
        """Whether it should be joined again: it is not joined, and neither left nor closed."""
        return not self._joined and not self._leaving and self._closed is None

    async def push(self, event: str, payload: Any = None, *, timeout: float = TIMEOUT) -> Any:
        """Send an event, wait for the reply, and return its ``response``.

        If the channel is being joined again, this waits for the join.

        Args:
            event: the name of the event, without a colon.
            payload: any JSON value, or bytes, which are sent as they are.
            timeout: seconds for all of this.

        Raises:
            Refused: with the reason of the server.
            ChannelClosed: if the channel or the connection is closed.
            trio.TooSlowError: after ``timeout``.
            ValueError: if the event has a colon, which no server accepts.
        """
        _check(event)
        with trio.fail_after(timeout):
            await self.wait_joined()
            reply = await self._socket.call(self._message(event, payload))
        return _response(reply)

    async def push_nowait(self, event: str, payload: Any = None) -> None:
        """Send an event without waiting for a reply.

        Raises:
            ChannelClosed: if there is no connection.
            ValueError: if the event has a colon.
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
        """Wait until it is joined; raises ChannelClosed if it is closed for good."""
        while not self._joined:
            if self._closed is not None:
                raise self._closed
            await self._changed.wait()

    async def receive(self) -> Event:
        """Return the next event; raises ChannelClosed after the last one."""
        while not self._events:
            if self._closed is not None:
                raise self._closed
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        return self._events.popleft()

    async def receive_named(self, name: str) -> Event:
        """Return the next event of a name; those of other names stay for other readers.

        Raises:
            ChannelClosed: after the last one.
        """
        while (found := next((event for event in self._events if event.name == name), None)) is None:
            if self._closed is not None:
                raise self._closed
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        self._events.remove(found)
        return found

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self.receive()
        except ChannelClosed:
            raise StopAsyncIteration from None

    async def wait_presence(self, condition: Callable[[Mapping[str, Any]], bool]) -> None:
        """Wait until ``condition(presence)`` is true."""
        while not condition(self.presence):
            if self._closed is not None:
                raise self._closed
            await self._changed.wait()

    @property
    def present(self) -> int:
        """The number of members, also of a topic whose members the server does not list."""
        if self._present is not None:
            return self._present
        return sum(map(len, self.presence.values()))

    async def wait_present(self, condition: Callable[[int], bool]) -> None:
        """Wait until ``condition(present)`` is true."""
        while not condition(self.present):
            if self._closed is not None:
                raise self._closed
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # Called by the socket.

    async def join_once(self) -> None:
        """Try to join once; raises Refused, ChannelClosed or trio.TooSlowError."""
        ref = self._socket.next_ref()
        self._join_ref = ref
        self._joined = False
        self._early_diffs = []
        self._moved = None
        losses = self._losses
        payload = self._payload()
        if self._asks:
            payload = {**payload, "recover": self.position or ""}
        message = SocketMessage(ref, ref, self.topic, JOIN, codec.encode_json(payload))
        with trio.fail_after(TIMEOUT):
            response = _response(await self._socket.call(message))
        if self._join_ref == ref:
            fields = response if isinstance(response, dict) else {}
            self.id = fields.get("id")
            if self._asks:
                # Events behind the reply, and their position, may have come before this task runs again.
                if self._moved is None:
                    self.position = fields.get("position")
                self.recovered, self.reason = fields.get("recovered"), fields.get("reason")
            # The membership may have ended in one read with the reply: then it is to be joined again.
            self._joined = losses == self._losses
            self.joins += 1
            self._notify()

    def lost(self) -> None:
        """Note that the connection or the membership has ended, and may come back."""
        self._losses += 1
        self._joined = False
        self._notify()

    def close(self, error: ChannelClosed) -> None:
        """Close it for good; waiting calls raise ``error``."""
        if self._closed is None:
            self._closed = error
            self._joined = False
            self._socket.forget(self)
            self._notify()

    def take(self, message: SocketMessage) -> None:
        """Handle a message of the server for this topic."""
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
        elif message.event == PRESENCE_COUNT:
            self._count(msgspec.json.decode(message.payload))
        elif message.event == POSITION and self._asks:
            self.position = self._moved = msgspec.json.decode(message.payload)["at"]
        elif message.event != REPLY:
            payload = message.payload if message.binary else msgspec.json.decode(message.payload)
            if len(self._events) >= BUFFER:
                self._events.popleft()
                self.missed += 1
            self._events.append(Event(message.event, payload, message.binary))
            self._notify()

    def _sync(self, state: Mapping[str, Any]) -> None:
        self._present = None
        self.presence = {id_: list(entry["metas"]) for id_, entry in state.items()}
        early, self._early_diffs = self._early_diffs or [], None
        for diff in early:
            self._differ(diff)
        self._notify()

    def _count(self, payload: Mapping[str, Any]) -> None:
        self.presence, self._early_diffs = {}, []
        self._present = payload["count"]
        self._notify()

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
        self._notify()


def _check(event: str) -> None:
    if ":" in event:
        raise ValueError(f"the event {event!r} holds a colon, which would make it part of the topic")


def _response(reply: Mapping[str, Any]) -> Any:
    response = reply.get("response")
    if reply.get("status") == "ok":
        return response
    reason = response.get("reason") if isinstance(response, dict) else None
    raise Refused(str(reason or response), response)
