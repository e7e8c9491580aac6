"""The module ``fastapi.params``."""

from tangram.routing import Body, Cookie, Depends, Header, Path, Query

__all__ = ["Body", "Cookie", "Depends", "Header", "Path", "Query"]
