"""One HTTP request that another node answers.

1. The task of the client's connection does everything: it reads the client's body, writes to the node, reads
   the answer and sends it. Backpressure is therefore that of the two sockets.
2. A small body is read first and kept, so that it can be sent again. Of a large one no byte is read from the
   client before the node has asked for it (``Expect: 100-continue``), so that a refusal costs nothing.
3. A client that leaves closes the connection to the node, whose application notices as it would notice a
   client. The client is watched only while an answer takes long: most answers come at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import trio

from tangram.asgi import Message, RawHeaders, Receive, Scope, Send
from tangram.http.engine import ClientGone
from tangram.http.forward.heads import (
    CHUNKED,
    UNKNOWN,
    AnswerHead,
    BadHead,
    answer_fields,
    declared_length,
    encode_head,
    refusal_of,
    signed_text,
)
from tangram.http.forward.keys import NodeSession
from tangram.http.forward.pool import NodeConnection, NodeUnreachable, Peer, Pool
from tangram.http.forward.rules import SendFailure
from tangram.routing import ResponseAborted

__all__ = ["REPLAY_BYTES", "ForwardedRequest"]

REPLAY_BYTES: Final = 65536
"""Bytes of a body that is kept until the answer begins."""

QUICK: Final = 0.05
"""Seconds of silence of the node after which the client is watched, too."""

_FAILURES: Final = {
    b"moved": SendFailure.MOVED,
    b"seen": SendFailure.SEEN,
    b"session": SendFailure.FORGOTTEN,
}


class ForwardedRequest:
    """A request, and everything that several attempts to forward it share.

    Args:
        pool: the connections.
        scope: the request.
        receive: returns the client's events.
        send: sends to the client.
        head: method, target and the fields to pass on, the envelope among them.
        more: fields of the answer in addition to those of the node.
        on_answer: called when the node's answer begins.
    """

    def __init__(
        self,
        pool: Pool,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        head: tuple[bytes, bytes, RawHeaders],
        more: RawHeaders,
        on_answer: Callable[[], None] = lambda: None,
    ) -> None:
        self._pool = pool
        self.scope = scope
        self.receive = receive
        self.send = send
        self._head = head
        self.more = more
        self.on_answer = on_answer
        self._session: NodeSession | None = None
        self._number = 0
        self._signed = b""
        self.whole: bytes | None = b""
        """The body, if it is kept."""
        self.first: Message | None = None
        """The first part of a body whose end is not known."""
        self.length = 0
        self._prepared = False
        self.body_read = True
        self.at_hand = True
        """Whether the request can be sent again."""
        self.refused_by = ""

    async def attempt(self, peer: Peer, *, same: bool = False) -> SendFailure | None:
        """Send the request to a node, and the answer to the client; return None if that was done.

        Args:
            peer: the node.
            same: use the number and the session of the last attempt.

        Raises:
            ClientGone: the client has left.
            ResponseAborted: the answer broke off after its beginning.
            BadHead: the request cannot be passed on.
        """
        if not self._prepared:
            await self._prepare()
        try:
            if not same or self._session is None:
                self._session = await self._pool.session(peer)
                self._number = self._session.next_number()
            connection = await self._pool.take(peer, new=same)
        except NodeUnreachable as error:
            self.refused_by = str(error)
            return SendFailure.NOT_SENT
        head = encode_head(self._signed, self._session.seal(self._number, self._signed))
        done = False
        try:
            attempt = _Attempt(self, connection)
            failure = await attempt.run(head)
            done = attempt.reusable
        finally:
            if done:
                self._pool.give_back(connection)
            else:
                self._pool.discard(connection)
        if failure is SendFailure.FORGOTTEN:
            self._pool.forget_session(peer.id, self._session)
        return failure

    def receive_again(self) -> Receive:
        """Return a ``receive`` that begins with the parts of the body that were read."""
        kept: list[Message] = []
        if self.first is not None:
            kept.append(self.first)
        elif self.whole:
            kept.append({"type": "http.request", "body": self.whole, "more_body": False})

        async def receive() -> Message:
            if kept:
                await trio.lowlevel.checkpoint()
                return kept.pop()
            return await self.receive()

        return receive

    async def _prepare(self) -> None:
        """Read a small body, and decide how the others are sent."""
        method, target, fields = self._head
        length = declared_length(self.scope)
        asks = any(name == b"expect" for name, _ in self.scope["headers"])
        if length == UNKNOWN:
            self.first = await self._next_part()
            if self.first.get("more_body", False):
                length = CHUNKED
            else:
                self.whole = self.first.get("body", b"")
                length, self.first = len(self.whole), None
        elif 0 < length <= REPLAY_BYTES and not asks:
            self.whole = await self._read_whole(length)
        elif length:
            self.whole = None
        if self.first is not None:
            self.whole = None
        framing: RawHeaders = []
        if length == CHUNKED:
            framing = [(b"transfer-encoding", b"chunked")]
        elif length or method in {b"POST", b"PUT", b"PATCH"}:
            framing = [(b"content-length", b"%d" % length)]
        if self.whole is None:
            framing.append((b"expect", b"100-continue"))
            self.body_read = False
        self.length = length
        self._signed = signed_text(method, target, [*fields, *framing])
        self._prepared = True

    async def _read_whole(self, length: int) -> bytes:
        parts: list[bytes] = []
        while True:
            message = await self._next_part()
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        body = b"".join(parts)
        if len(body) != length:
            raise BadHead("the body is not as long as its content-length")
        return body

    async def _next_part(self) -> Message:
        message = await self.receive()
        if message["type"] != "http.request":
            raise ClientGone("the client has gone")
        return message


@attrs.define(eq=False)
class _Attempt:
    """One attempt, on one connection."""

    request: ForwardedRequest
    connection: NodeConnection
    reusable: bool = False
    """Whether the connection stands between two answers now."""
    _client_left: bool = False
    _begun: bool = False
    """Whether the client has received a part of the answer."""

    async def run(self, head: bytes) -> SendFailure | None:
        """Send the request and relay the answer; see `ForwardedRequest.attempt`."""
        request, connection = self.request, self.connection
        try:
            await connection.write(head + request.whole if request.whole else head)
            answer = await self._read_head()
            if answer.status != 100:
                return await self._finish(answer)
            request.at_hand = False
            return await self._relay_with_body()
        except EOFError:
            return self._lost("the node closed the connection")
        except (OSError, BadHead) as error:
            if isinstance(error, ClientGone):
                raise
            return self._lost(str(error) or type(error).__name__)

    def _lost(self, cause: str) -> SendFailure:
        """Return the failure of a lost connection; raise where the client has seen a part."""
        if self._client_left:
            raise ClientGone("the client has gone")
        if self._begun:
            raise ResponseAborted(f"the answer of node {self.connection.node!r} broke off: {cause}")
        self.request.refused_by = cause
        return SendFailure.UNANSWERED

    async def _read_head(self) -> AnswerHead:
        to_head = self.request.scope["method"] == "HEAD"
        return await self.connection.read_head(self._read, to_head=to_head)

    async def _finish(self, answer: AnswerHead) -> SendFailure | None:
        """Send an answer to the client, unless it is a refusal for this node."""
        refusal = refusal_of(answer)
        if refusal is not None:
            failure = _FAILURES.get(refusal)
            # The receiver takes this field from answers of applications, so that only it can send one.
            self.reusable = await self._skip(answer) and not answer.close and self.request.whole is not None
            if failure is not None:
                return failure
            self.request.refused_by = f"it answered {answer.status} {refusal!r}"
            return SendFailure.UNANSWERED
        await self._relay(answer)
        self.reusable = not answer.close and self.request.whole is not None
        return None

    async def _skip(self, answer: AnswerHead) -> bool:
        _, self.connection.buffer = answer.body.feed(self.connection.buffer)
        return answer.body.done

    async def _relay(self, answer: AnswerHead) -> None:
        """Send head and body to the client."""
        connection, send, body = self.connection, self.request.send, answer.body
        start = {
            "type": "http.response.start",
            "status": answer.status,
            "headers": [*answer_fields(answer), *self.request.more],
        }
        self._begun = True
        self.request.on_answer()
        await send(start)
        if body.done:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        while True:
            part, connection.buffer = body.feed(connection.buffer)
            if part or body.done:
                await send({"type": "http.response.body", "body": part, "more_body": not body.done})
            if body.done:
                return
            if body.more:
                await trio.lowlevel.checkpoint()
                continue
            data = await self._read()
            if not data:
                raise EOFError
            connection.buffer += data

    async def _relay_with_body(self) -> SendFailure | None:
        """Send the client's body while the answer is awaited and relayed."""
        failure: SendFailure | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump)
            try:
                failure = await self._finish(await self._read_head())
            except (EOFError, OSError, BadHead) as error:
                # Handled outside, where no group is around it.
                if isinstance(error, ClientGone):
                    self._client_left = True
                failure = SendFailure.UNANSWERED
                self.request.refused_by = str(error) or "the node closed the connection"
            nursery.cancel_scope.cancel()
        self.reusable = False
        if self._client_left:
            raise ClientGone("the client has gone")
        if failure is not None and self._begun:
            raise ResponseAborted(f"the answer of node {self.connection.node!r} broke off")
        return failure

    async def _pump(self) -> None:
        """Pass the client's body on; then watch the client."""
        request, connection = self.request, self.connection
        chunked, left = request.length == CHUNKED, request.length
        message, request.first = request.first, None
        try:
            while True:
                if message is None:
                    message = await request.receive()
                if message["type"] != "http.request":
                    self._client_left = True
                    connection.close()
                    return
                part, more = message.get("body", b""), message.get("more_body", False)
                message = None
                left -= len(part)
                if not chunked and (left < 0 or (left and not more)):
                    connection.close()  # the body is not as long as its length
                    return
                if chunked:
                    part = (b"%x\r\n%b\r\n" % (len(part), part) if part else b"") + (
                        b"" if more else b"0\r\n\r\n"
                    )
                await connection.write(part)
                if not more:
                    break
        except ClientGone:
            self._client_left = True
            connection.close()
            return
        except OSError:
            return  # the answer, or its absence, says why
        await self._watch()

    async def _read(self) -> bytes:
        """Return the next bytes of the answer; watch the client where they take long."""
        connection = self.connection
        try:
            return connection.sock.recv(65536)
        except BlockingIOError:
            pass
        if not self.request.body_read:
            return await connection.read()  # the pump watches
        with trio.move_on_after(QUICK):
            return await connection.read()
        data = b""
        failure: OSError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            try:
                data = await connection.read()
            except OSError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return data

    async def _watch(self) -> None:
        """Close the connection to the node when the client has left."""
        await _until_gone(self.request.receive)
        self._client_left = True
        self.connection.close()


def _chunk(part: bytes, *, more: bool) -> bytes:
    data = b"%x\r\n%b\r\n" % (len(part), part) if part else b""
    return data if more else data + b"0\r\n\r\n"


async def _until_gone(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        await trio.lowlevel.checkpoint()
