"""``?node=ID`` and ``?node=all``: requests of the operator that other nodes answer.

These are reads, and restarts of plugins.

1. Token and session are checked on the first node, which tells the others the result; it shows them no token.
2. A node that does not answer within `ANSWER_TIME` is reported in its place. Of streams one node is named.
3. A restart that names no node is for the node that runs the plugin, if it runs on one node at a time.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal, Protocol
from urllib.parse import parse_qsl, urlencode

import msgspec
import trio

from tangram.asgi import Fields, Message, Receive, Scope, Send, send_json
from tangram.console.access import OperatorAccess
from tangram.http.forward.heads import timing_field
from tangram.http.forward.receiver import FORWARDED
from tangram.routing import HTTPException, Request

__all__ = ["NodeReads", "OtherNodes"]

ANSWER_TIME: Final = 2.0
"""Seconds for a node to begin its answer, and to end it where all nodes are asked."""

RESTART_TIME: Final = 110.0
"""Seconds for the restart of a plugin, less than ``tangram restart`` waits."""

MAX_ANSWER: Final = 16 * 1024 * 1024
"""Bytes of the answer of one node where all are asked."""

_LOCAL: Final = frozenset({"/-/", "/-/session"})
"""The console's page and its login: they belong to the connection of the browser."""

_RESTART: Final = re.compile(r"/-/plugins/([^/]+)/restart")

Right = Literal["", "read", "token"]


class NodeId(Protocol):
    """A node."""

    @property
    def id(self) -> str:
        """Its id."""


class OtherNodes(Protocol):
    """The nodes of the cluster."""

    me: str

    def holder(self, plugin: str) -> NodeId | None:
        """Return the node that runs a plugin of which one runs at a time; None for others."""

    def alive(self) -> Mapping[str, object]:
        """Return the nodes that are alive by their ids, this one included."""

    async def ask(self, node: str, scope: Scope, receive: Receive, send: Send, *, right: Right) -> str | None:
        """Let a node answer a request for itself; return the cause if it does not."""


