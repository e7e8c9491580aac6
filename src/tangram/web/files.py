"""Static folders: the front end of a plugin, the start page, the files of Swagger UI.

Paths are resolved in threads, symbolic links included. A path that leaves the folder counts as missing.
``tangram.routing.FileResponse`` sees to that, and to ``ETag``, ranges and ``Last-Modified``.

Files and folders whose names begin with a dot are not served: bundlers, editors and version control leave
such files behind (``.env``, ``.git/config``), and no page needs them. The exception is ``.well-known`` (RFC
8615).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

import trio

from tangram.asgi import Receive, Scope, Send, send_json
from tangram.routing import FileResponse, HTTPException
from tangram.routing.files import inside

__all__ = ["IMMUTABLE", "REVALIDATE", "StaticFolder"]

REVALIDATE: Final = "no-cache"
"""The browser asks each time whether the file has changed, and gets 304 if its ETag is the same."""
IMMUTABLE: Final = "public, max-age=31536000, immutable"
"""For names that contain a hash of the content: a changed file has another name."""

# Bundlers write name-HASH.ext or name.HASH.ext. A hash is
#
# - 8 characters of base64url, with a small letter, a capital and a digit (Vite, Rollup),
# - 8 of base32, that is capitals and 2 to 7, with a letter and a digit (esbuild), or
# - 8 to 64 hexadecimal digits in small letters, with a letter and a digit (webpack, Parcel),
#
# and it has a digit before its last character, because plain words often end in a number: HeatMap2, SCREENS3.
# In doubt a name counts as plain: a hash that is not recognized costs a 304 each time, but a plain name that
# is taken for a hash stays in browsers for a year after the file has changed.
_HASHES: Final = (
    re.compile(r"[-.](?=.*[a-z])(?=.*[A-Z])(?=.*[0-9].)[A-Za-z0-9_-]{8}"),
    re.compile(r"[-.](?=.*[A-Z])(?=.*[0-9].)[A-Z2-7]{8}"),
)
_HEX: Final = re.compile(r"(?=.*[a-f])(?=.*[0-9].)[0-9a-f]{8,64}")
_SEPARATOR: Final = re.compile(r"[-.]")
_EXTENSION: Final = re.compile(r"[A-Za-z0-9]{1,16}")

MAX_NAME: Final = 255
"""Characters of a file name: no file system has longer names, and a client may send 32,000."""


def _is_hashed(name: str) -> bool:
    """Return whether the file name contains a content hash that a bundler put there."""
    stem, _, extension = name.rpartition(".")
    if len(name) > MAX_NAME or _EXTENSION.fullmatch(extension) is None:
        return False
    if any(pattern.fullmatch(stem[-9:]) for pattern in _HASHES):
        return True
    first, *others = _SEPARATOR.split(stem)
    return bool(first and others) and _HEX.fullmatch(others[-1]) is not None


def _is_hidden(relative: str) -> bool:
    """Return whether a path segment begins with a dot, except a leading ``.well-known``."""
    return any(part.startswith(".") for part in relative.removeprefix(".well-known/").split("/"))


async def _answer_missing(error: HTTPException, scope: Scope, send: Send) -> bool:
    """Return ``False`` for a file that does not exist; send other errors."""
    if error.status_code == 404:
        return False
    headers = [(name.encode(), value.encode()) for name, value in (error.headers or {}).items()]
    await send_json(scope, send, error.status_code, {"detail": error.detail}, headers=headers)
    return True


class StaticFolder:
    """One folder whose files are read from the disk at each request."""

    def __init__(self, root: Path, *, only: Collection[str] | None = None) -> None:
        self.root = root
        self._only = only

    async def serve(self, relative: str, scope: Scope, receive: Receive, send: Send) -> bool:
        """Send the file at ``relative``; return ``False``, with nothing sent, where there is none.

        A file that exists and cannot be read now is answered with 503.
        """
        if _is_hidden(relative):
            return False
        if self._only is not None and relative not in self._only:
            return False
        name = relative.rpartition("/")[2]
        headers = {"cache-control": IMMUTABLE if _is_hashed(name) else REVALIDATE}
        if scope["method"] not in {"GET", "HEAD"}:
            return await self._refuse_method(relative, scope, send)
        try:
            await FileResponse(relative, headers=headers, root=self.root)(scope, receive, send)
        except HTTPException as error:
            # Raised before anything was sent.
            return await _answer_missing(error, scope, send)
        return True

    async def _refuse_method(self, relative: str, scope: Scope, send: Send) -> bool:
        try:
            await trio.to_thread.run_sync(inside, self.root, relative)
        except HTTPException as error:
            return await _answer_missing(error, scope, send)
        await send_json(
            scope, send, 405, {"detail": "Method Not Allowed"}, headers=[(b"allow", b"GET, HEAD")]
        )
        return True
