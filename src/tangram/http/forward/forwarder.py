"""The way of a request for a plugin that runs on one node at a time.

``rules`` decides; this class asks for the facts, carries the steps out, and waits. A request waits as long as
for a plugin that restarts, and then gets 503: in a planned move the plugin is back much earlier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol

import structlog
import trio

from tangram.asgi import ROOT, RawHeaders, Receive, Scope, Send, send_json
from tangram.http.forward.exchange import ForwardedRequest
from tangram.http.forward.heads import (
    BadHead,
    Envelope,
    encode_envelope,
    pair,
    request_fields,
    target_of,
    timing_field,
)
from tangram.http.forward.in_flight import InFlight
from tangram.http.forward.pool import Peer, Pool
from tangram.http.forward.receiver import FORWARDED, refuse_moved
from tangram.http.forward.rules import (
    IDEMPOTENT,
    Facts,
    Retry,
    SendFailure,
    Step,
    next_step,
    retry_after,
)
from tangram.http.forward.websocket import ForwardedWebSocket
from tangram.log_limit import LogLimit

__all__ = ["PUSH", "WAIT", "Forwarder", "Placing"]

log = structlog.get_logger("tangram.http")

WAIT: Final = 2.0
"""Seconds that a request waits for a node that runs its plugin: as for a plugin that restarts."""

FIRST_RETRY: Final = 0.02
"""Seconds until a node is tried again that has refused a request or was not reached: it may be starting.

