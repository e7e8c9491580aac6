"""The child ``web``: the site of one incarnation, behind the configured engine."""

from __future__ import annotations

from functools import partial

import trio

from tangram.app.forwarding import open_forwarder, start_relays
from tangram.app.incarnation import Incarnation
from tangram.app.node_parts import has_successors
from tangram.app.tree import Tree
from tangram.http.closing import CLOSE_EACH, MOVE_EACH, Closing
from tangram.web.cache import CacheRoutes
from tangram.web.site import Site, build_site

__all__ = ["closing_of", "serve_site"]


async def serve_site(
    tree: Tree, incarnation: Incarnation, *, task_status: trio.TaskStatus[Site] = trio.TASK_STATUS_IGNORED
) -> None:
    """Build the site of an incarnation and serve it on the held sockets until cancelled.

    After the cancellation requests in flight get the seconds that `Tree.grace` allows.
    """
    async with open_forwarder(tree) as elsewhere, trio.open_nursery() as nursery:
        cache = await _open_cache(tree, incarnation, nursery)
        native = tree.config.server.effective_engine == "native"
        site = build_site(tree.site_parts(incarnation, cache=cache, elsewhere=elsewhere))
        incarnation.site = site
        await start_relays(tree, incarnation, elsewhere, nursery)
        serve = partial(_serve_native if native else _serve_hypercorn, incarnation)
        try:
            await nursery.start(serve, tree, site)
            task_status.started(site)
            await trio.sleep_forever()
        finally:
            incarnation.site = None
            incarnation.relays = {}


async def _open_cache(tree: Tree, incarnation: Incarnation, nursery: trio.Nursery) -> CacheRoutes | None:
    entries = tree.config.cache.entries
    if not entries:
        return None
    state = incarnation.state
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


def closing_of(tree: Tree, incarnation: Incarnation) -> Closing:
    """Return how WebSockets are closed when this incarnation's engine ends."""

    async def settle() -> None:
        if not tree.keep_adopted() and incarnation.channels is not None:
            await incarnation.channels.wait_settled()

    def each() -> float:
        return MOVE_EACH if is_moving() else CLOSE_EACH

    def away() -> int:
        return incarnation.channels.away if incarnation.channels is not None and is_moving() else 0

    def is_moving() -> bool:
        return not tree.keep_adopted() and has_successors(tree, workers_stop=tree.takes_waiting())

    return Closing(settle, each, away, tree.last_request_time)


async def _serve_native(
    incarnation: Incarnation, tree: Tree, site: Site, *, task_status: trio.TaskStatus[object]
) -> None:
    from tangram.http.native import serve_native

    channel = tree.config.channel
    await serve_native(
        site,
        tree.held,
        tree.config.server,
        grace=partial(tree.grace, tree.config),
        close_code=lambda: tree.close_reason().code,
        # Requests that the engine hands to the channels itself have not passed the site.
        forwarded=site.addresses.forwarded,
        channels=lambda: incarnation.channels,
        root_path=tree.config.server.root_path,
        body_limit=site.body_limit,
        error_headers=site.error_headers,
        is_proxy=site.addresses.trusts,
        compression=channel.compression,
        ping_interval=channel.ping_interval,
        max_message=channel.max_message,
        outer_nursery=tree.outer_nursery,
        keep_adopted=tree.keep_adopted,
        takes_waiting=tree.takes_waiting,
        closing=closing_of(tree, incarnation),
        task_status=task_status,
    )


async def _serve_hypercorn(
    incarnation: Incarnation, tree: Tree, site: Site, *, task_status: trio.TaskStatus[object]
) -> None:
    from tangram.http.hypercorn.channels import with_channels
    from tangram.http.hypercorn.server import serve_hypercorn

    server = tree.config.server
    await serve_hypercorn(
        with_channels(
            site,
            lambda: incarnation.channels,
            forwarded=site.addresses.forwarded,
            root_path=server.root_path,
        ),
        tree.held,
        server,
        grace=partial(tree.grace, tree.config),
        close_code=lambda: tree.close_reason().code,
        takes_waiting=tree.takes_waiting,
        closing=closing_of(tree, incarnation),
        certfile=str(server.tls_cert) if server.tls_cert else None,
        keyfile=str(server.tls_key) if server.tls_key else None,
        max_message=tree.config.channel.max_message,
        ping_interval=tree.config.channel.ping_interval,
        body_limit=site.body_limit,
        error_headers=site.error_headers,
        is_proxy=site.addresses.trusts,
        forwarded=site.addresses.forwarded,
        task_status=task_status,
    )