class NodeReads:
    """Sends reads of the operator, and restarts of plugins, to other nodes.

    Args:
        nodes: the nodes.
        access: checks token and session.
        serve: answers a request on this node.
    """

    def __init__(
        self,
        nodes: OtherNodes,
        access: OperatorAccess,
        serve: Callable[[Scope, Receive, Send], Awaitable[None]],
    ) -> None:
        self._nodes = nodes
        self._access = access
        self._serve = serve
        self._field = timing_field(nodes.me)

    def wanted(self, scope: Scope) -> str | None:
        """Return the node that a request names, or None if it is for this node."""
        path: str = scope["path"]
        if not path.startswith("/-/") or path in _LOCAL or path.startswith("/-/static/"):
            return None
        if FORWARDED in scope:
            return None
        node = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("node")
        if scope["method"] == "POST":
            restart = _RESTART.fullmatch(path)
            if restart is None:
                return None
            if node is None and (holder := self._nodes.holder(restart[1])) is not None:
                node = holder.id
        elif scope["method"] not in {"GET", "HEAD"}:
            return None
        return None if node == self._nodes.me else node

    def named(self, scope: Scope, fields: Fields) -> Fields:
        """Return the fields of this node's own answer, with its name."""
        return fields if FORWARDED in scope else (*fields, self._field)

    async def answer(self, node: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a read or a restart with the answer of a node, or of all."""
        try:
            right = self._right(Request(scope, receive, path_params={}, max_body=0))
        except HTTPException as error:
            headers = [(name.encode(), value.encode()) for name, value in (error.headers or {}).items()]
            await send_json(scope, send, error.status_code, {"detail": error.detail}, headers=headers)
            return
        # The other node gets the result of the check, and never the token.
        kept = [field for field in scope["headers"] if field[0] not in {b"authorization", b"cookie"}]
        inner = {**scope, "headers": kept, "query_string": _without_node(scope["query_string"])}
        if node == "all":
            await self._answer_all(scope, inner, send, right)
        elif node in self._nodes.alive():
            await self._answer_one(node, inner, receive, send, right)
        else:
            detail = f"no node is called {node!r}: expected 'all' or one of {', '.join(self._nodes.alive())}"
            await send_json(scope, send, 404, {"detail": detail})

    def _right(self, request: Request) -> Right:
        if self._access.has_token(request):
            return "token"
        return "read" if self._access.may_read(request) else ""

    async def _answer_one(self, node: str, scope: Scope, receive: Receive, send: Send, right: Right) -> None:
        within = _answer_time(scope)
        cause: str | None = f"node {node!r} has not answered within {within:g} s"
        with trio.move_on_after(within) as wait:

            async def begun(message: Message) -> None:
                wait.deadline = float("inf")  # a stream has no end
                await send(message)

            cause = await self._nodes.ask(node, scope, receive, begun, right=right)
        if cause is not None:
            await send_json(scope, send, 504, {"detail": cause})

    async def _answer_all(self, scope: Scope, inner: Scope, send: Send, right: Right) -> None:
        found: dict[str, object] = dict.fromkeys(self._nodes.alive())
        own, inner = ({**one, "method": _with_content(one)} for one in (scope, inner))

        async def ask(node: str) -> None:
            found[node] = await self._collect(node, own, inner, right)

        async with trio.open_nursery() as nursery:
            for node in found:
                nursery.start_soon(ask, node)
        await send_json(scope, send, 200, found, headers=[(b"cache-control", b"no-store")])

    async def _collect(self, node: str, scope: Scope, inner: Scope, right: Right) -> object:
        """Return the content of one node's answer, or an object that says why there is none."""
        content = _Collected()
        within = _answer_time(scope)
        cause: str | None = f"no answer within {within:g} s"
        with trio.move_on_after(within):
            if node == self._nodes.me:
                # With the client's own fields, so that its rights are checked again.
                own = {**scope, "query_string": inner["query_string"]}
                cause = None
                await self._serve(own, _forever, content.take)
            else:
                cause = await self._nodes.ask(node, dict(inner), _forever, content.take, right=right)
        return {"error": cause} if cause is not None and not content.endless else content.value()


class _Collected:
    """The answer of one node."""

    def __init__(self) -> None:
        self._type = b""
        self._body = b""
        self._whole = False
        self._error = "it answers without an end: name one node"
        self.endless = False
        """Whether the answer is a stream."""

    async def take(self, message: Message) -> None:
        """Take a part of the answer: ASGI's ``send``."""
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            headers = {name.lower(): value for name, value in message.get("headers", ())}
            self._type = headers.get(b"content-type", b"")
            self._whole = b"content-length" in headers
            return
        if not self._whole:
            self.endless = True
            await trio.sleep_forever()  # the time of the node ends it
        self._body += message.get("body", b"")
        if len(self._body) > MAX_ANSWER:
            self._whole, self._error = False, f"its answer has more than {MAX_ANSWER} bytes"
            self._body = b""

    def value(self) -> object:
        """Return JSON as it is, and another content as text."""
        if not self._whole:
            return {"error": self._error}
        if self._type.startswith(b"application/json"):
            return msgspec.Raw(self._body)
        return self._body.decode(errors="replace")


def _answer_time(scope: Scope) -> float:
    return RESTART_TIME if scope["method"] == "POST" else ANSWER_TIME


def _with_content(scope: Scope) -> str:
    """Return the method with which each of all nodes is asked: answers to HEAD would be empty."""
    return "POST" if scope["method"] == "POST" else "GET"


def _without_node(query: bytes) -> bytes:
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return urlencode([pair for pair in pairs if pair[0] != "node"]).encode()


async def _forever() -> Message:
    await trio.sleep_forever()
    raise AssertionError
