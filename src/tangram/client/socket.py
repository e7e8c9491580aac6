"""The connection of a client: sending and receiving frames, heartbeats, and reconnecting."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

import attrs
import msgspec
import structlog
import trio

from tangram.channels import codec
from tangram.channels.frames import BINARY, HEARTBEAT, PHOENIX, TEXT, FrameError, SocketMessage
from tangram.client.channel import TIMEOUT, Channel
from tangram.client.dial import dial
from tangram.errors import ChannelClosed, Refused
from tangram.groups import first_leaf

if TYPE_CHECKING:
    from trio_websocket import WebSocketConnection

__all__ = ["ClientSocket", "open_socket"]

log = structlog.get_logger("tangram.client")

HEARTBEAT_INTERVAL: Final = 30.0
"""Seconds between heartbeats; without a reply before the next one the connection ends, as in phoenix.js."""
CLOSE_TIMEOUT: Final = 1.0
"""Seconds for the server to answer a close frame of the client."""
CLOSE_ANYHOW: Final = 0.05
"""Seconds to send a close frame whose answer is not waited for."""
BACKOFF_FIRST: Final = 0.05
BACKOFF_MAX: Final = 5.0
"""Seconds before a reconnection: doubled from the first to the longest, each with up to 20 % of jitter."""
REJOIN_DELAYS: Final = (1.0, 2.0, 5.0, 10.0)
"""Seconds before a channel is joined again after an error, as in phoenix.js; the last one repeats."""


@attrs.define(eq=False)
class _Waiter:
    """A call that waits for the reply with one ref."""

    event: trio.Event = attrs.Factory(trio.Event)
    reply: Mapping[str, Any] | None = None


class _Watched(trio.abc.Stream):
    """A stream whose end ends the WebSocket handshake.

    trio-websocket goes on waiting for the answer to the handshake when the connection has ended.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.handshake: trio.CancelScope | None = None
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data: bytes | bytearray = b""
        try:
            data = await self._stream.receive_some(max_bytes)
        finally:
            if not data and self.handshake is not None:
                self.handshake.cancel()
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


