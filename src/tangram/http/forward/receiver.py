"""The application of the internal listener: requests of other nodes, and nothing else.

1. A request without a proof is answered with 403 and without a body, before anything of it is read.
2. The scope of a proven request is that of the client's own request: address, scheme, host and version. The
   site answers it as if the client had sent it here, and never forwards it again.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import structlog
import trio

from tangram.asgi import Fields, Message, RawHeaders, Receive, Scope, Send
from tangram.http.forward.heads import (
    ENVELOPE,
    GREETING,
    NOT_REFUSED,
    PROOF,
    REFUSED,
    BadHead,
    Envelope,
    open_envelope,
    signed_text,
    target_of,
    without_internal,
)
from tangram.http.forward.keys import NONCE_BYTES, Keyring, SessionTable, Verdict
from tangram.log_limit import LogLimit

__all__ = ["FORWARDED", "Receiver", "refuse_moved"]

log = structlog.get_logger("tangram.http")

FORWARDED: Final = "tangram.forwarded"
"""Key of the scope for the `Envelope` of a request that another node has forwarded."""


_REFUSE: Final = "tangram.refuse"
"""Key of the scope for the engine's own ``send``."""


class Receiver:
    """Checks requests of other nodes, and hands them to the site.

    Args:
        me: the id of this node.
        secret: ``[channel] jwt_secret``.
        serve: answers a proven request.
        new_name: returns random bytes, the name of a new session.
    """

    def __init__(
        self,
        me: str,
        secret: str,
        serve: Callable[[Scope, Receive, Send], Awaitable[None]],
        new_name: Callable[[], bytes] = lambda: os.urandom(NONCE_BYTES),
    ) -> None:
        self._sessions = SessionTable(Keyring(secret), me)
        self._serve = serve
        self._new_name = new_name
        self._log_limit = LogLimit()
        self.refused = 0
        """Requests without a valid proof."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or WebSocket: ASGI."""
        greeting = _only(scope, GREETING)
        if greeting is not None and scope["type"] == "http":
            await self._greet(greeting, scope, send)
            return
        proof, text = _only(scope, PROOF), _only(scope, ENVELOPE)
        if proof is None or text is None:
            await self._forbid(scope, send, "it has no proof")
            return
        method = scope.get("method", "GET").encode()
        verdict = self._sessions.check(proof, signed_text(method, target_of(scope), scope["headers"]))
        if verdict is Verdict.SEEN:
            await _refuse(scope, send, b"seen")
            return
        if verdict is not Verdict.ACCEPTED:
            await self._forbid(scope, send, verdict.value)
            return
        try:
            inner = restored(scope, open_envelope(text))
        except BadHead as error:
            await self._forbid(scope, send, str(error))
            return
        # For a refusal, which the layers between the site and this class must not change.
        inner[_REFUSE] = send
        await self._serve(inner, receive, _cleaned(send))

    def client_of(self, scope: Scope) -> Scope:
        """Return the scope with the client of the first node, for the log of the engine alone."""
        text = _only(scope, ENVELOPE)
        try:
            envelope = None if text is None else open_envelope(text)
        except BadHead:
            envelope = None
        if envelope is None or _only(scope, PROOF) is None:
            return scope
        return {**scope, "client": envelope.client}

    async def _greet(self, greeting: bytes, scope: Scope, send: Send) -> None:
        answer = self._sessions.open(greeting, self._new_name())
        if answer is None:
            await self._forbid(scope, send, "its greeting is no proof: do the nodes share jwt_secret?")
            return
        await send({"type": "http.response.start", "status": 204, "headers": [(GREETING, answer)]})
        await send({"type": "http.response.body", "body": b""})

    async def _forbid(self, scope: Scope, send: Send, reason: str) -> None:
        self.refused += 1
        address = str((scope.get("client") or ("",))[0])
        if self._log_limit.allows("internal", address, trio.current_time()):
            log.warning("request on the internal listener refused", address=address, reason=reason)
        await _answer(scope, send, 403, [])


def restored(scope: Scope, envelope: Envelope) -> Scope:
    """Return the scope of the client's own request."""
    headers = without_internal(scope["headers"])
    if envelope.hostless:
        headers = [field for field in headers if field[0] != b"host"]
    found = {
        **scope,
        "headers": headers,
        "scheme": envelope.scheme,
        "client": envelope.client,
        "server": envelope.server,
        "http_version": envelope.version,
        FORWARDED: envelope,
    }
    if envelope.peer is not None:
        found["tangram.peer"] = envelope.peer
    return found


async def refuse_moved(scope: Scope) -> None:
    """Report to the node that has forwarded a request that the plugin is not here."""
    await _refuse(scope, scope[_REFUSE], b"moved")


async def _refuse(scope: Scope, send: Send, why: bytes) -> None:
    await _answer(scope, send, 421, [(REFUSED, why)])


async def _answer(scope: Scope, send: Send, status: int, headers: RawHeaders) -> None:
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    headers = [*headers, (b"content-length", b"0")]
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": b""})


class _cleaned:  # noqa: N801 - a function with an attribute
    """A ``send`` that tells answers of applications from refusals of the listener.

    It removes the field of a refusal, and marks a 403: without the mark it is the listener's, which says
    nothing more to a program that has no proof.
    """

    def __init__(self, send: Send) -> None:
        self.send = send
        whole = getattr(send, "answer", None)
        if whole is not None:
            self.answer = partial(_answer_whole, whole)

    @property
    def status(self) -> int:
        """The status of the answer, which the engine's ``send`` knows."""
        return getattr(self.send, "status", 0)

    async def __call__(self, message: Message) -> None:
        status = message.get("status")
        if status is not None:
            headers = [field for field in message.get("headers", ()) if field[0].lower() != REFUSED]
            if status == 403:
                headers.append(NOT_REFUSED)
            message = {**message, "headers": headers}
        await self.send(message)


def _answer_whole(
    whole: Callable[[int, Fields, bytes], Awaitable[None]], status: int, fields: Fields, body: bytes
) -> Awaitable[None]:
    # The fields are those of the route table, none of which is between nodes.
    return whole(status, (*fields, NOT_REFUSED) if status == 403 else fields, body)


def _only(scope: Scope, name: bytes) -> bytes | None:
    values = [value for known, value in scope["headers"] if known == name]
    return values[0] if len(values) == 1 else None
