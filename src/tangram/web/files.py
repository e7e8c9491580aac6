"""Folders that are served as they are: a plugin's front end, our page, the docs' scripts.

Paths are resolved in threads, links included, and what leads out of the folder does not exist: routing's
`FileResponse` sees to that, and to ETag, ranges and Last-Modified.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import trio

from tangram.routing import FileResponse, HTTPException
from tangram.routing.files import inside
from tangram.web.asgi import Receive, Scope, Send, send_json

__all__ = ["IMMUTABLE", "REVALIDATE", "Folder"]

REVALIDATE = "no-cache"
"""A browser asks each time whether it is still the same, which the ETag answers with 304."""
IMMUTABLE = "public, max-age=31536000, immutable"
"""For names that carry a hash of the content: another content has another name."""

# What Vite and its relatives write: name-<8 or more characters of base64url>.ext, with at least one digit
# among them.
_HASHED = re.compile(r"[-.](?=[\w-]*\d)[\w-]{8,}\.\w+$")


class Folder:
    """One folder on the disk, read anew on each request."""

    def __init__(self, root: Path, *, only: Collection[str] | None = None) -> None:
        self.root = root
        self._only = only

    async def serve(self, relative: str, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer with the file; ``False``, and nothing sent, where there is none."""
        if self._only is not None and relative not in self._only:
            return False
        name = relative.rpartition("/")[2]
        headers = {"cache-control": IMMUTABLE if _HASHED.search(name) else REVALIDATE}
        if scope["method"] not in {"GET", "HEAD"}:
            return await self._refuse_method(relative, scope, send)
        try:
            await FileResponse(relative, headers=headers, root=self.root)(scope, receive, send)
        except HTTPException:
            # Raised before anything was sent: there is no such file in here.
            return False
        return True

    async def _refuse_method(self, relative: str, scope: Scope, send: Send) -> bool:
        try:
            await trio.to_thread.run_sync(inside, self.root, relative)
        except HTTPException:
            return False
        await send_json(
            scope, send, 405, {"detail": "Method Not Allowed"}, headers=[(b"allow", b"GET, HEAD")]
        )
        return True
