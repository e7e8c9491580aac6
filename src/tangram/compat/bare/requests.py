"""The module ``fastapi.requests``."""

from tangram.routing import Request

__all__ = ["Request"]
