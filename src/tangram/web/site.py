"""The site: one ASGI application for all HTTP requests and the WebSockets of plugins.

    Host -> addresses -> CORS -> native routes (operator, core, plugins)
         -> files (start page, docs, front ends) -> Quart (blueprints) -> 404

Requests to native routes do not pass through Quart. Each incarnation builds a site of its own. Most requests
have no header that concerns addresses or CORS: one look at the names lets them pass both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from time import perf_counter
from typing import Any, Final, NamedTuple, Protocol

import attrs
import structlog

from tangram.asgi import (
    ASGIApp,
    Fields,
    RawHeaders,
    Receive,
    Scope,
    Send,
    enter_root,
    full_scope,
    headers_of,
    send_json,
)
from tangram.channels.disconnects import ORIGIN, UNAVAILABLE, Party, Refusal
from tangram.channels.origins import OriginPolicy
from tangram.cluster.placement import under_lease
from tangram.config.model import Config
from tangram.console.access import OperatorAccess
from tangram.metrics.requests import RequestTimes
from tangram.plugin_exit import exit_as_crash
from tangram.plugins.registry import LoadedPlugin
from tangram.plugins.state import BackendState
from tangram.routing import APIRouter, HTTPException, Mount, Request, Response, RouteTable, openapi
from tangram.routing.responses import encode_json
from tangram.routing.table import MATCHES
from tangram.version import VERSION
from tangram.web import docs
from tangram.web.addresses import REPLACING, Addresses
from tangram.web.cache import CacheRoutes
from tangram.web.cors import METHODS, PLAIN, PREFLIGHT, Allowed, Cors, may_open, refuse_websocket, sending
from tangram.web.files import StaticFolder
from tangram.web.frontends import PREFIX, Frontends, find_frontends
from tangram.web.manifest import Manifest
from tangram.web.node_reads import NodeReads, OtherNodes
from tangram.web.openapi_merge import merge_openapi
from tangram.web.operator import ServerControl, operator_router
from tangram.web.plugin_sockets import bind_to_plugin, serve_plugin_socket
from tangram.web.proxies import SIGNS, ProxyHint
from tangram.web.sends import StatusSend, with_status, without_body
from tangram.web.settings_validation import validate_settings
from tangram.web.shell import PAGES, shell_folder

__all__ = ["OWNER", "AppMount", "Site", "SiteParts", "build_site"]

log = structlog.get_logger("tangram.web")

OWNER: Final = "tangram"
"""The owner of the server's own routes; no plugin can have this name."""

HOST: Final = Refusal("host not served, see [server] hosts", 421, Party.POLICY, retry=False)
"""The answer to WebSocket handshakes under a name that is not this server's."""

MAX_KNOWN_HOSTS: Final = 256
"""Values of ``Host`` whose check is remembered: clients may send any number of them."""

_LOOKED_AT: Final = PREFLIGHT | REPLACING | SIGNS | {b"host"}
"""Header fields that the layers in front of the routes read, apart from ``Host`` each in few requests."""

_FILES: Final = (
    (PREFIX, f"{PREFIX}{{file}}"),
    ("/docs/", "/docs/{file}"),
    ("/static/", "/static/{file}"),
)
"""Prefixes of paths that files answer, and the routes under which their requests are counted."""

_APP: Final = "tangram.app"
"""Key of the scope for the application of a plugin that answers its request, with the site that found it."""


class _Host(NamedTuple):
    """A value of ``Host`` that was checked."""

    ours: bool
    """The server answers to it."""
    named: bool
    """It is a configured name: see ``Addresses.is_named``."""


@attrs.frozen(kw_only=True, eq=False)
class SiteParts:
    """The parts from which a site is built."""

    config: Config
    control: ServerControl
    operator_token: str
    state: Callable[[], BackendState]
    """Returns the state of this incarnation; called when a request needs it."""
    plugins: Sequence[LoadedPlugin] = ()
    """In the order of matching, and of the manifest."""
    routers: Sequence[APIRouter] = ()
    """Further routes of the server: ``POST /token``."""
    apps: Sequence[AppMount] = ()
    """ASGI applications of plugins that do not use ``APIRouter``."""
    mounts: Sequence[Mount] = ()
    """Further routes, each with an owner and a resolver."""
    cache: CacheRoutes | None = None
    """The routes of ``[[cache.entries]]``; their ``run`` must run beside the site."""
    access: OperatorAccess | None = None
    """The check of the operator's requests, over all incarnations; ``None`` makes one of the token."""
    request_times: RequestTimes = attrs.field(factory=RequestTimes)
    """Takes the duration of each request."""
    elsewhere: Elsewhere | None = None
    """Sends requests for plugins that run on another node there; None on a server that is not one of several.
    """
    allowed: Allowed | None = None
    """Whether pages of an origin may read answers and open WebSockets.

    ``None`` follows ``[server] hosts`` and ``[server] allowed_origins``.
    """


