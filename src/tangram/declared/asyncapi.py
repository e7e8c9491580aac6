"""Write the AsyncAPI 3.0 document of declared channels, as the server sees them.

``send`` operations are messages to browsers, ``receive`` operations are their pushes with the replies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from tangram.declared.binding import return_type
from tangram.declared.channel import DeclaredChannel, Incoming
from tangram.routing.schema import Schema, SchemaWriter

__all__ = ["asyncapi", "channel_names"]

_SCHEMAS: Final = "#/components/schemas/"
ERROR: Final = "PushError"
_ERROR: Final[Schema] = {
    "title": ERROR,
    "type": "object",
    "description": "The response of an error reply.",
    "required": ["reason"],
    "properties": {
        "reason": {"type": "string"},
        "id": {"type": "string", "description": "The id of the record in the log."},
        "status": {"type": "integer"},
        "detail": {
            "type": "array",
            "description": "Each fault of the payload, with its place.",
            "items": {
                "type": "object",
                "required": ["loc", "msg", "type"],
                "properties": {
                    "loc": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
                    "msg": {"type": "string"},
                    "type": {"type": "string"},
                },
            },
        },
    },
}
_BINARY: Final[Schema] = {"type": "string", "format": "binary"}


def asyncapi(
    channels: Iterable[tuple[str, Iterable[DeclaredChannel]]],
    *,
    host: str = "localhost:2346",
    secure: bool = False,
    pathname: str = "/websocket",
    title: str = "tangram",
    version: str = "0",
) -> dict[str, Any]:
    """Return the document.

    Args:
        channels: pairs of a plugin's name and its channels.
        host: host and port of the server.
        secure: whether it is reached by TLS.
        pathname: the path of the WebSocket.
        title: the title of the API.
        version: the version of the API.
    """
    writer = SchemaWriter(ref_prefix=_SCHEMAS, unique_items=False)
    document: dict[str, Any] = {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": version},
        "defaultContentType": "application/json",
        "servers": {
            "tangram": {
                "host": host,
                "pathname": pathname,
                "protocol": "wss" if secure else "ws",
                "description": "Phoenix channels, serializer 2.0.0 or 1.0.0",
            }
        },
        "channels": {},
        "operations": {},
        "components": {"schemas": {}},
    }
    for name, (plugin, channel) in channel_names(channels).items():
        document["channels"][name] = _channel(plugin, channel, writer)
        document["operations"].update(_operations(name, channel))
    schemas = {**writer.finish(), ERROR: _ERROR}
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    return document


def channel_names(
    channels: Iterable[tuple[str, Iterable[DeclaredChannel]]],
) -> dict[str, tuple[str, DeclaredChannel]]:
    """Return the channels with their plugins, each by a unique name that is a word."""
    names: dict[str, tuple[str, DeclaredChannel]] = {}
    for plugin, some in channels:
        for channel in some:
            literal = re.sub(r"\{[^{}]*\}", "", channel.template.text)
            base = re.sub(r"\W+", "_", literal, flags=re.ASCII).strip("_") or "topic"
            name, number = base, 2
            while name in names:
                name, number = f"{base}_{number}", number + 1
            names[name] = plugin, channel
    return names


def payload_schema(writer: SchemaWriter, kind: Any) -> Schema:
    """Return the schema of a payload; ``bytes`` are those of a binary message."""
    return dict(_BINARY) if kind is bytes else writer.write(kind)


def _channel(plugin: str, channel: DeclaredChannel, writer: SchemaWriter) -> dict[str, Any]:
    messages: dict[str, Any] = {}
    for event, outgoing in channel.outgoing.items():
        described = {"description": outgoing.description} if outgoing.description else {}
        messages[f"{event}.message"] = _message(event, payload_schema(writer, outgoing.kind), **described)
    for event, incoming in channel.incoming.items():
        messages[f"{event}.push"] = _message(event, payload_schema(writer, incoming.kind))
        messages[f"{event}.reply"] = _message("phx_reply", payload_schema(writer, return_type(incoming)))
    if channel.incoming:
        messages["error"] = _message("phx_reply", {"$ref": _SCHEMAS + ERROR})
    found: dict[str, Any] = {
        "address": channel.template.text,
        "messages": messages,
        "tags": [{"name": plugin}],
    }
    if channel.description:
        found["description"] = channel.description
    if channel.template.names:
        found["parameters"] = {
            name: {"description": "text without a colon"} for name in channel.template.names
        }
    return found


def _message(name: str, payload: Schema, **more: str) -> dict[str, Any]:
    message: dict[str, Any] = {"name": name, **more, "payload": payload}
    if payload == _BINARY:
        message["contentType"] = "application/octet-stream"
    return message


def _operations(name: str, channel: DeclaredChannel) -> Mapping[str, Any]:
    at = {"$ref": f"#/channels/{name}"}

    def refer(*messages: str) -> list[dict[str, str]]:
        return [{"$ref": f"#/channels/{name}/messages/{_escape(one)}"} for one in messages]

    found: dict[str, Any] = {
        f"{name}.{event}.send": {"action": "send", "channel": at, "messages": refer(f"{event}.message")}
        for event in channel.outgoing
    }
    for event, incoming in channel.incoming.items():
        operation: dict[str, Any] = {
            "action": "receive",
            "channel": at,
            "messages": refer(f"{event}.push"),
            "reply": {"channel": at, "messages": refer(f"{event}.reply", "error")},
        }
        if text := _summary(incoming):
            operation["description"] = text
        found[f"{name}.{event}.receive"] = operation
    return found


def _summary(incoming: Incoming) -> str:
    from inspect import getdoc

    return getdoc(incoming.handler) or ""


def _escape(key: str) -> str:
    """Return a key as a part of a JSON pointer in a URL (RFC 6901)."""
    from urllib.parse import quote

    return quote(key.replace("~", "~0").replace("/", "~1"), safe="~!$&'()*+,;=:@")
