"""A client of Phoenix channels on Trio, for programs, the command line and tests.

    token = await fetch_token("http://127.0.0.1:2346", "system")
    async with open_socket("http://127.0.0.1:2346") as socket:
        channel = await socket.join("system", token=token.token)
        await channel.push("my-plugin-command", {"speed": 3})
        async for event in channel:
            print(event.name, event.payload)

The socket comes back by itself, with back-off and jitter, and joins again whatever was joined. What was published
meanwhile is lost, as it is for every browser.
"""

from __future__ import annotations

import random
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

import attrs
import msgspec
import structlog
import trio

from tangram.channels import codec
from tangram.channels.frames import (
    BINARY,
    CLOSE,
    ERROR,
    HEARTBEAT,
    JOIN,
    LEAVE,
    PHOENIX,
    PRESENCE_DIFF,
    PRESENCE_STATE,
    REPLY,
    TEXT,
    FrameError,
    Message,
)
from tangram.errors import ChannelClosed, Refused

if TYPE_CHECKING:
    from trio_websocket import WebSocketConnection

__all__ = ["Channel", "ClientSocket", "Event", "Token", "fetch_token", "open_socket"]

log = structlog.get_logger("tangram.client")

HEARTBEAT_INTERVAL: Final = 30.0
"""Seconds between heartbeats; a missing answer by the next one ends the connection, as in phoenix.js."""
TIMEOUT: Final = 10.0
"""Seconds to wait for an answer."""
BUFFER: Final = 1024
"""Events kept for a reader that is slower than its channel; the oldest go first, and are counted."""
CLOSE_TIMEOUT: Final = 1.0
"""Seconds for the server to answer our close frame."""
BACKOFF_FIRST: Final = 0.05
BACKOFF_MAX: Final = 5.0
"""Seconds before a reconnection: doubled from the first to the longest, each with up to 20 % of jitter."""
REJOIN_DELAYS: Final = (1.0, 2.0, 5.0, 10.0)
"""Seconds before a channel is joined again after an error, as in phoenix.js; the last one repeats."""


class Event(NamedTuple):
    """One message of a channel."""

    name: str
    payload: Any
    """The decoded JSON, or bytes if the message was binary."""
    binary: bool = False


class Token(NamedTuple):
    """What ``POST /token`` answers."""

    channel: str
    id: str
    token: str


@attrs.define(eq=False)
class _Waiter:
    """Somebody waits for the reply with one ref."""

    event: trio.Event = attrs.Factory(trio.Event)
    reply: Mapping[str, Any] | None = None


