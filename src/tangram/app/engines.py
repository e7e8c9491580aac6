"""The web child: this incarnation's site, behind the engine that the configuration names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import trio

from tangram.app.tree import Tree
from tangram.web.cache import CacheRoutes
from tangram.web.site import Site, build_site

if TYPE_CHECKING:
    from quart import Quart

__all__ = ["serve_site"]


async def serve_site(tree: Tree, *, task_status: trio.TaskStatus[Site] = trio.TASK_STATUS_IGNORED) -> None:
    """Build the site and serve it on the held sockets until cancelled; then drain as the reason of
    the stop allows.
    """
    async with trio.open_nursery() as nursery:
        cache = await _open_cache(tree, nursery)
        native = tree.config.server.effective_engine == "native"
        # The native engine takes channels itself; behind Hypercorn they are a route of the Quart application.
        hooks = [] if native else [_mount_channels(tree)]
        site = build_site(tree.site_parts(cache=cache, quart_hooks=hooks))
        tree.web_failures = dict(site.failures)
        await nursery.start(_serve_native if native else _serve_hypercorn, tree, site)
        task_status.started(site)


async def _open_cache(tree: Tree, nursery: trio.Nursery) -> CacheRoutes | None:
    entries = tree.config.cache.entries
    if not entries:
        return None
    state = tree.state
    assert state is not None
    source = tree.config.source
    cache = CacheRoutes(
        entries,
        lambda: state.http_client,
        folder=tree.cache_folder,
        base=source.parent if source is not None else None,
    )
    await nursery.start(cache.run)
    return cache


async def _serve_native(tree: Tree, site: Site, *, task_status: trio.TaskStatus[object]) -> None:
    from tangram.http.native import serve_native

    channel = tree.config.channel
    await serve_native(
        site,
        tree.held,
        tree.config.server,
        grace=partial(tree.grace, tree.config),
        close_code=lambda: tree.close_reason().code,
        # What the engine hands to the channels itself has not passed the site.
        forwarded=site.addresses.forwarded,
        channels=lambda: tree.channels,
        compression=channel.compression,
        ping_interval=channel.ping_interval,
        max_message=channel.max_message,
        outer_nursery=tree.outer_nursery,
        keep_adopted=tree.keep_adopted,
        task_status=task_status,
    )


async def _serve_hypercorn(tree: Tree, site: Site, *, task_status: trio.TaskStatus[object]) -> None:
    from tangram.http.hypercorn.server import serve_hypercorn

    server = tree.config.server
    await serve_hypercorn(
        site,
        tree.held,
        server,
        grace=partial(tree.grace, tree.config),
        close_code=lambda: tree.close_reason().code,
        certfile=str(server.tls_cert) if server.tls_cert else None,
        keyfile=str(server.tls_key) if server.tls_key else None,
        max_message=tree.config.channel.max_message,
        ping_interval=tree.config.channel.ping_interval,
        body_limit=site.body_limit,
        task_status=task_status,
    )


def _mount_channels(tree: Tree) -> Callable[[Quart], None]:
    def mount(app: Quart) -> None:
        from tangram.http.hypercorn.channels import websocket_blueprint

        app.register_blueprint(websocket_blueprint(lambda: tree.channels))

    return mount
