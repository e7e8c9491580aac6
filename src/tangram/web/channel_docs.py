"""Describe the declared channels: ``/asyncapi.json`` and ``/docs/channels``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from typing import Any, Final

from tangram.asgi import ROOT
from tangram.declared.asyncapi import asyncapi
from tangram.declared.channel import DeclaredChannel
from tangram.routing import APIRouter, Request, Response
from tangram.routing.responses import encode_json
from tangram.version import VERSION

__all__ = ["channel_docs_router", "channels_page"]

Declared = Iterable[tuple[str, Iterable[DeclaredChannel]]]

_HEAD: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>tangram: channels</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; line-height: 1.5; }
code, pre { font-family: ui-monospace, monospace; }
pre { overflow-x: auto; padding: 0.75rem; border: 1px solid; border-radius: 4px; }
section { border-top: 1px solid; margin-top: 2rem; }
</style>
</head>
<body>
<h1>Channels</h1>
<p>The channels that plugins have declared. Programs read <a href="../asyncapi.json">/asyncapi.json</a>,
<a href="../docs">/docs</a> lists the routes.</p>
"""


def channel_docs_router(declared: Callable[[], Declared]) -> APIRouter:
    """Return the routes.

    Args:
        declared: returns pairs of a plugin's name and its channels, as they are now.
    """
    router = APIRouter(tags=["core"])

    @router.get("/asyncapi.json", include_in_schema=False)
    async def asyncapi_json(request: Request) -> Response:
        return Response(
            encode_json(_document(declared(), request)),
            media_type="application/json",
            headers={"cache-control": "no-cache"},
        )

    @router.get("/docs/channels", include_in_schema=False)
    async def page(request: Request) -> Response:
        return Response(
            channels_page(_document(declared(), request)),
            media_type="text/html; charset=utf-8",
            headers={"cache-control": "no-cache"},
        )

    return router


def _document(declared: Declared, request: Request) -> dict[str, Any]:
    return asyncapi(
        declared,
        host=request.headers.get("host", "localhost"),
        secure=request.scope.get("scheme") == "https",
        pathname=f"{request.scope.get(ROOT, '')}/websocket",
        version=VERSION,
    )


def channels_page(document: dict[str, Any]) -> str:
    """Return the page of a document: each channel with its messages, pushes and replies."""
    parts = [_HEAD]
    for name, channel in document["channels"].items():
        parts.append(f"<section id={name!r}>\n<h2><code>{escape(channel['address'])}</code></h2>")
        parts.append(
            f"<p>{escape(channel.get('description', ''))} Plugin {escape(channel['tags'][0]['name'])}.</p>"
        )
        for key, message in channel["messages"].items():
            event, _, kind = key.rpartition(".")
            if event:
                title = {"message": "to browsers", "push": "push", "reply": "reply"}[kind]
                schema = escape(encode_json(_resolved(message["payload"], document, ())).decode())
                parts.append(f"<h3><code>{escape(event)}</code> {title}</h3>\n<pre>{schema}</pre>")
        parts.append("</section>")
    if not document["channels"]:
        parts.append("<p>No plugin has declared a channel.</p>")
    return "\n".join([*parts, "</body>\n</html>\n"])


def _resolved(schema: Any, document: dict[str, Any], around: tuple[str, ...]) -> Any:
    """Return a schema with definitions in place of references, except recursive ones."""
    if isinstance(schema, list):
        return [_resolved(one, document, around) for one in schema]
    if not isinstance(schema, dict):
        return schema
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    if name and name not in around:
        return _resolved(document["components"]["schemas"][name], document, (*around, name))
    return {key: _resolved(value, document, around) for key, value in schema.items()}