class Channel:
    """One topic. Iterate over it for its events; the iteration ends when the channel is closed for good."""

    def __init__(self, socket: ClientSocket, topic: str, payload: Callable[[], Mapping[str, Any]]) -> None:
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
        self._changed = trio.Condition()
        self._early_diffs: list[Mapping[str, Any]] | None = []
        self._news = trio.Event()

    @property
    def joined(self) -> bool:
        return self._joined

    @property
    def closed(self) -> bool:
        return self._closed is not None

    async def push(self, event: str, payload: Any = None, *, timeout: float = TIMEOUT) -> Any:
        """Send, wait for the reply, and return its ``response``. Bytes are sent as they are.

        Raises Refused (the server's reason), ChannelClosed, or trio.TooSlowError. Waits while the channel is joined
        anew.
        """
        with trio.fail_after(timeout):
            await self.wait_joined()
            reply = await self._socket.call(self._message(event, payload))
        return _response(reply)

    async def push_nowait(self, event: str, payload: Any = None) -> None:
        """Send without asking for a reply. Raises ChannelClosed if there is no connection."""
        await self._socket.send(self._message(event, payload))

    def _message(self, event: str, payload: Any) -> Message:
        binary = isinstance(payload, (bytes, bytearray, memoryview))
        data = bytes(payload) if binary else codec.encode_json({} if payload is None else payload)
        return Message(self._join_ref, None, self.topic, event, data, binary)

    async def leave(self, *, timeout: float = TIMEOUT) -> None:
        """Leave for good."""
        with trio.fail_after(timeout):
            message = Message(self._join_ref, None, self.topic, LEAVE, b"{}")
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
        message = Message(ref, ref, self.topic, JOIN, codec.encode_json(self._payload()))
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

    def take(self, message: Message) -> None:
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
        **dial: Any,
    ) -> None:
        self.close_code: int | None = None
        """How the last connection ended; None while it is open."""
        self.connections = 0
        """How often it was connected."""
        self._url = url
        self._nursery = nursery
        self._reconnect = reconnect
        self._heartbeat = heartbeat
        self._rng = rng
        self._dial = dial
        self._connection: WebSocketConnection | None = None
        self._channels: dict[str, Channel] = {}
        self._rejoining: set[str] = set()
        self._waiting: dict[str, _Waiter] = {}
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
    ) -> Channel:
        """Join a topic. ``payload`` may be a function, called again at each rejoin (for a fresh token).

        Raises Refused with the server's reason, ChannelClosed, or trio.TooSlowError.
        """
        base: Mapping[str, Any] = {} if token is None else {"token": token}
        make = payload if callable(payload) else lambda: {**base, **(payload or {})}
        channel = Channel(self, topic, make)
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
        """Drop the connection; it comes back by itself unless ``reconnect`` is off."""
        if self._connection is not None:
            await self._connection.aclose()

    def next_ref(self) -> str:
        self._ref += 1
        return str(self._ref)

    async def call(self, message: Message) -> Mapping[str, Any]:
        """Send, and wait for the reply; raises ChannelClosed when the connection goes meanwhile."""
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

    async def send(self, message: Message) -> None:
        """Send one message; raises ChannelClosed."""
        from trio_websocket import ConnectionClosed

        if self._connection is None:
            raise ChannelClosed("not connected", code=self.close_code)
        try:
            await self._connection.send_message(codec.encode_client(message))
        except ConnectionClosed as error:
            raise ChannelClosed("the connection was lost", code=self.close_code) from error

    async def send_raw(self, frame: str | bytes) -> None:
        """Any frame, for tests of what a server does with it."""
        if self._connection is None:
            raise ChannelClosed("not connected", code=self.close_code)
        await self._connection.send_message(frame)

    def forget(self, channel: Channel) -> None:
        if self._channels.get(channel.topic) is channel:
            del self._channels[channel.topic]

    def rejoin(self, channel: Channel, *, at_once: bool = False) -> None:
        """Join again, after a delay that grows."""
        if channel.topic not in self._rejoining:
            self._rejoining.add(channel.topic)
            self._nursery.start_soon(self._rejoin, channel, at_once)

    async def _rejoin(self, channel: Channel, at_once: bool) -> None:
        attempt = 0
        try:
            while self._channels.get(channel.topic) is channel and not channel.joined:
                if not (at_once and attempt == 0):
                    await trio.sleep(REJOIN_DELAYS[min(attempt, len(REJOIN_DELAYS) - 1)])
                attempt += 1
                if self._connection is None:
                    return
                try:
                    await channel.join_once()
                except (Refused, trio.TooSlowError, ChannelClosed) as error:
                    log.info("rejoin failed", topic=channel.topic, cause=str(error))
        finally:
            self._rejoining.discard(channel.topic)

    # The connection.

    async def run(self, *, task_status: trio.TaskStatus[ClientSocket] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, and stay connected. The first connection must succeed: raises Refused or ChannelClosed."""
        delay = 0.0
        started = False
        while True:
            error: ChannelClosed | Refused | None = None
            try:
                async with trio.open_nursery() as nursery:
                    try:
                        connection = await self._connect(nursery)
                    except (ChannelClosed, Refused) as raised:
                        error = raised
                    else:
                        delay = 0.0
                        self._connected(connection)
                        if not started:
                            started = True
                            task_status.started(self)
                        nursery.start_soon(self._beat, connection)
                        try:
                            await self._read(connection)
                        finally:
                            with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                                await connection.aclose()
                    nursery.cancel_scope.cancel()
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
        self._connection = connection
        for channel in list(self._channels.values()):
            self.rejoin(channel, at_once=True)

    def _shown(self) -> str:
        return self._url.partition("?")[0]

    async def _connect(self, nursery: trio.Nursery) -> WebSocketConnection:
        from trio_websocket import ConnectionRejected, HandshakeError, connect_websocket_url

        try:
            with trio.fail_after(TIMEOUT):
                return await connect_websocket_url(nursery, self._url, **self._dial)
        except ConnectionRejected as error:
            body = (error.body or b"").decode(errors="replace").strip()
            raise Refused(body or f"status {error.status_code}") from error
        except (HandshakeError, OSError, trio.TooSlowError) as error:
            raise ChannelClosed(f"cannot connect to {self._shown()!r}: {error}") from error

    async def _read(self, connection: WebSocketConnection) -> None:
        from trio_websocket import ConnectionClosed

        while True:
            try:
                data = await connection.get_message()
            except ConnectionClosed as error:
                self.close_code = error.reason.code if error.reason is not None else 1006
                return
            try:
                message = codec.decode_server(TEXT if isinstance(data, str) else BINARY, data)
            except FrameError as error:
                log.warning("the server sent a frame that is no message", cause=str(error))
                continue
            self._dispatch(message)

    def _dispatch(self, message: Message) -> None:
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
                    await self.call(Message(None, None, PHOENIX, HEARTBEAT, b"{}"))
            except (trio.TooSlowError, ChannelClosed):
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


def _response(reply: Mapping[str, Any]) -> Any:
    response = reply.get("response")
    if reply.get("status") == "ok":
        return response
    reason = response.get("reason") if isinstance(response, dict) else None
    raise Refused(str(reason or response))


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
    """Connect to the server at ``url`` (http, https, ws or wss, without ``/websocket``).

    ``token`` is the connection's own (``userToken``). Raises Refused or ChannelClosed if the first attempt fails.
    """
    query = {**({} if token is None else {"userToken": token}), **(params or {}), "vsn": "2.0.0"}
    address = url.rstrip("/")
    if address.startswith("http"):
        address = "ws" + address.removeprefix("http")
    address += "/websocket?" + "&".join(
        f"{quote(name)}={quote(value, safe='')}" for name, value in query.items()
    )
    dial: dict[str, Any] = {"subprotocols": list(subprotocols) or None, "message_queue_size": 1}
    dial["extra_headers"] = [(name.encode(), value.encode()) for name, value in headers]
    dial["max_message_size"] = 64 * 1024 * 1024
    if address.startswith("wss"):
        dial["ssl_context"] = ssl_context
    error: Exception | None = None
    async with trio.open_nursery() as nursery:
        socket = ClientSocket(
            address, nursery, reconnect=reconnect, heartbeat=heartbeat, rng=rng or random.Random(), **dial
        )
        try:
            await nursery.start(socket.run)
            yield socket
        except Exception as raised:
            # Out of the nursery as it is: a group of one would hide it from the caller's except.
            error = raised
        finally:
            nursery.cancel_scope.cancel()
    if error is not None:
        raise error


async def fetch_token(
    url: str,
    channel: str,
    id: str | None = None,  # noqa: A002 - the protocol's word
    *,
    bearer: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> Token:
    """``POST /token``. Raises Refused with the server's text, or ChannelClosed if it cannot be asked."""
    body = codec.encode_json({"channel": channel} | ({} if id is None else {"id": id}))
    headers = [("content-type", "application/json")]
    if bearer is not None:
        headers.append(("authorization", f"Bearer {bearer}"))
    status, answer = await _post(url.rstrip("/") + "/token", headers, body, ssl_context)
    if status != 200:
        raise Refused(answer.decode(errors="replace").strip() or f"status {status}")
    return Token(**msgspec.json.decode(answer, type=dict[str, str]))


async def _post(
    url: str, headers: Sequence[tuple[str, str]], body: bytes, ssl_context: ssl.SSLContext | None
) -> tuple[int, bytes]:
    """One request on a connection of its own, by h11."""
    import h11

    parts = urlsplit(url)
    secure = parts.scheme in ("https", "wss")
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    machine = h11.Connection(h11.CLIENT)
    request = h11.Request(
        method="POST",
        target=parts.path,
        headers=[
            ("host", parts.netloc),
            ("content-length", str(len(body))),
            ("connection", "close"),
            *headers,
        ],
    )
    data = (machine.send(request) or b"") + (machine.send(h11.Data(data=body)) or b"")
    data += machine.send(h11.EndOfMessage()) or b""
    status, chunks = 0, []
    try:
        with trio.fail_after(TIMEOUT):
            async with await _dial(host, port, secure, ssl_context) as stream:
                await stream.send_all(data)
                while True:
                    event = machine.next_event()
                    if event is h11.NEED_DATA:
                        machine.receive_data(bytes(await stream.receive_some(65536)))
                    elif isinstance(event, h11.Response):
                        status = event.status_code
                    elif isinstance(event, h11.Data):
                        chunks.append(bytes(event.data))
                    elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
                        return status, b"".join(chunks)
    except (OSError, trio.TooSlowError, trio.BrokenResourceError, h11.RemoteProtocolError) as error:
        raise ChannelClosed(f"cannot ask {url!r}: {error}") from error


async def _dial(host: str, port: int, secure: bool, ssl_context: ssl.SSLContext | None) -> trio.abc.Stream:
    if secure:
        return await trio.open_ssl_over_tcp_stream(host, port, ssl_context=ssl_context)
    return await trio.open_tcp_stream(host, port)
