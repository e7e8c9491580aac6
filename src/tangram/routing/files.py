"""Files as responses: ranges, validators, and every read in a thread."""

from __future__ import annotations

import calendar
import os
import re
import stat
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

import trio

from tangram.asgi import Receive, Scope, Send
from tangram.routing.exceptions import HTTPException
from tangram.routing.request import Headers
from tangram.routing.responses import Response

__all__ = ["FileResponse", "inside"]

# Big enough that a megabyte costs four hops to a thread, small enough that a hundred slow clients hold 25 MB.
CHUNK: Final = 256 * 1024

# What a server of pages needs; the rest is looked up in the system's tables, which take 10 ms to read.
_TYPES: Final = {
    ".css": "text/css",
    ".csv": "text/csv",
    ".gif": "image/gif",
    ".html": "text/html",
    ".ico": "image/x-icon",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".json": "application/json",
    ".map": "application/json",
    ".mjs": "text/javascript",
    ".pbf": "application/x-protobuf",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".ttf": "font/ttf",
    ".txt": "text/plain",
    ".wasm": "application/wasm",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
}
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATE: Final = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (\d\d) (" + "|".join(_MONTHS) + r") (\d{4}) (\d\d):(\d\d):(\d\d) GMT",
    re.ASCII,
)
_RANGE: Final = re.compile(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*", re.ASCII)


def inside(root: str | os.PathLike[str], relative: str) -> Path:
    """The file ``relative`` below ``root``, links followed; blocks on the disk.

    Raises:
        HTTPException: 404, it would be outside, or cannot be a file's name.
    """
    parts = relative.split("/")
    if "\0" in relative or "\\" in relative or any(part in ("", ".", "..") for part in parts):
        raise HTTPException(404)
    try:
        base = Path(root).resolve(strict=True)
        path = base.joinpath(*parts).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        raise HTTPException(404) from None
    if base not in path.parents:
        raise HTTPException(404)
    return path


def media_type_of(path: str) -> str:
    """The type of a file by its name."""
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122  # a name, not a file
    if suffix in _TYPES:
        return _TYPES[suffix]
    import mimetypes

    return mimetypes.guess_type(path)[0] or "application/octet-stream"


class _Opened(NamedTuple):
    fd: int
    size: int
    etag: str
    modified: int


def _open(path: str | os.PathLike[str], root: str | os.PathLike[str] | None) -> _Opened:
    """Open a regular file, and nothing that blocks: not a pipe, not a device.

    Raises:
        HTTPException: 404, there is none, or it may not be read.
    """
    if root is not None:
        path = inside(root, os.fspath(path))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        raise HTTPException(404) from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise HTTPException(404)
    return _Opened(fd, status.st_size, f'"{status.st_mtime_ns:x}-{status.st_size:x}"', int(status.st_mtime))


class FileResponse(Response):
    """A file, read in threads in chunks: with ETag, Last-Modified, ranges, and 304 where the client has it
    already.

    With ``root`` the path is a request's: it is taken below ``root``, and whatever would leave that folder,
    by ``..`` or by a
    link, is not found. ``filename`` makes the browser save the file under that name. What is no readable
    file is answered
    with 404.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        *,
        filename: str | None = None,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(b"", status_code, headers, media_type or media_type_of(filename or os.fspath(path)))
        self.path = path
        self.root = root
        if filename is not None:
            self.headers["content-disposition"] = f"attachment; filename*=UTF-8''{quote(filename, safe='')}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        opened = await trio.to_thread.run_sync(partial(_open, self.path, self.root))
        try:
            await self.fresh()._answer(opened, scope, send)  # noqa: SLF001
        finally:
            os.close(opened.fd)

    async def _answer(self, opened: _Opened, scope: Scope, send: Send) -> None:
        asked = Headers(
            [(k.decode("latin-1").lower(), v.decode("latin-1")) for k, v in scope.get("headers", ())]
        )
        modified = http_date(opened.modified)
        for name, value in (("etag", opened.etag), ("last-modified", modified), ("accept-ranges", "bytes")):
            self.headers.setdefault(name, value)
        etag = self.headers["etag"]
        if self.status_code == 200 and _unchanged(asked, etag, opened.modified):
            self.status_code = 304
            await send(self.head(None))
            await send({"type": "http.response.body", "body": b""})
            return
        start, end = self._range(asked, etag, modified, opened.size)
        await send(self.head(end - start))
        if scope["method"] == "HEAD" or start == end:
            await send({"type": "http.response.body", "body": b""})
            return
        while start < end:
            chunk = await trio.to_thread.run_sync(os.pread, opened.fd, min(CHUNK, end - start), start)
            if not chunk:
                raise OSError(f"{os.fspath(self.path)!r} became shorter while it was being sent")
            start += len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": start < end})

    def _range(self, asked: Headers, etag: str, modified: str, size: int) -> tuple[int, int]:
        """The part to send; sets the status. Several ranges at once are answered with the whole, as RFC 9110
        allows.
        """
        match = _RANGE.fullmatch(asked.get("range", ""))
        wanted = asked.get("if-range", etag) in (etag, modified)
        if self.status_code != 200 or match is None or not wanted or match[0].strip() == "bytes=-":
            return 0, size
        if match[1] == "" and match[2] == "":
            return 0, size
        if match[1] == "":
            start, end = max(0, size - int(match[2])), size
        else:
            start, end = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
            if match[2] and int(match[2]) < int(match[1]):
                return 0, size  # no range at all
        if start >= size:
            self.status_code = 416
            self.headers["content-range"] = f"bytes */{size}"
            return 0, 0
        self.status_code = 206
        self.headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
        return start, end


def _unchanged(asked: Headers, etag: str, modified: int) -> bool:
    """Has the client this file already? If-None-Match decides alone where it is given (RFC 9110, 13.2.2)."""
    known = asked.get("if-none-match")
    if known is not None:
        tags = [tag.strip().removeprefix("W/") for tag in known.split(",")]
        return "*" in tags or etag.removeprefix("W/") in tags
    since = _parse_date(asked.get("if-modified-since", ""))
    return since is not None and modified <= since


def http_date(seconds: int) -> str:
    """A time as HTTP writes it: ``Sun, 06 Nov 1994 08:49:37 GMT``."""
    t = time.gmtime(seconds)
    day, month = _DAYS[t.tm_wday], _MONTHS[t.tm_mon - 1]
    return f"{day}, {t.tm_mday:02} {month} {t.tm_year:04} {t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT"


def _parse_date(text: str) -> int | None:
    match = _DATE.fullmatch(text.strip())
    if match is None:
        return None
    day, month, year, hour, minute, second = match.groups()
    moment = (int(year), _MONTHS.index(month) + 1, int(day), int(hour), int(minute), int(second))
    try:
        return calendar.timegm(moment)
    except ValueError:
        return None
