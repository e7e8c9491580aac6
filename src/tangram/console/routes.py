"""The routes of the console: its page, the login, the live streams and the changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs
import structlog

from tangram.bus.topics import to_channel
from tangram.console.access import OperatorAccess, require_own_page
from tangram.console.assets import HEADERS, assets, page_response
from tangram.console.control import ConsoleControl
from tangram.console.live import PAGES, LiveResponse, LiveStreams
from tangram.errors import BrokerUnavailable, NoSuchChild, StartFailed
from tangram.routing import APIRouter, FileResponse, HTTPException, JSONResponse, Request, Response
from tangram.routing.responses import encode_json
from tangram.supervision.records import cause_of

__all__ = ["console_router"]

log = structlog.get_logger("tangram.console")

_NO_STORE: Final = {"cache-control": "no-store"}

MAX_LOGIN: Final = 16384
"""Bytes of a login's body."""


@attrs.frozen
class Login:
    """The body of a login: the operator's token, or the code of a one-time URL."""

    token: str = ""
    code: str = ""


@attrs.frozen
class NewMessage:
    """A message to publish."""

    topic: str
    event: str
    payload: Any = None


def console_router(control: ConsoleControl, access: OperatorAccess, streams: LiveStreams) -> APIRouter:
    """Make the routes of the console.

    Args:
        control: the running server.
        access: decides which requests may read and which may change.
        streams: takes the open streams, so that a stop can end them.
    """
    router = APIRouter(prefix="/-", tags=["operator"], include_in_schema=False)
    _add_page(router)
    _add_plugin_pages(router, control, access)
    _add_sessions(router, access)
    _add_live(router, control, access, streams)
    _add_changes(router, control, access)
    return router


def _add_page(router: APIRouter) -> None:
    @router.get("/")
    async def page() -> Response:
        return page_response()

    @router.get("/static/{folder}/{name}")
    async def asset(folder: str, name: str) -> Response:
        return assets().response(folder, name)


def _add_plugin_pages(router: APIRouter, control: ConsoleControl, access: OperatorAccess) -> None:
    @router.get("/pages/{plugin}/{file:path}")
    async def plugin_page(plugin: str, file: str, request: Request) -> Response:
        access.require_read(request)
        folder = control.page_folder(plugin)
        if folder is None or any(part.startswith(".") for part in file.split("/")):
            raise HTTPException(404, "Not Found")
        return FileResponse(file, headers={**HEADERS, "cache-control": "no-cache"}, root=folder)


def _add_sessions(router: APIRouter, access: OperatorAccess) -> None:
    @router.post("/session", max_body=MAX_LOGIN)
    async def login(request: Request, given: Login) -> JSONResponse:
        require_own_page(request)
        if given.code:
            # A code that is not valid counts as a wrong token, so that codes cannot be searched for either.
            opened = access.sessions.redeem(given.code) or access.check_token(request, b"")
        else:
            opened = access.check_token(request, given.token.encode("utf-8", "replace"))
        if not opened:
            detail = "this link was used or is older than a minute" if given.code else "this is not the token"
            raise HTTPException(401, detail)
        response = JSONResponse({}, headers=_NO_STORE)
        session = access.open_session(request, response)
        response.body = encode_json({"change_key": session.change_key, "seconds": session.seconds})
        log.info("console session opened", address=request.client.host if request.client else "")
        return response

    @router.get("/session")
    async def session(request: Request) -> JSONResponse:
        access.require_read(request)
        return JSONResponse({"status": "open"}, headers=_NO_STORE)

    @router.delete("/session")
    async def logout(request: Request) -> JSONResponse:
        access.require_change(request)
        response = JSONResponse({"status": "ended"}, headers=_NO_STORE)
        access.end_session(request, response)
        return response

    @router.post("/session/code", max_body=MAX_LOGIN)
    async def code(request: Request) -> JSONResponse:
        access.require_token(request)
        return JSONResponse({"code": access.sessions.new_code()}, headers=_NO_STORE)


def _add_live(
    router: APIRouter, control: ConsoleControl, access: OperatorAccess, streams: LiveStreams
) -> None:
    @router.get("/live/{page}")
    async def live(page: str, request: Request) -> Response:
        access.require_read(request)
        if page not in PAGES:
            raise HTTPException(404, f"there is no page {page!r}: expected one of {', '.join(PAGES)}")
        if streams.full or (page == "tail" and control.tails.full):
            raise HTTPException(503, "too many live pages are open", {"retry-after": "5"})
        query = {name: request.query_params.get(name, "") for name in ("topic", "event", "span")}
        is_open = _still_open(access, request)
        return LiveResponse(page, query, control, is_open=is_open, streams=streams)


def _still_open(access: OperatorAccess, request: Request) -> Callable[[], bool]:
    def is_open() -> bool:
        try:
            return access.may_read(request)
        except HTTPException:  # the address is over the bound of wrong tokens
            return False

    return is_open


def _add_changes(router: APIRouter, control: ConsoleControl, access: OperatorAccess) -> None:
    @router.post("/console/plugins/{name}/{action}")
    async def change_plugin(name: str, action: str, request: Request) -> JSONResponse:
        access.require_change(request)
        if action not in {"restart", "stop"}:
            raise HTTPException(404, f"there is no action {action!r}: expected restart or stop")
        log.info("console action", action=action, plugin=name)
        try:
            await (control.restart_plugin(name) if action == "restart" else control.stop_plugin(name))
        except NoSuchChild:
            raise HTTPException(404, f"no plugin is called {name!r}") from None
        except StartFailed as error:
            raise HTTPException(503, f"plugin {name!r} did not start: {cause_of(error)}") from None
        return JSONResponse({"status": "done"}, headers=_NO_STORE)

    @router.delete("/console/connections/{conn}")
    async def disconnect(conn: str, request: Request) -> JSONResponse:
        access.require_change(request)
        log.info("console action", action="disconnect", conn=conn)
        if not control.disconnect(conn):
            raise HTTPException(404, "this connection has ended already")
        return JSONResponse({"status": "done"}, headers=_NO_STORE)

    @router.post("/console/publish")
    async def publish(message: NewMessage, request: Request) -> JSONResponse:
        access.require_change(request)
        if not message.topic or not message.event or ":" in message.event:
            raise HTTPException(422, "expected a topic, and an event without a colon")
        try:
            channel = to_channel(message.topic, message.event)
            receivers = await control.publish(channel, encode_json(message.payload))
        except BrokerUnavailable as error:
            raise HTTPException(503, f"not published: {error}") from None
        log.info("console action", action="publish", topic=message.topic, name=message.event)
        return JSONResponse({"receivers": receivers}, headers=_NO_STORE)