class ClientSocket:
    """One WebSocket that carries channels."""

    def __init__(
        self,
        url: str,
        nursery: trio.Nursery,
        *,
        reconnect: bool,
        heartbeat: float,
        rng: random.Random,
        ssl_context: ssl.SSLContext | None = None,
        **settings: Any,
    ) -> None:
        self.close_code: int | None = None
        """The close code of the last connection; None while it is open."""
        self.server_codes: list[int] = []
        """The close codes of the server, in order.

        Connections that the client closed, or that ended without a close frame (1006), are not included.
        """
        self.connections = 0
        """The number of connections so far."""
        self._url = url
        self._nursery = nursery
        self._reconnect = reconnect
        self._heartbeat = heartbeat
        self._rng = rng
        self._ssl_context = ssl_context
        self._settings = settings
        self._connection: WebSocketConnection | None = None
        self._channels: dict[str, Channel] = {}
        self._rejoining: set[Channel] = set()
        self._waiting: dict[str, _Waiter] = {}
        self._closing: trio.Event | None = None
        self._given_up = False
        """Whether the client closes the connection because a heartbeat got no reply."""
        self._ref = 0

    @property
    def connected(self) -> bool:
        return self._connection is not None

    async def join(
        self,
        topic: str,
        *,
        token: str | None = None,
        payload: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        recover: bool | str = False,
    ) -> Channel:
        """Join a topic; a channel of the same topic is left first.

        Args:
            topic: the topic.
            token: sent as ``token`` of the payload.
            payload: further fields, or a function that returns the payload. The function is called again at
                each rejoin, for example for a fresh token.
            recover: ask for the events that are missed between two joins, if the topic has a history; then
                ``channel.recovered`` says whether a join has missed any. A text is a position to begin at.

        Raises:
            Refused: with the reason of the server.
            ChannelClosed: if there is no connection.
            trio.TooSlowError: after ten seconds.
        """
        base: Mapping[str, Any] = {} if token is None else {"token": token}
        make = payload if callable(payload) else lambda: {**base, **(payload or {})}
        position = recover if isinstance(recover, str) else "" if recover else None
        channel = Channel(self, topic, make, position=position)
        old = self._channels.get(topic)
        if old is not None:
            await old.leave()
        self._channels[topic] = channel
        try:
            await channel.join_once()
        except BaseException:
            self.forget(channel)
            raise
        return channel

    async def disconnect(self) -> None:
        """Close the connection; the client connects again unless ``reconnect`` is off."""
        if self._connection is not None:
            closing = self._closing = trio.Event()
            try:
                with trio.move_on_after(CLOSE_TIMEOUT):
                    await self._connection.aclose()
            finally:
                closing.set()
                self._closing = None

    async def aclose(self) -> None:
        """Close the connection and all channels for good."""
        self._reconnect = False
        await self.disconnect()

    def next_ref(self) -> str:
        """Return a ref that was not used before on this socket."""
        self._ref += 1
        return str(self._ref)

    async def call(self, message: SocketMessage) -> Mapping[str, Any]:
        """Send a message, and wait for the reply; raises ChannelClosed if the connection ends."""
        ref = message.ref if message.ref is not None else self.next_ref()
        waiter = self._waiting[ref] = _Waiter()
        try:
            await self.send(message._replace(ref=ref))
            await waiter.event.wait()
        finally:
            self._waiting.pop(ref, None)
        if waiter.reply is None:
            raise ChannelClosed("the connection was lost", code=self.close_code)
        return waiter.reply

    async def send(self, message: SocketMessage) -> None:
        """Send one message; raises ChannelClosed."""
        from trio_websocket import ConnectionClosed

        if self._connection is None:
            raise ChannelClosed("not connected", code=self.close_code)
        try:
            await self._connection.send_message(codec.encode_client(message))
        except ConnectionClosed as error:
            raise ChannelClosed("the connection was lost", code=self.close_code) from error

    async def send_raw(self, frame: str | bytes) -> None:
        """Send any text or bytes as a frame, for tests of a server."""
        if self._connection is None:
            raise ChannelClosed("not connected", code=self.close_code)
        await self._connection.send_message(frame)

    def forget(self, channel: Channel) -> None:
        """Deliver no more messages to a channel, and do not join it again."""
        if self._channels.get(channel.topic) is channel:
            del self._channels[channel.topic]

    def rejoin(self, channel: Channel, *, at_once: bool = False) -> None:
        """Join a channel again, after delays that grow."""
        if channel not in self._rejoining:
            self._rejoining.add(channel)
            self._nursery.start_soon(self._rejoin, channel, at_once)

    async def _rejoin(self, channel: Channel, at_once: bool) -> None:
        attempt = 0
        try:
            while self._is_due(channel):
                if not (at_once and attempt == 0):
                    await trio.sleep(REJOIN_DELAYS[min(attempt, len(REJOIN_DELAYS) - 1)])
                    if not self._is_due(channel):
                        return  # it was left meanwhile: a join now would make a member without a channel
                attempt += 1
                if self._connection is None:
                    return
                try:
                    await channel.join_once()
                except (Refused, trio.TooSlowError, ChannelClosed) as error:
                    log.info("rejoin failed", topic=channel.topic, cause=str(error))
        finally:
            self._rejoining.discard(channel)

    def _is_due(self, channel: Channel) -> bool:
        return self._channels.get(channel.topic) is channel and channel.wants_join

    # The connection.

    async def run(self, *, task_status: trio.TaskStatus[ClientSocket] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, and stay connected.

        Raises:
            Refused: if the server refuses the first connection.
            ChannelClosed: if the first connection fails otherwise.
        """
        from trio_websocket import ConnectionClosed, ConnectionRejected, HandshakeError

        delay = 0.0
        started = False
        while True:
            error: ChannelClosed | Refused | None = None
            try:
                async with trio.open_nursery() as nursery:
                    async with self._connect(nursery) as connection:
                        delay = 0.0
                        self._connected(connection)
                        if not started:
                            started = True
                            task_status.started(self)
                        nursery.start_soon(self._beat, connection)
                        await self._read(connection)
                        if self._closing is not None:
                            # A task of this nursery must still read the answer to the close frame.
                            await self._closing.wait()
                    nursery.cancel_scope.cancel()
            except* ConnectionRejected as group:
                error = _refused(group)
            except* (ConnectionClosed, HandshakeError, OSError, trio.TooSlowError) as group:
                error = ChannelClosed(f"cannot connect to {self._shown()!r}: {first_leaf(group)!r}")
            finally:
                self._lost()
            if error is not None:
                if not started:
                    raise error
                log.info("cannot connect", url=self._shown(), cause=str(error))
            if not self._reconnect:
                return
            await trio.sleep(delay * self._rng.uniform(0.8, 1.2))
            delay = min(BACKOFF_MAX, max(BACKOFF_FIRST, delay * 2))

    def _connected(self, connection: WebSocketConnection) -> None:
        self.connections += 1
        self.close_code = None
        self._given_up = False
        self._connection = connection
        for channel in list(self._channels.values()):
            self.rejoin(channel, at_once=True)

    def _shown(self) -> str:
        return self._url.partition("?")[0]

    @asynccontextmanager
    async def _connect(self, nursery: trio.Nursery) -> AsyncIterator[WebSocketConnection]:
        """Open a connection whose reader runs in ``nursery``; a rejection is raised there."""
        from trio_websocket import wrap_client_stream

        parts = urlsplit(self._url)
        resource = f"{parts.path}?{parts.query}"
        with trio.fail_after(TIMEOUT):
            stream = await dial(self._url, self._ssl_context)
        watched: Any = _Watched(stream)  # the library accepts any stream, although its types name two kinds
        try:
            with trio.fail_after(TIMEOUT) as watched.handshake:
                connection = await wrap_client_stream(
                    nursery, watched, parts.netloc, resource, **self._settings
                )
            watched.handshake = None
            yield connection
            with trio.move_on_after(CLOSE_ANYHOW):
                await connection.aclose()
        finally:
            # trio-websocket leaves the stream open when the server closed first, or rejected.
            await trio.aclose_forcefully(stream)

    async def _read(self, connection: WebSocketConnection) -> None:
        from trio_websocket import ConnectionClosed

        while True:
            try:
                data = await connection.get_message()
            except ConnectionClosed as error:
                self.close_code = error.reason.code if error.reason is not None else 1006
                if self._closing is None and not self._given_up and self.close_code != 1006:
                    self.server_codes.append(self.close_code)
                return
            try:
                message = codec.decode_server(TEXT if isinstance(data, str) else BINARY, data)
            except FrameError as error:
                log.warning("malformed frame from the server", cause=str(error))
                continue
            self._dispatch(message)

    def _dispatch(self, message: SocketMessage) -> None:
        waiter = None if message.ref is None else self._waiting.get(message.ref)
        if waiter is not None:
            if message.binary:
                waiter.reply = {"status": message.event, "response": message.payload}
            else:
                waiter.reply = msgspec.json.decode(message.payload)
            waiter.event.set()
            return
        channel = self._channels.get(message.topic)
        if channel is not None:
            channel.take(message)

    async def _beat(self, connection: WebSocketConnection) -> None:
        while True:
            await trio.sleep(self._heartbeat)
            try:
                with trio.fail_after(self._heartbeat):
                    await self.call(SocketMessage(None, None, PHOENIX, HEARTBEAT, b"{}"))
            except (trio.TooSlowError, ChannelClosed):
                self._given_up = True
                with trio.move_on_after(1.0):
                    await connection.aclose(1001, "heartbeat timeout")
                return

    def _lost(self) -> None:
        self._connection = None
        for waiter in self._waiting.values():
            waiter.event.set()
        for channel in list(self._channels.values()):
            channel.lost()
            if not self._reconnect:
                channel.close(ChannelClosed("the connection was lost", code=self.close_code))


def _refused(group: BaseExceptionGroup[Any]) -> Refused:
    rejected: Any = first_leaf(group)
    body = (rejected.body or b"").decode(errors="replace").strip()
    return Refused(body or f"status {rejected.status_code}")


def _address(url: str, query: Mapping[str, str]) -> str:
    """Return the address of the WebSocket of a server's URL."""
    base = url.rstrip("/")
    if base.startswith("http"):
        base = "ws" + base.removeprefix("http")
    return f"{base}/websocket?" + "&".join(
        f"{quote(name)}={quote(value, safe='')}" for name, value in query.items()
    )


@asynccontextmanager
async def open_socket(
    url: str,
    *,
    token: str | None = None,
    params: Mapping[str, str] | None = None,
    headers: Sequence[tuple[str, str]] = (),
    subprotocols: Sequence[str] = (),
    reconnect: bool = True,
    heartbeat: float = HEARTBEAT_INTERVAL,
    ssl_context: ssl.SSLContext | None = None,
    rng: random.Random | None = None,
) -> AsyncIterator[ClientSocket]:
    """Connect to a server; the block's end closes the connection.

    Args:
        url: http, https, ws or wss, without ``/websocket``.
        token: the token of the connection itself (``userToken``), for joins without one.
        params: further query parameters.
        headers: further request headers.
        subprotocols: offered WebSocket subprotocols.
        reconnect: whether to connect again after the connection was lost.
        heartbeat: seconds between heartbeats.
        ssl_context: for https and wss.
        rng: the source of jitter.

    Raises:
        Refused: if the server refuses the first connection.
        ChannelClosed: if the first connection fails otherwise.
    """
    query = {**({} if token is None else {"userToken": token}), **(params or {}), "vsn": "2.0.0"}
    settings: dict[str, Any] = {"subprotocols": list(subprotocols) or None, "message_queue_size": 1}
    settings["extra_headers"] = [(name.encode(), value.encode()) for name, value in headers]
    settings["max_message_size"] = 64 * 1024 * 1024
    error: Exception | None = None
    async with trio.open_nursery() as nursery:
        socket = ClientSocket(
            _address(url, query),
            nursery,
            reconnect=reconnect,
            heartbeat=heartbeat,
            rng=rng or random.Random(),  # noqa: S311 - jitter
            ssl_context=ssl_context,
            **settings,
        )
        try:
            await nursery.start(socket.run)
            yield socket
            await socket.aclose()
        except Exception as raised:  # noqa: BLE001 - raised again below
            # Leave the nursery without a group: a group of one would not match the caller's except.
            error = raised
        finally:
            nursery.cancel_scope.cancel()
    if error is not None:
        raise error
