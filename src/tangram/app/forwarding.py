"""The way of an incarnation to the other nodes, and its engine on the internal listener.

The engine is the native one in every case. A server that is not one of several has neither.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Container, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import trio

from tangram.app.absence import refusal_of
from tangram.app.incarnation import Incarnation
from tangram.app.measuring import Measuring
from tangram.asgi import Receive, Scope, Send
from tangram.channels.disconnects import Disconnect
from tangram.cluster import Nodes, Placement
from tangram.config import Config
from tangram.declared.relay import RelayedPush, RelayPool, Reply, handle_relayed
from tangram.http.forward.in_flight import InFlight
from tangram.http.forward.pool import Pool
from tangram.http.listeners import HeldSocket
from tangram.supervision import Child
from tangram.web.operator import ServerControl

if TYPE_CHECKING:
    from tangram.http.forward.forwarder import Forwarder

__all__ = ["internal_children", "open_forwarder", "start_relays"]

HEAD_ROOM: Final = 8192
"""Bytes by which a forwarded head may be larger than a client's."""
FIELD_ROOM: Final = 16
"""Fields that a forwarded head may have in addition."""
SENDER_ROOM: Final = 1024 * 1024
"""Bytes by which a forwarded push may be larger than two messages, one of which has the sender's token."""


class SharedSecret(Protocol):
    """The attribute of `Secrets` that is read here."""

    @property
    def jwt(self) -> str: ...


class ForwardingTree(Protocol):
    """The attributes of `Tree` that are read here."""

    config: Config
    nodes: Nodes | None
    placement: Placement
    in_flight: InFlight
    internal: Sequence[HeldSocket]
    measuring: Measuring
    operator: ServerControl | None

    @property
    def secrets(self) -> SharedSecret: ...
    @property
    def quarantined(self) -> Container[str]: ...
    def grace(self, config: Config) -> float: ...
    def close_reason(self) -> Disconnect: ...


@asynccontextmanager
async def open_forwarder(tree: ForwardingTree) -> AsyncIterator[Forwarder | None]:
    """Connect an incarnation's site to the other nodes; close the connections at the end."""
    nodes = tree.nodes
    if nodes is None or tree.operator is None:
        yield None
        return
    from tangram.http.forward.forwarder import Forwarder

    pool = Pool(nodes.me, tree.secrets.jwt)
    unavailable = tree.operator.unavailable
    end = nodes.on_gone(lambda record: pool.drop(record.id))
    try:
        yield Forwarder(
            nodes.me,
            tree.placement,
            pool,
            running=lambda plugin: plugin not in unavailable(),
            placed=tree.placement.is_placed,
            alive=nodes.alive,
            in_flight=tree.in_flight,
            results=tree.measuring.forwards,
        )
    finally:
        end()
        pool.close()


async def start_relays(
    tree: ForwardingTree, incarnation: Incarnation, forwarder: Forwarder | None, nursery: trio.Nursery
) -> None:
    """Start a way to the other nodes for the declared pushes of each plugin."""
    if forwarder is None:
        return
    from tangram.http.forward.pushes import PushForwarder

    incarnation.is_mine = tree.placement.is_mine
    sender = PushForwarder(forwarder, partial(_handle_push, tree, incarnation), partial(refusal_of, tree))
    for plugin in incarnation.hosts:
        relay = RelayPool(plugin, sender.send)
        await nursery.start(relay.run)
        incarnation.relays[plugin] = relay


async def _handle_push(tree: ForwardingTree, incarnation: Incarnation, push: RelayedPush) -> Reply | None:
    """Let the handlers of this node answer a push; a plugin that is moved away takes no more."""
    if not tree.in_flight.takes(push.plugin):
        return None
    channels = incarnation.channels
    declared = None if channels is None else channels.declared
    found = None if declared is None else declared.find(push.topic, push.event)
    with tree.in_flight.answering(push.plugin):
        return await handle_relayed(incarnation.push_pool(push.plugin), found, push)


def internal_children(tree: ForwardingTree, incarnation: Incarnation, *, stop_timeout: float) -> list[Child]:
    """Return the child that answers requests of other nodes, where there may be any."""
    if not tree.internal:
        return []
    start = tree.config.supervisor.start_timeout
    run = partial(serve_internal, tree, incarnation)
    return [Child("internal", run, start_timeout=start, stop_timeout=stop_timeout)]


async def serve_internal(
    tree: ForwardingTree, incarnation: Incarnation, *, task_status: trio.TaskStatus[object]
) -> None:
    """Answer requests of other nodes until cancelled; then drain as the web does.

    This child starts before the plugins and ends after them: while the web is not up, other nodes learn at
    once that they have to look elsewhere, and no request waits in a socket that nothing accepts on.
    """
    from tangram.http.forward.pushes import PushReceiver
    from tangram.http.forward.receiver import Receiver, refuse_moved
    from tangram.http.native import serve_native

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        site = incarnation.site
        if site is None:
            await refuse_moved(scope)
        else:
            await site.serve_forwarded(scope, receive, send)

    assert tree.nodes is not None
    config = tree.config
    handle = partial(_handle_push, tree, incarnation)
    max_body = 2 * config.channel.max_message + SENDER_ROOM
    receiver = Receiver(tree.nodes.me, tree.secrets.jwt, PushReceiver(handle, serve, max_body=max_body))
    settings = attrs.evolve(
        config.server,
        max_header_bytes=config.server.max_header_bytes + HEAD_ROOM,
        max_headers=config.server.max_headers + FIELD_ROOM,
    )
    await serve_native(
        receiver,
        tree.internal,
        settings,
        grace=partial(tree.grace, config),
        close_code=lambda: tree.close_reason().code,
        forwarded=receiver.client_of,
        # The first node has checked the length; nothing is said to a program that is no node.
        body_limit=lambda _: 0,
        is_proxy=lambda _: True,
        ping_interval=config.channel.ping_interval,
        max_message=config.channel.max_message,
        task_status=task_status,
    )
