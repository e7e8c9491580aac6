"""Several OpenAPI documents as one: routes of applications with documents of their own, without clashes of
names.

What is ours stays as it is. A schema of an application whose name is taken by another schema gets its
owner's name in front; an operation whose id is taken gets it too. Of two that answer one path and method the
first is shown, as it is asked first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import structlog

__all__ = ["Documented", "merged"]

log = structlog.get_logger("tangram.web")

_SCHEMAS = "#/components/schemas/"


class Documented(Protocol):
    """Something with an owner and a document."""

    owner: str

    def openapi(self) -> Mapping[str, Any]:
        """Its document."""


def merged(document: dict[str, Any], apps: Iterable[Documented]) -> dict[str, Any]:
    """``document`` with the routes of ``apps``. One whose document cannot be made is left out, and told."""
    for app in apps:
        try:
            told = app.openapi()
        except Exception as error:
            log.exception(
                "a plugin's routes are left out of /openapi.json", plugin=app.owner, cause=repr(error)
            )
            continue
        _take_in(document, told, app.owner)
    return document


def _take_in(document: dict[str, Any], told: Mapping[str, Any], owner: str) -> None:
    prefix = re.sub(r"\W+", "_", owner)
    theirs: Mapping[str, Any] = told.get("components", {})
    renamed = _renamed(document, theirs.get("schemas", {}), prefix)
    for path, item in _rewritten(told.get("paths", {}), renamed).items():
        _add_path(document, path, item, prefix)
    for kind, entries in _rewritten(theirs, renamed).items():
        home = document.setdefault("components", {}).setdefault(kind, {})
        for name, entry in entries.items():
            home.setdefault(renamed.get(name, name) if kind == "schemas" else name, entry)


def _renamed(document: Mapping[str, Any], schemas: Mapping[str, Any], prefix: str) -> dict[str, str]:
    ours = document.get("components", {}).get("schemas", {})
    renamed = {}
    for name, schema in schemas.items():
        if name in ours and ours[name] != schema:
            number, free = 1, f"{prefix}_{name}"
            while free in ours or free in schemas:
                number += 1
                free = f"{prefix}_{name}_{number}"
            renamed[name] = free
    return renamed


def _rewritten(node: Any, renamed: Mapping[str, str]) -> Any:
    """A copy in which references say the new names."""
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
    home = paths.setdefault(path, {})
    for method, operation in item.items():
        if method in home:
            continue
        if isinstance(operation, dict) and operation.get("operationId") in taken:
            operation["operationId"] = f"{prefix}_{operation['operationId']}"
        home[method] = operation
