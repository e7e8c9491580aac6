"""Merge the OpenAPI documents of plugins' applications into the document of the server.

1. The server's own entries do not change.
2. A schema whose name is taken by a different schema gets the name of its plugin as a prefix. An operation
   whose id is taken gets the same prefix.
3. Where two applications have the same path and method, the first one is documented, because it answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

import structlog

__all__ = ["DocumentedApp", "merge_openapi"]

log = structlog.get_logger("tangram.web")

_SCHEMAS: Final = "#/components/schemas/"


class DocumentedApp(Protocol):
    """An application with an OpenAPI document."""

    owner: str
    """The name of its plugin."""

    def openapi(self) -> Mapping[str, Any]:
        """Return the document."""


def merge_openapi(document: dict[str, Any], apps: Iterable[DocumentedApp]) -> dict[str, Any]:
    """Add the routes of ``apps`` to ``document``; log each app whose document fails."""
    for app in apps:
        try:
            added = app.openapi()
        except Exception as error:
            log.exception("plugin routes left out of /openapi.json", plugin=app.owner, cause=repr(error))
            continue
        _add_document(document, added, app.owner)
    return document


def _add_document(document: dict[str, Any], added: Mapping[str, Any], owner: str) -> None:
    prefix = re.sub(r"\W+", "_", owner)
    components: Mapping[str, Any] = added.get("components", {})
    renamed = _renamed(document, components.get("schemas", {}), prefix)
    for path, item in _rewritten(added.get("paths", {}), renamed).items():
        _add_path(document, path, item, prefix)
    for kind, entries in _rewritten(components, renamed).items():
        known = document.setdefault("components", {}).setdefault(kind, {})
        for name, entry in entries.items():
            known.setdefault(renamed.get(name, name) if kind == "schemas" else name, entry)


def _renamed(document: Mapping[str, Any], schemas: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Return new names by old names, for schemas whose name is taken by a different schema."""
    known = document.get("components", {}).get("schemas", {})
    renamed = {}
    for name, schema in schemas.items():
        if name in known and known[name] != schema:
            number, free = 1, f"{prefix}_{name}"
            while free in known or free in schemas:
                number += 1
                free = f"{prefix}_{name}_{number}"
            renamed[name] = free
    return renamed


def _rewritten(node: Any, renamed: Mapping[str, str]) -> Any:
    """Return a copy in which references use the new names."""
    if isinstance(node, Mapping):
        copied = {key: _rewritten(value, renamed) for key, value in node.items()}
        target = copied.get("$ref")
        if isinstance(target, str) and target.startswith(_SCHEMAS):
            name = target.removeprefix(_SCHEMAS)
            copied["$ref"] = _SCHEMAS + renamed.get(name, name)
        return copied
    return [_rewritten(item, renamed) for item in node] if isinstance(node, list | tuple) else node


def _add_path(document: dict[str, Any], path: str, item: Mapping[str, Any], prefix: str) -> None:
    paths = document["paths"]
    taken = {
        operation.get("operationId")
        for one in paths.values()
        for operation in one.values()
        if isinstance(operation, Mapping)
    }
    operations = paths.setdefault(path, {})
    for method, operation in item.items():
        if method in operations:
            continue
        if isinstance(operation, dict) and operation.get("operationId") in taken:
            operation["operationId"] = f"{prefix}_{operation['operationId']}"
        operations[method] = operation
