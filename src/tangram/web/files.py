"""Folders that are served as they are: a plugin's front end, our page, the docs' scripts.

Paths are resolved in threads, links included, and what leads out of the folder does not exist: routing's
`FileResponse` sees to that, and to ETag, ranges and Last-Modified.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import trio

from tangram.asgi import Receive, Scope, Send, send_json
from tangram.routing import FileResponse, HTTPException
from tangram.routing.files import inside

__all__ = ["IMMUTABLE", "REVALIDATE", "Folder"]

REVALIDATE = "no-cache"
"""A browser asks each time whether it is still the same, which the ETag answers with 304."""
IMMUTABLE = "public, max-age=31536000, immutable"
"""For names that carry a hash of the content: another content has another name."""

# Bundlers write name-HASH.ext or name.HASH.ext. A hash is
#
# - 8 characters of base64url, with a small letter, a capital and a digit (Vite, Rollup),
# - 8 of base32, that is capitals and 2 to 7, with a letter and a digit (esbuild), or
# - 8 to 64 hexadecimal digits in small letters, with a letter and a digit (webpack, Parcel),
#
# and one of its digits stands before its last character, because words that people number end in theirs:
# HeatMap2, SCREENS3. What only might be a hash is asked for again each time, which costs a 304; a plain name
# that is taken for one is stale for a year.
_HASHES = (
    re.compile(r"[-.](?=.*[a-z])(?=.*[A-Z])(?=.*[0-9].)[A-Za-z0-9_-]{8}"),
    re.compile(r"[-.](?=.*[A-Z])(?=.*[0-9].)[A-Z2-7]{8}"),
)
_HEX = re.compile(r"(?=.*[a-f])(?=.*[0-9].)[0-9a-f]{8,64}")
_SEPARATOR = re.compile(r"[-.]")
_EXTENSION = re.compile(r"[A-Za-z0-9]{1,16}")

MAX_NAME = 255
"""Characters of a file's name, at most: no file system has longer ones, and a client may send 32,000."""


def _is_hashed(name: str) -> bool:
    """Whether a bundler put a hash of the content into this file's name."""
    stem, _, extension = name.rpartition(".")
    if len(name) > MAX_NAME or _EXTENSION.fullmatch(extension) is None:
        return False
    if any(pattern.fullmatch(stem[-9:]) for pattern in _HASHES):
        return True
    first, *others = _SEPARATOR.split(stem)
    return bool(first and others) and _HEX.fullmatch(others[-1]) is not None


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
        headers = {"cache-control": IMMUTABLE if _is_hashed(name) else REVALIDATE}
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
