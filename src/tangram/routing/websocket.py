"""WebSocket routes: the connection of a handler, and the endpoint that runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final, Self

from tangram.asgi import Message, Receive, Scope, Send
from tangram.errors import RouteError
from tangram.groups import unwrap_single
from tangram.routing.binding import Overrides, Plan, compile_route
from tangram.routing.calls import Call, Threads
from tangram.routing.connection import HTTPConnection
from tangram.routing.exceptions import WebSocketDisconnect
from tangram.routing.request import decode_any
from tangram.routing.responses import encode_json
from tangram.routing.router import Mount, Route
from tangram.routing.shortage import refusal_of

__all__ = ["SocketEndpoint", "WebSocket"]

POLICY: Final = 1008
"""Close code for a refusal (RFC 6455, section 7.4.1)."""

INTERNAL: Final = 1011
"""Close code for a failure of the handler."""

MAX_REASON: Final = 123
"""Bytes of the reason in a close frame."""


class WebSocket(HTTPConnection):
    """One WebSocket, as its handler sees it.

    Example::

        @router.websocket("/echo")
        async def echo(websocket: WebSocket) -> None:
            await websocket.accept()
            async for message in websocket:
                await websocket.send(message)
    """

    __slots__ = ("_receive", "_send", "accepted", "closed")

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, path_params: Mapping[str, str]) -> None:
        super().__init__(scope, path_params=path_params)
        self._receive = receive
        self._send = send
        self.accepted = False
        """The handshake is complete."""
        self.closed = False
        """One of the two sides has closed."""

    @property
    def subprotocols(self) -> list[str]:
        """The subprotocols that the client offers."""
        return list(self.scope.get("subprotocols", ()))

    async def accept(
        self, subprotocol: str | None = None, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        """Complete the handshake.

        Args:
            subprotocol: one of ``subprotocols``.
            headers: further headers of the answer.
        """
        await self._receive()  # websocket.connect
        await self._deliver({"type": "websocket.accept", "subprotocol": subprotocol, "headers": [*headers]})
        self.accepted = True

    async def receive(self) -> str | bytes:
        """Wait for the next message of the client: text or bytes.

        Raises:
            WebSocketDisconnect: the client has closed the connection, or has gone.
        """
        if not self.accepted:
            raise RuntimeError("accept() the WebSocket before the first receive")
        if self.closed:
            raise WebSocketDisconnect(1006)
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self.closed = True
            raise WebSocketDisconnect(message.get("code", 1005), message.get("reason") or "")
        text: str | None = message.get("text")
        return text if text is not None else bytes(message["bytes"])

    async def receive_text(self) -> str:
        """Wait for the next message as text; bytes are decoded as UTF-8, with replacements."""
        message = await self.receive()
        return message if isinstance(message, str) else message.decode(errors="replace")

    async def receive_bytes(self) -> bytes:
        """Wait for the next message as bytes; text is encoded as UTF-8."""
        message = await self.receive()
        return message.encode() if isinstance(message, str) else message

    async def receive_json(self) -> Any:
        """Wait for the next message and decode it from JSON.

        Raises:
            InvalidRequest: the message is not valid JSON. If the handler does not catch it, the WebSocket is
                closed with 1008.
        """
        return await decode_any(await self.receive_bytes())

    def __aiter__(self) -> Self:
        """Iterate over the messages until the client closes the connection."""
        return self

    async def __anext__(self) -> str | bytes:
        try:
            return await self.receive()
        except WebSocketDisconnect:
            raise StopAsyncIteration from None

    async def send(self, data: str | bytes) -> None:
        """Send a message of text or bytes.

        Raises:
            WebSocketDisconnect: the client has gone.
        """
        if isinstance(data, str):
            await self._deliver({"type": "websocket.send", "text": data})
        else:
            await self._deliver({"type": "websocket.send", "bytes": bytes(data)})

    send_text = send
    send_bytes = send

    async def send_json(self, value: object) -> None:
        """Send a value as a text message of JSON."""
        await self.send(encode_json(value).decode())

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection; before ``accept`` the handshake is refused with 403."""
        if not self.closed:
            self.closed = True
            await self._deliver({"type": "websocket.close", "code": code, "reason": _short(reason)})

    async def refuse(self, status: int, content: object) -> None:
        """Answer the handshake with a status and JSON in place of ``accept``."""
        self.closed = True
        body = encode_json(content)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await self._deliver({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await self._deliver({"type": "websocket.http.response.body", "body": body})

    async def _deliver(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:
            self.closed = True
            raise WebSocketDisconnect(1006) from None


def _short(reason: str) -> str:
    return reason.encode()[:MAX_REASON].decode(errors="ignore")


class SocketEndpoint:
    """A compiled WebSocket route.

    Raises:
        RouteError: the handler's signature cannot be bound, or the handler is not async.
    """

    __slots__ = ("mount", "names", "plan", "route")

    def __init__(
        self, mount: Mount, route: Route, injectable: frozenset[type], overrides: Overrides | None = None
    ) -> None:
        self.mount = mount
        self.route = route
        self.names = route.template.names
        self.plan: Plan = compile_route(route, injectable, overrides, connection=WebSocket)
        if self.plan.how != "async":
            raise RouteError("expected an async function: a WebSocket cannot be served in a thread")
        for part in self.plan.everything():
            if part.body:
                raise RouteError(f"parameter {part.body[0].name!r} needs a body, which a WebSocket has not")

    @property
    def owner(self) -> str:
        """The name of the plugin that declared the route."""
        return self.mount.owner

    async def serve(  # noqa: PLR0917 - the three of ASGI and the connection's data
        self,
        values: tuple[str, ...],
        scope: Scope,
        receive: Receive,
        send: Send,
        threads: Threads,
        report: Callable[[Exception], str],
    ) -> None:
        """Run the handler, close the WebSocket at its end, and answer its failure.

        Args:
            values: the path parameters, in the order of ``names``.
            scope: ASGI's scope of the WebSocket.
            receive: ASGI's ``receive``.
            send: ASGI's ``send``.
            threads: runs sync dependencies.
            report: logs a failure of the handler, and returns its id.
        """
        socket = WebSocket(scope, receive, send, path_params=dict(zip(self.names, values, strict=True)))
        try:
            async with AsyncExitStack() as stack:
                await Call(socket, stack, self.mount.resolve, threads).run(self.plan)
            await socket.close()
        except Exception as error:  # noqa: BLE001 - a failure ends its own WebSocket only
            await _fail(socket, error, report)


async def _fail(socket: WebSocket, error: Exception, report: Callable[[Exception], str]) -> None:
    cause = unwrap_single(error)
    if isinstance(cause, WebSocketDisconnect):
        return
    refusal = refusal_of(cause)
    status: int
    content: dict[str, object]
    if refusal is None:
        status, content = 500, {"detail": "internal error", "id": report(error)}
    else:
        status, content = refusal.status_code, {"detail": refusal.detail}
    try:
        if not socket.accepted and not socket.closed:
            await socket.refuse(status, content)
        elif status == 500:
            await socket.close(INTERNAL, "internal error")
        else:
            await socket.close(POLICY, str(cause))
    except WebSocketDisconnect:
        return
