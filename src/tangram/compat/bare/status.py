"""The module ``fastapi.status``: ``HTTP_404_NOT_FOUND`` and the like."""

from __future__ import annotations

from http import HTTPStatus


def __getattr__(name: str) -> int:
    parts = name.split("_")
    if len(parts) > 2 and parts[0] == "HTTP" and parts[1].isdecimal():
        try:
            return int(HTTPStatus(int(parts[1])))
        except ValueError:
            pass
    raise AttributeError(f"module 'fastapi.status' has no attribute {name!r}")