class AppMount(Protocol):
    """An ASGI application of one plugin, beside the native routes."""

    owner: str
    """The name of the plugin."""
    problems: list[str]
    """Routes that are not served, each with its cause."""

    def match(self, scope: Scope) -> bool | None:
        """Return ``True`` if the application answers this request.

        ``False`` means that it has the path for other methods only, ``None`` that it does not have the path.
        """

    def body_limit(self, scope: Scope) -> int:
        """Return the largest body in bytes of a request that it answers; 0 is no limit."""

    def openapi(self) -> Mapping[str, Any]:
        """Return the OpenAPI document of the application's routes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class Elsewhere(OtherNodes, Protocol):
    """The way to the other nodes, and to plugins that run on one node at a time."""

    def placed(self, plugin: str) -> bool:
        """Return whether a plugin runs on one node at a time."""

    def runs_here(self, plugin: str) -> bool:
        """Return whether a placed plugin runs here and takes requests."""

    def answering(self, plugin: str) -> AbstractContextManager[None]:
        """Return a block in which a request of a placed plugin is answered here."""

    async def forward(self, plugin: str, scope: Scope, receive: Receive, send: Send) -> Receive | None:
        """Answer a request for a plugin that does not run here, by the node that runs it.

        Returns:
            None if it was answered; else the ``receive`` with which it is to be served here after all.
        """


def build_site(parts: SiteParts) -> Site:
    """Build the site of one incarnation; parts of plugins that fail are in ``Site.failures``."""
    return Site(parts)


class Site:
    """The ASGI application for ``http``, ``websocket`` (blueprints) and an empty ``lifespan``."""

    def __init__(self, parts: SiteParts) -> None:
        self._control = parts.control
        self.addresses = Addresses.of(parts.config)
        self._root = parts.config.server.root_path
        self._known_hosts: dict[tuple[object, ...], _Host] = {}
        self._proxy_hint = ProxyHint()
        # Looked up once: a process without descriptors could not look again.
        docs_files = docs.docs_folder()
        self._docs_page = docs.docs_page(docs_files)
        self._docs = StaticFolder(docs_files, only=docs.DOCS_FILES) if docs_files is not None else None
        self._pages = StaticFolder(PAGES)
        self._shell = shell_folder(parts.config.server.frontend)
        self._access = parts.access or OperatorAccess(parts.operator_token, self._root)
        self._use(parts)
        self._allowed: Allowed = parts.allowed or self._policy().allows
        self._outer = Cors(self._http, self._allowed)
        self._observe = parts.request_times.observe
        self._node_reads = (
            None
            if parts.elsewhere is None
            else NodeReads(parts.elsewhere, self._access, partial(self._search, fields=PLAIN))
        )

    def _use(self, parts: SiteParts) -> None:
        """Build everything that belongs to plugins."""
        self._parts = parts
        self.frontends: Frontends = find_frontends(parts.plugins)
        self.manifest = Manifest(parts.config, self.frontends)
        self.table = RouteTable(
            self._mounts(), injectable=[BackendState], max_body=parts.config.server.max_body
        )
        self.failures: dict[str, str] = dict(self.manifest.failures)
        """Causes by name of the plugins of which some part is not served."""
        for problem in self.table.problems:
            self.failures.setdefault(problem.plugin or OWNER, str(problem))
        self._apps = list(parts.apps)
        for app in self._apps:
            for cause in app.problems:
                self.failures.setdefault(app.owner, cause)
        self._blueprint_owner: Callable[[Scope], str] = lambda _: ""
        self._quart = self._build_quart()
        self._openapi: bytes | None = None

    def replace_plugins(self, plugins: Sequence[LoadedPlugin], apps: Sequence[AppMount]) -> None:
        """Serve other versions of the plugins from the next request on.

        Requests in flight end as they began. ``failures`` is made anew.
        """
        self._use(attrs.evolve(self._parts, plugins=plugins, apps=apps))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        noting = with_status(send)
        began = perf_counter()
        if self._root and scope["type"] in {"http", "websocket"}:
            enter_root(scope, self._root)
        try:
            match scope["type"]:
                case "http" if self._is_plain(scope):
                    await self._http(scope, receive, noting, PLAIN)
                case "http" if self._is_for_us(scope):
                    scope = self.addresses.forwarded(scope)
                    await self._outer(scope, receive, noting)
                case "http":
                    await _refuse_host(scope, noting)
                case "websocket" if self._is_for_us(scope):
                    await self._websocket(self.addresses.forwarded(scope), receive, send)
                case "websocket":
                    await refuse_websocket(send, HOST)
                case "lifespan":
                    await _lifespan(receive, send)
                case other:
                    raise NotImplementedError(f"scope type {other!r} is not served here")
        except (SystemExit, BaseExceptionGroup) as error:
            crash = exit_as_crash(error)
            if crash is error:
                raise
            raise crash from error
        finally:
            self._note(scope, noting, perf_counter() - began)

    def _note(self, scope: Scope, send: StatusSend, seconds: float) -> None:
        """Count a request that was answered."""
        if scope["type"] == "http":
            # The engine answers with 500 for an application that has sent nothing.
            self._observe(scope["method"], _route_of(scope), send.status or 500, scope["scheme"], seconds)

    async def serve_forwarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request or WebSocket that another node has forwarded.

        That node has checked host and origin, and adds the fields for other origins.
        """
        noting = with_status(send)
        began = perf_counter()
        enter_root(scope, self._root)
        try:
            if scope["type"] == "websocket":
                await self._websocket(scope, receive, send)
            else:
                await self._http(scope, receive, noting, PLAIN)
        except (SystemExit, BaseExceptionGroup) as error:
            crash = exit_as_crash(error)
            if crash is error:
                raise
            raise crash from error
        finally:
            self._note(scope, noting, perf_counter() - began)

    def body_limit(self, scope: Scope) -> int:
        """Return the largest body in bytes that a request may have; 0 is no limit.

        Engines call it before they read the body. It depends on the route: see ``max_body`` of a route.
        """
        enter_root(scope, self._root)
        app = self._app_for(scope) if self._apps else None
        return (self.table if app is None else app).body_limit(scope)

    def error_headers(self, scope: Scope) -> RawHeaders:
        """Return the headers of an answer that an engine gives in the site's place.

        They let a page of an allowed origin read why its request was refused.
        """
        enter_root(scope, self._root)
        return self._outer.headers(self.addresses.forwarded(scope))

    def openapi(self) -> bytes:
        """Return ``/openapi.json``; made at the first call and kept."""
        if self._openapi is None:
            document = merge_openapi(openapi([self.table], title="tangram", version=VERSION), self._apps)
            if self._root:
                document["servers"] = [{"url": self._root}]
            self._openapi = encode_json(document)
        return self._openapi

    def _is_plain(self, scope: Scope) -> bool:
        """Return whether the ``Host`` is known, and the other layers have nothing to do."""
        host = None
        for name, value in scope["headers"]:  # names are lower-case in ASGI
            if name in _LOOKED_AT:
                if name != b"host" or host is not None:
                    return False
                host = value
        server = scope.get("server")
        known = self._known_hosts.get((host, server and server[0]))
        if known is None or not known.ours:
            return False
        return not (self._proxy_hint.active and (known.named or scope.get("http_version") == "1.0"))

    def _is_for_us(self, scope: Scope) -> bool:
        """Return whether the server answers to the ``Host`` of a request; some results are kept."""
        host = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value if host is None else b"%b,%b" % (host, value)  # two are refused
        server = scope.get("server")
        key = (host, server and server[0])
        known = self._known_hosts.get(key)
        if known is None:
            if len(self._known_hosts) >= MAX_KNOWN_HOSTS:
                self._known_hosts.clear()
            known = _Host(self.addresses.answers(scope), self.addresses.is_named(scope))
            self._known_hosts[key] = known
        if self._proxy_hint.active:
            self._proxy_hint.examine(scope, self.addresses.may_be_proxy, own_name=known.named)
        return known.ours

    def _http(self, scope: Scope, receive: Receive, send: Send, fields: Fields) -> Awaitable[None]:
        """Answer a request for this server; ``fields`` are added to the answer."""
        if self._node_reads is not None and scope["path"].startswith("/-/"):
            node = self._node_reads.wanted(scope)
            if node is not None:
                return self._node_reads.answer(node, scope, receive, sending(send, fields))
            fields = self._node_reads.named(scope, fields)
        if not self._apps and scope["path"] not in {"", "*"} and not self._control.unavailable():
            found = self.table.locate(scope)
            if found is not None and found.value is not None and not self._is_placed(found.value.owner):
                # The most frequent case of all costs no coroutine of the site's.
                return self.table.run(found.value, found.values, scope, receive, send, fields)
        return self._search(scope, receive, send, fields)

    async def _search(self, scope: Scope, receive: Receive, send: Send, fields: Fields) -> None:
        """Find the part that answers a request, and let it answer unless its plugin is down."""
        if scope["path"] == "*" and scope["method"] == "OPTIONS":
            # RFC 9110, section 9.3.7: a question about the server as a whole, often a mere ping.
            await send_json(scope, sending(send, fields), 204, None, headers=[(b"allow", METHODS)])
            return
        if not scope["path"]:
            query = scope["query_string"]
            target = f"{self._root}/".encode() + (b"?" + query if query else b"")
            await send_json(scope, send, 307, None, headers=[(b"location", target)])
            return
        down = self._control.unavailable()
        app = self._app_for(scope) if self._apps else None
        owner = self._owner_of(app, scope) if down or self._parts.elsewhere is not None else ""
        if owner and not self._answers_now(owner, down):
            served = await self._wait_owner(owner, scope, receive, sending(send, fields))
            if served is None:
                return
            receive = served
        if owner and self._is_placed(owner):
            assert self._parts.elsewhere is not None
            with self._parts.elsewhere.answering(owner):
                await under_lease(owner, self._answer_found, app, scope, receive, send, fields)
        else:
            await self._answer_found(app, scope, receive, send, fields)

    async def _answer_found(
        self, app: AppMount | None, scope: Scope, receive: Receive, send: Send, fields: Fields
    ) -> None:
        """Answer by a plugin's application, a native route, a file or Quart."""
        if app is None:
            if not await self.table.handle(scope, receive, send, fields):
                await self._beside_routes(scope, receive, sending(send, fields))
            return
        send = sending(send, fields)
        if scope["method"] == "HEAD" and not app.match(scope):
            # FastAPI's routes for GET do not answer HEAD by themselves.
            scope, send = {**scope, "method": "GET"}, without_body(send)
        await app(full_scope(scope), receive, send)

    def _answers_now(self, owner: str, down: Mapping[str, str]) -> bool:
        """Return whether the owner of a route takes a request without a wait, and on this node."""
        elsewhere = self._parts.elsewhere
        if elsewhere is not None and elsewhere.placed(owner):
            return elsewhere.runs_here(owner)
        return owner not in down

    def _is_placed(self, owner: str) -> bool:
        return self._parts.elsewhere is not None and self._parts.elsewhere.placed(owner)

    def _owner_of(self, app: AppMount | None, scope: Scope) -> str:
        """Return the owner of the route of a request; empty for none, and for blueprints."""
        if app is not None:
            return app.owner
        found = self.table.locate(scope)
        return found.value.owner if found is not None and found.value is not None else ""

    async def _beside_routes(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer by a file or Quart."""
        if await self._file(scope, receive, send):
            return
        await self._blueprint(self._quart, full_scope(scope), scope, receive, send)

    async def _blueprint(self, app: ASGIApp, full: Scope, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer by Quart, where plugins wait for themselves, or let another node answer."""
        elsewhere = self._parts.elsewhere
        owner = "" if elsewhere is None else self._blueprint_owner(scope)
        if elsewhere is None or not elsewhere.placed(owner):
            await app(full, receive, send)
            return
        served: Receive | None = receive
        if not elsewhere.runs_here(owner):
            served = await elsewhere.forward(owner, scope, receive, send)
        if served is None:
            return
        if scope["type"] == "websocket":
            await app(full, served, send)
            return
        with elsewhere.answering(owner):
            await app(full, served, send)

    def _app_for(self, scope: Scope) -> AppMount | None:
        """Return the plugin's application that answers this request, or ``None``.

        The answer is kept in the scope, so each request is matched once.
        """
        kept: tuple[Site, AppMount | None] | None = scope.get(_APP)
        if kept is None or kept[0] is not self:
            kept = scope[_APP] = (self, self._find_app(scope))
        return kept[1]

    def _find_app(self, scope: Scope) -> AppMount | None:
        """Search the native routes first, then the applications in the order of the plugins."""
        found = self.table.locate(scope)
        if found is not None and found.value is not None:
            return None
        other: AppMount | None = None
        for app in self._apps:
            answers = app.match(scope)
            if answers:
                return app
            if answers is False and other is None:
                other = app
        if scope["method"] == "HEAD":
            as_get = {**scope, "method": "GET"}
            other = next((app for app in self._apps if app.match(as_get)), other)
        if other is not None or found is not None:
            return other
        # As with native routes, a path with a missing or an additional slash is redirected by its owner.
        path: str = scope["path"]
        toggled = {**scope, "path": path[:-1] if path.endswith("/") else f"{path}/", "raw_path": None}
        toggled.pop(MATCHES)  # they belong to the other path
        if toggled["path"]:
            return next((app for app in self._apps if app.match(toggled)), None)
        return None

    async def _wait_owner(self, owner: str, scope: Scope, receive: Receive, send: Send) -> Receive | None:
        """Wait for a plugin that does not answer now, or let the node answer that runs it.

        Returns:
            The ``receive`` with which the request is to be served; None if it was answered: by another node,
            or by 503 with ``Retry-After``.
        """
        elsewhere = self._parts.elsewhere
        if elsewhere is not None and elsewhere.placed(owner):
            return await elsewhere.forward(owner, scope, receive, send)
        reason = await self._control.wait_available(owner)
        if reason is None:
            return receive
        await send_json(scope, send, 503, {"detail": reason}, headers=[(b"retry-after", b"1")])
        return None

    async def _file(self, scope: Scope, receive: Receive, send: Send) -> bool:
        path: str = scope["path"]
        if path.startswith(PREFIX):
            return await self.frontends.serve(path, scope, receive, send)
        if path.startswith("/docs/"):
            return self._docs is not None and await self._docs.serve(
                path.removeprefix("/docs/"), scope, receive, send
            )
        if path.startswith("/static/"):
            return await self._pages.serve(path.removeprefix("/static/"), scope, receive, send)
        page = "index.html" if path in {"/", "/index.html"} else path.removeprefix("/")
        if self._shell is not None:
            return await self._shell.serve(page, scope, receive, send)
        return page == "index.html" and await self._pages.serve(page, scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = next((app for app in self._apps if app.match(scope)), None)
        if app is not None:
            await self._websocket_of(app, scope, receive, send)
            return
        found = self.table.locate_websocket(scope)
        if found is not None and found.value is not None:
            served = await self._may_serve(found.value.owner, scope, receive, send)
            if served is not None:
                await serve_plugin_socket(self._native_websocket, scope, served, send)
            return
        if self._quart is _not_found:
            # Before the handshake is accepted, ASGI makes this an answer of 403.
            await send({"type": "websocket.close", "code": 1008})
            return
        if not may_open(scope, self._allowed):
            await refuse_websocket(send, ORIGIN)
            return
        serve = partial(serve_plugin_socket, self._quart)
        await self._blueprint(serve, full_scope(scope), scope, receive, send)

    async def _native_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self.table.locate_websocket(scope)
        if found is not None and found.value is not None:
            bind_to_plugin(scope, self._control.websockets_of(found.value.owner))
            lease = found.value.owner if self._is_placed(found.value.owner) else None
            await under_lease(lease, self.table.handle_websocket, scope, receive, send)

    async def _websocket_of(self, app: AppMount, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a WebSocket to a plugin's application, unless refused by origin or state."""
        served = await self._may_serve(app.owner, scope, receive, send)
        if served is not None:
            await app(full_scope(scope), served, send)

    async def _may_serve(self, owner: str, scope: Scope, receive: Receive, send: Send) -> Receive | None:
        """Check the origin of a WebSocket, and wait for its plugin or let another node serve it.

        Returns:
            The ``receive`` with which it is to be served here, else None.
        """
        elsewhere = self._parts.elsewhere
        if not may_open(scope, self._allowed):
            await refuse_websocket(send, ORIGIN)
        elif elsewhere is not None and elsewhere.placed(owner) and not elsewhere.runs_here(owner):
            return await elsewhere.forward(owner, scope, receive, send)
        elif owner not in self._control.unavailable():
            return receive
        elif await self._control.wait_available(owner):
            await refuse_websocket(send, UNAVAILABLE)
        else:
            return receive
        return None

    def _mounts(self) -> list[Mount]:
        parts = self._parts
        routers = [
            operator_router(
                parts.control,
                self._access,
                metrics=parts.config.metrics,
            ),
            *parts.routers,
            self._core_router(),
        ]
        mounts = [Mount(router, OWNER, self._resolve) for router in routers]
        for loaded in parts.plugins:
            # The routes of a plugin on an island belong to its ASGI application.
            if not loaded.plugin.island:
                mounts += [Mount(router, loaded.name, self._resolve) for router in loaded.plugin.routers]
        mounts += parts.mounts
        if parts.cache is not None:
            mounts.append(Mount(parts.cache.router, OWNER, self._resolve))
        return mounts

    def _policy(self) -> OriginPolicy:
        return OriginPolicy(self._parts.config.server.allowed_origins, self.addresses.hosts)

    def _resolve(self, kind: type) -> object:
        if kind is not BackendState:
            raise LookupError(f"{kind.__name__} cannot be injected; BackendState can")
        return self._parts.state()

    def _core_router(self) -> APIRouter:
        router = APIRouter(tags=["core"])

        @router.get("/manifest.json", summary="Manifest of the browser's shell")
        async def manifest(request: Request) -> Response:
            """Return the shell's configuration and the plugins' front ends."""
            body = self.manifest.encoded(self.addresses.channel_url(request.scope))
            return Response(
                body, media_type="application/json", headers={"cache-control": "no-cache", "vary": "Host"}
            )

        @router.post(
            "/settings/validate/{plugin}",
            summary="Validate edited settings",
            responses={404: {"description": "No plugin has this name"}},
        )
        async def validate(plugin: str, values: dict[str, Any]) -> dict[str, Any]:
            """Validate the values of the settings page, and return each error with its place."""
            result = validate_settings(plugin, values, self._parts.plugins)
            if result is None:
                raise HTTPException(404, f"no plugin is called {plugin!r}")
            return result

        @router.get("/openapi.json", include_in_schema=False)
        async def openapi_json() -> Response:
            return Response(
                self.openapi(), media_type="application/json", headers={"cache-control": "no-cache"}
            )

        @router.get("/docs", include_in_schema=False)
        async def docs_page() -> Response:
            return Response(self._docs_page, media_type="text/html")

        @router.get("/redoc", include_in_schema=False)
        async def redoc() -> Response:
            # The published server has this page too. One page without internet access is enough.
            return Response(b"", 307, {"location": f"{self._root}/docs"})

        @router.get("/docs/tangram-docs.js", include_in_schema=False)
        async def docs_script() -> Response:
            return Response(docs.docs_script(), media_type="text/javascript")

        return router

    def _build_quart(self) -> ASGIApp:
        parts = self._parts
        if not any(loaded.plugin.blueprints for loaded in parts.plugins):
            return _not_found
        from tangram.web.quart_app import build_quart

        app, failures, self._blueprint_owner = build_quart(
            parts.plugins, self._control, parts.config.server.max_body
        )
        self.failures.update(failures)
        return app


def _route_of(scope: Scope) -> str:
    """Return the template of the path of an answered request; empty if there is none."""
    matches = scope.get(MATCHES)
    if matches is not None and matches[1] is not None:
        value = matches[1].value
        return "" if value is None else str(value.route.template.path)
    path: str = scope["path"]
    return next((template for prefix, template in _FILES if path.startswith(prefix)), "")


async def _refuse_host(scope: Scope, send: Send) -> None:
    """Answer 421 to a request for a host that is not this server's."""
    host = ", ".join(headers_of(scope, b"host"))
    detail = f"this server is not {host!r}: add the name to [server] hosts in its configuration"
    await send_json(scope, send, 421, {"detail": detail})


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - the signature of ASGI
    await send_json(scope, send, 404, {"detail": "Not Found"})


async def _lifespan(receive: Receive, send: Send) -> None:
    """Acknowledge lifespan events without doing anything.

    Start-up and tear-down live in the supervision tree, because a cancelled server skips the shutdown event.
    """
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
