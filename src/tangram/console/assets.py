"""The files of the console's page, under a name that changes with their contents.

The page names one folder, and scripts import each other by relative names in it, so that no build step is
needed. The folder's name is a hash over all files, and browsers keep them for a year.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from tangram.routing import HTTPException, Response

__all__ = ["HEADERS", "POLICY", "Assets", "assets", "page_response"]

PAGES: Final = Path(__file__).with_name("pages")

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: nothing inline, nothing from elsewhere, in no frame of another page."""

HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

YEAR: Final = "public, max-age=31536000, immutable"

_TYPES: Final = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".txt": "text/plain"}


class Assets(NamedTuple):
    """The files of the page."""

    folder: str
    """The hash of all files."""
    files: Mapping[str, bytes]
    page: bytes
    """The page, with the folder in its links."""

    def response(self, folder: str, name: str) -> Response:
        """Return a file.

        Raises:
            HTTPException: 404, there is no such file. One of another version counts as missing.
        """
        body = self.files.get(name)
        if body is None or folder != self.folder:
            raise HTTPException(404, "Not Found")
        kind = _TYPES[Path(name).suffix]
        return Response(body, media_type=kind, headers={**HEADERS, "cache-control": YEAR})


@cache
def assets() -> Assets:
    """Read the files once; this takes a millisecond or two, at the first request."""
    files = {path.name: path.read_bytes() for path in sorted(PAGES.iterdir()) if path.suffix in _TYPES}
    hashed = hashlib.sha256()
    for name, body in files.items():
        hashed.update(b"%b %d\n%b" % (name.encode(), len(body), body))
    folder = hashed.hexdigest()[:16]
    page = (PAGES / "index.html").read_bytes().replace(b"{assets}", f"static/{folder}".encode())
    return Assets(folder, files, page)


def page_response() -> Response:
    """Return the page. It holds no data, so that it needs no session."""
    return Response(assets().page, media_type="text/html", headers={**HEADERS, "cache-control": "no-cache"})
