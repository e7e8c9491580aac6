"""Folders that are served as they are: a plugin's front end, our page, the docs' scripts.

Paths are resolved in threads, links included, and what leads out of the folder does not exist. The answers (ETag,
ranges, Last-Modified) are routing's.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import trio

from tangram.routing import FileResponse
from tangram.web.asgi import Receive, Scope, Send, send_json

__all__ = ["IMMUTABLE", "REVALIDATE", "Folder", "inside"]

REVALIDATE = "no-cache"
"""A browser asks each time whether it is still the same, which the ETag answers with 304."""
IMMUTABLE = "public, max-age=31536000, immutable"
"""For names that carry a hash of the content: another content has another name."""

# What Vite and its relatives write: name-<8 or more characters of base64url>.ext, with at least one digit among them.
_HASHED = re.compile(r"[-.](?=[\w-]*\d)[\w-]{8,}\.\w+$")

_MEDIA_TYPES = {
    # Named here because the system's table differs from machine to machine, and browsers refuse modules of another type.
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".css": "text/css",
    ".html": "text/html",
    ".json": "application/json",
    ".map": "application/json",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
    ".pbf": "application/x-protobuf",
}


def inside(root: Path, relative: str) -> Path | None:
    """The existing file ``relative`` below ``root``, links followed; ``None`` where it is not below, or no file.

    For threads: it looks at the disk.
    """
    parts = relative.split("/")
    if any(part in {"", ".", ".."} or "\\" in part or "\0" in part for part in parts):
        return None
    try:
        found = root.joinpath(*parts).resolve(strict=True)
        return found if found.is_relative_to(root.resolve()) and found.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None


class Folder:
    """One folder on the disk, read anew on each request."""

    def __init__(self, root: Path, *, only: Collection[str] | None = None) -> None:
        self.root = root
        self._only = only

    async def serve(self, relative: str, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer with the file; ``False``, and nothing sent, where there is none."""
        if self._only is not None and relative not in self._only:
            return False
        found = await trio.to_thread.run_sync(inside, self.root, relative)
        if found is None:
            return False
        if scope["method"] not in {"GET", "HEAD"}:
            await send_json(scope, send, 405, {"detail": "Method Not Allowed"}, headers=[(b"allow", b"GET, HEAD")])
            return True
        headers = {"cache-control": IMMUTABLE if _HASHED.search(found.name) else REVALIDATE}
        response = FileResponse(found, headers=headers, media_type=_MEDIA_TYPES.get(found.suffix.lower()))
        await response(scope, receive, send)
        return True
