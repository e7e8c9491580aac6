"""The public names of tangram, for plugin authors.

Each name is imported on first use (PEP 562), so that ``import tangram`` is fast and does not import
trio-asyncio, which changes the behaviour of ``asyncio.run`` on the main thread.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from tangram.server_factory import register_server_in_thread
from tangram.version import VERSION

if TYPE_CHECKING:
    from tangram.bus import Message as Message
    from tangram.bus import Subscriber as Subscriber
    from tangram.channels import ConnectInfo as ConnectInfo
    from tangram.client import fetch_token as fetch_token
    from tangram.client import open_socket as open_socket
    from tangram.declared import DeclaredChannel as DeclaredChannel
    from tangram.declared import Outgoing as Outgoing
    from tangram.declared import Sender as Sender
    from tangram.errors import BadMessage as BadMessage
    from tangram.errors import BrokerUnavailable as BrokerUnavailable
    from tangram.errors import ChannelClosed as ChannelClosed
    from tangram.errors import Refused as Refused
    from tangram.errors import TangramError as TangramError
    from tangram.history import History as History
    from tangram.history import Published as Published
    from tangram.plugins import BackendState as BackendState
    from tangram.plugins import Plugin as Plugin
    from tangram.plugins import StateKey as StateKey
    from tangram.routing import APIRouter as APIRouter
    from tangram.routing import Body as Body
    from tangram.routing import Cookie as Cookie
    from tangram.routing import Depends as Depends
    from tangram.routing import FileResponse as FileResponse
    from tangram.routing import Header as Header
    from tangram.routing import HTMLResponse as HTMLResponse
    from tangram.routing import HTTPException as HTTPException
    from tangram.routing import JSONResponse as JSONResponse
    from tangram.routing import Path as Path
    from tangram.routing import PlainTextResponse as PlainTextResponse
    from tangram.routing import Query as Query
    from tangram.routing import RedirectResponse as RedirectResponse
    from tangram.routing import Request as Request
    from tangram.routing import Response as Response
    from tangram.routing import StreamingResponse as StreamingResponse
    from tangram.routing import WebSocket as WebSocket
    from tangram.routing import WebSocketDisconnect as WebSocketDisconnect

__version__: Final = VERSION

_ROOMS: Final[dict[str, tuple[str, ...]]] = {
    "tangram.bus": ("Message", "Subscriber"),
    "tangram.channels": ("ConnectInfo",),
    "tangram.client": ("fetch_token", "open_socket"),
    "tangram.declared": ("DeclaredChannel", "Outgoing", "Sender"),
    "tangram.errors": ("BadMessage", "BrokerUnavailable", "ChannelClosed", "Refused", "TangramError"),
    "tangram.history": ("History", "Published"),
    "tangram.plugins": ("BackendState", "Plugin", "StateKey"),
    "tangram.routing": (
        "APIRouter",
        "Body",
        "Cookie",
        "Depends",
        "FileResponse",
        "HTMLResponse",
        "HTTPException",
        "Header",
        "JSONResponse",
        "Path",
        "PlainTextResponse",
        "Query",
        "RedirectResponse",
        "Request",
        "Response",
        "StreamingResponse",
        "WebSocket",
        "WebSocketDisconnect",
    ),
}
_HOME: Final = {name: room for room, names in _ROOMS.items() for name in names}
"""From each public name to the package that defines it."""

__all__ = [  # noqa: PLE0604 - the names are those of _HOME, and a test holds the two together
    "__version__",
    *_HOME,
]


def __getattr__(name: str) -> object:
    """Import the package that defines ``name``, and keep the value."""
    try:
        room = _HOME[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value: object = getattr(import_module(room), name)
    globals()[name] = value
    return value


def _make_server_in_thread(*args: Any) -> object:
    from tangram.app.in_thread import HostedServer

    return HostedServer(*args)


register_server_in_thread(_make_server_in_thread)


def __dir__() -> list[str]:
    return sorted(__all__)
