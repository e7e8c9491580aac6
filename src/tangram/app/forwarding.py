"""The way of an incarnation to the other nodes, and its engine on the internal listener.

The engine is the native one in every case. A server that is not one of several has neither.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from tangram.app.tree import Tree
from tangram.http.forward.pool import Pool

if TYPE_CHECKING:
    from tangram.http.forward.forwarder import Forwarder
    from tangram.web.site import Site

__all__ = ["open_forwarder", "serve_internal"]

HEAD_ROOM: Final = 8192
"""Bytes by which a forwarded head may be larger than a client's."""
FIELD_ROOM: Final = 16
"""Fields that a forwarded head may have in addition."""


@asynccontextmanager
async def open_forwarder(tree: Tree) -> AsyncIterator[Forwarder | None]:
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
        )
    finally:
        end()
        pool.close()


async def serve_internal(tree: Tree, site: Site, *, task_status: trio.TaskStatus[object]) -> None:
    """Answer requests of other nodes until cancelled; then drain as the web does."""
    from tangram.http.forward.receiver import Receiver
    from tangram.http.native import serve_native

    assert tree.nodes is not None
    config = tree.config
    receiver = Receiver(tree.nodes.me, tree.secrets.jwt, site.serve_forwarded)
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