A change of the placement is awaited, and not looked for.
"""

LAST_RETRY: Final = 0.16
"""The longest of these pauses: each is twice the one before."""

MAX_ATTEMPTS: Final = 200
"""Attempts to send one request: a bound for two nodes that disagree about the holder."""


PUSH: Final = "tangram.push"
"""Key of the scope for the digest of a declared push."""

ASK_ATTEMPTS: Final = 2
"""Attempts to send a read to a node: its session may be unknown there after a restart."""


class Placing(Protocol):
    """The part of the placement that is read here."""

    def holder(self, plugin: str) -> Peer | None:
        """Return the node that runs a plugin."""


class Forwarder:
    """Sends requests of placed plugins to their nodes.

    Args:
        me: the id of this node.
        placement: knows the holders.
        pool: the connections to the other nodes.
        running: returns whether a plugin runs here and takes requests.
        placed: returns whether a plugin runs on one node at a time.
        alive: returns the nodes that are alive by their ids.
        in_flight: counts the requests that plugins answer here, and wakes those that wait.
        results: counts requests and WebSockets by result: ``answered`` by another node, ``failed`` with 502,
            ``unavailable`` with 503.
    """

    def __init__(
        self,
        me: str,
        placement: Placing,
        pool: Pool,
        *,
        running: Callable[[str], bool],
        placed: Callable[[str], bool],
        alive: Callable[[], Mapping[str, Peer]] = dict,
        in_flight: InFlight | None = None,
        results: Counter[str] | None = None,
    ) -> None:
        self.me = me
        self.pool = pool
        self.placed = placed
        self.alive = alive
        self._placement = placement
        self._running = running
        self._in_flight = in_flight or InFlight()
        self.answering = self._in_flight.answering
        self.wait_news = self._in_flight.wait_news
        self._log_limit = LogLimit()
        self.results: Counter[str] = Counter() if results is None else results

    def runs_here(self, plugin: str) -> bool:
        """Return whether a plugin runs here and takes requests."""
        return self._running(plugin) and self._in_flight.takes(plugin)

    async def forward(self, plugin: str, scope: Scope, receive: Receive, send: Send) -> Receive | None:
        """Answer a request, or serve a WebSocket, of a placed plugin that does not run here.

        Returns:
            None if that was done; else the ``receive`` with which it is to be served here, because the plugin
            runs here by now.
        """
        return await _Way(self, plugin, scope, receive, send).go()

    async def ask(
        self,
        node: str,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        right: Literal["", "read", "token"],
    ) -> str | None:
        """Let a node answer a request for itself, as its operator's routes have them.

        Args:
            node: the id of the node.
            scope: a request without a body.
            receive: returns the client's events.
            send: sends to the client.
            right: the right of the operator that this node has found.

        Returns:
            None if it has answered, else the cause.
        """
        peer = self.alive().get(node)
        if peer is None:
            return f"node {node!r} has left"
        head, more = self.head_of(scope, Envelope(node=self.me, right=right), node)
        request = ForwardedRequest(self.pool, scope, receive, send, head=head, more=more)
        failure: SendFailure | None = SendFailure.NOT_SENT
        try:
            for _ in range(ASK_ATTEMPTS):
                failure = await request.attempt(peer)
                if failure is None:
                    return None
        except BadHead as error:
            return str(error)
        return request.refused_by or f"node {node!r} does not answer"

    def head_of(
        self, scope: Scope, envelope: Envelope, node: str
    ) -> tuple[tuple[bytes, bytes, RawHeaders], RawHeaders]:
        """Return the head of a forwarded request, and the further fields of its answer."""
        fields, has_host = request_fields(scope)
        if not has_host:
            fields.append((b"host", b"tangram"))
        full = Envelope(
            node=envelope.node,
            plugin=envelope.plugin,
            right=envelope.right,
            scheme=scope.get("scheme", "http"),
            version=scope.get("http_version", "1.1"),
            client=pair(scope.get("client")),
            peer=pair(scope.get("tangram.peer")),
            server=scope.get("server"),
            root=scope.get(ROOT, ""),
            hostless=not has_host,
            push=envelope.push,
        )
        fields.append(encode_envelope(full))
        method = scope.get("method", "GET").encode()
        return (method, target_of(scope, full.root), fields), [timing_field(node)]

    def facts(self, plugin: str, *, forwarded: bool, deadline: float, avoid: str) -> Facts:
        """Return the facts about a plugin now."""
        peer = self._placement.holder(plugin)
        where: Literal["here", "elsewhere", "none"] = "none"
        if peer is not None:
            where = "here" if peer.id == self.me else "elsewhere"
        return Facts(
            running=self.runs_here(plugin),
            holder=where,
            reachable=peer is not None and peer.address is not None and peer.id != avoid,
            forwarded=forwarded,
            in_time=trio.current_time() < deadline,
        )

    def holder(self, plugin: str) -> Peer | None:
        """Return the node that runs a plugin."""
        return self._placement.holder(plugin)

    def note_failure(self, plugin: str, node: str, cause: str) -> None:
        """Log that a node does not answer, once a minute for each node."""
        if self._log_limit.allows("node", node, trio.current_time()):
            log.warning("node does not answer", node=node, plugin=plugin, cause=cause)


class _Way:
    """The way of one request."""

    def __init__(self, forwarder: Forwarder, plugin: str, scope: Scope, receive: Receive, send: Send) -> None:
        self._forwarder = forwarder
        self._plugin = plugin
        self._scope = scope
        self._receive = receive
        self._send = send
        self._deadline = trio.current_time() + WAIT
        self._attempts = 0
        self._unanswered = 0
        self._repeated = False
        self._avoid = ""
        self._pause = FIRST_RETRY
        self._request: ForwardedRequest | ForwardedWebSocket | None = None

    async def go(self) -> Receive | None:
        """Carry out one step after the other; see `Forwarder.forward`."""
        while True:
            match self._next_step():
                case Step.SERVE:
                    return self._receive if self._request is None else self._request.receive_again()
                case Step.REFUSE:
                    await refuse_moved(self._scope)
                    return None
                case Step.GIVE_UP:
                    self._forwarder.results["unavailable"] += 1
                    await self._answer(503, f"plugin {self._plugin!r} runs on no node that answers")
                    return None
                case Step.WAIT:
                    await self._wait()
                case Step.FORWARD:
                    if await self._forward():
                        return None

    async def _wait(self) -> None:
        """Wait until the plugin may run elsewhere, or until its node is to be tried again."""
        until = self._deadline
        if self._avoid:
            until = min(until, trio.current_time() + self._pause)
            self._pause = min(2 * self._pause, LAST_RETRY)
        await self._forwarder.wait_news(until)
        self._avoid = ""

    def _next_step(self) -> Step:
        facts = self._forwarder.facts(
            self._plugin,
            forwarded=FORWARDED in self._scope,
            deadline=self._deadline,
            avoid=self._avoid,
        )
        if self._attempts >= MAX_ATTEMPTS:
            return Step.GIVE_UP
        return next_step(facts)

    async def _forward(self) -> bool:
        """Try the holder; return whether the request was answered."""
        forwarder = self._forwarder
        peer = forwarder.holder(self._plugin)
        if peer is None:
            return False
        request = self._request = self._request or self._make_request(peer)
        self._attempts += 1
        try:
            failure = await request.attempt(peer)
            while failure is not None:
                self._unanswered += failure is SendFailure.UNANSWERED
                match self._decide(failure, request):
                    case Retry.SAME:
                        self._attempts += 1
                        failure = await request.attempt(peer, same=True)
                    case Retry.ANEW:
                        self._note_retry(peer, failure, request)
                        return False
                    case Retry.NEVER:
                        forwarder.results["failed"] += 1
                        forwarder.note_failure(self._plugin, peer.id, request.refused_by)
                        await self._answer(502, f"node {peer.id!r} ended before it answered")
                        return True
        except BadHead as error:
            await self._answer(400, str(error))
            return True
        return True

    def _count_answered(self) -> None:
        self._forwarder.results["answered"] += 1

    def _decide(self, failure: SendFailure, request: ForwardedRequest | ForwardedWebSocket) -> Retry:
        is_websocket = self._scope["type"] == "websocket"
        return retry_after(
            failure,
            # A handshake changes nothing, so it is sent anew and not again.
            unanswered=2 if is_websocket and self._unanswered else self._unanswered,
            at_hand=request.at_hand,
            idempotent=is_websocket or self._scope["method"] in IDEMPOTENT,
            repeated=self._repeated,
        )

    def _note_retry(
        self, peer: Peer, failure: SendFailure, request: ForwardedRequest | ForwardedWebSocket
    ) -> None:
        if self._unanswered:
            self._repeated = True
            self._unanswered = 0
        if failure is SendFailure.NOT_SENT:
            self._forwarder.note_failure(self._plugin, peer.id, request.refused_by)
        # The holder is asked again after a pause, in which the placement may change.
        again = failure is SendFailure.FORGOTTEN and self._attempts == 1
        self._avoid = "" if again else peer.id

    def _make_request(self, peer: Peer) -> ForwardedRequest | ForwardedWebSocket:
        forwarder = self._forwarder
        envelope = Envelope(node=forwarder.me, plugin=self._plugin, push=self._scope.get(PUSH, ""))
        head, more = forwarder.head_of(self._scope, envelope, peer.id)
        parts = (forwarder.pool, self._scope, self._receive, self._send)
        if self._scope["type"] == "websocket":
            return ForwardedWebSocket(*parts, head=head, more=more, on_answer=self._count_answered)
        return ForwardedRequest(*parts, head=head, more=more, on_answer=self._count_answered)

    async def _answer(self, status: int, detail: str) -> None:
        scope, send = self._scope, self._send
        headers: RawHeaders = [(b"retry-after", b"1")] if status == 503 else []
        if scope["type"] == "http":
            await send_json(scope, send, status, {"detail": detail}, headers=headers)
            return
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1012})
            return
        await send(
            {
                "type": "websocket.http.response.start",
                "status": status,
                "headers": [*headers, (b"content-length", b"0")],
            }
        )
        await send({"type": "websocket.http.response.body", "body": b""})
