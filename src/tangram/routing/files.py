"""``FileResponse``: send a file with ranges and validators, reading it in threads."""

from __future__ import annotations

import calendar
import errno
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
from tangram.routing.shortage import unavailable

__all__ = ["FileResponse", "inside", "unreadable"]

CHUNK: Final = 256 * 1024
"""Bytes read at once: a megabyte needs four switches to a thread, and 100 slow clients hold 25 MB."""

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
"""Media types of front ends. Other types are looked up in the system's tables, which take 10 ms to read."""
_NOT_FOUND: Final = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.EACCES,
        errno.EPERM,
        errno.ENXIO,
        errno.ENODEV,
    }
)
"""Errors that mean that there is no such file for this server; a client may cause each of them by a path."""
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATE: Final = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (\d\d) (" + "|".join(_MONTHS) + r") (\d{4}) (\d\d):(\d\d):(\d\d) GMT",
    re.ASCII,
)
_RANGE: Final = re.compile(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*", re.ASCII)


def inside(root: str | os.PathLike[str], relative: str) -> Path:
    """Return the path of ``relative`` below ``root`` with links resolved.

    It reads the disk, so call it in a thread.

    Raises:
        HTTPException: 404, the path is outside of ``root``, does not exist, or is no valid name; 503, the
            disk cannot be read.
    """
    parts = relative.split("/")
    if "\0" in relative or "\\" in relative or any(part in ("", ".", "..") for part in parts):
        raise HTTPException(404)
    try:
        base = Path(root).resolve(strict=True)
        path = base.joinpath(*parts).resolve(strict=True)
    except (RuntimeError, ValueError):  # a loop of links, a name that the system cannot represent
        raise HTTPException(404) from None
    except OSError as error:
        raise unreadable(error) from None
    if base not in path.parents:
        raise HTTPException(404)
    return path


def unreadable(error: OSError) -> HTTPException:
    """Return 404 for an error that means "no such file", and 503 for any other error."""
    if error.errno in _NOT_FOUND:
        return HTTPException(404)
    return unavailable(error)


def media_type_of(path: str) -> str:
    """Return the media type of a file by its name."""
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122 - a name, not a file
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
    """Open a regular file. Pipes and devices, whose reads would block, are refused.

    Raises:
        HTTPException: 404, the file does not exist, is no regular file or may not be read; 503, it cannot be
            opened for another reason.
    """
    if root is not None:
        path = inside(root, os.fspath(path))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        raise HTTPException(404) from None
    except OSError as error:
        raise unreadable(error) from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise HTTPException(404)
    return _Opened(fd, status.st_size, f'"{status.st_mtime_ns:x}-{status.st_size:x}"', int(status.st_mtime))


class FileResponse(Response):
    """A response with a file, which is read in chunks in threads.

    It has an ETag and Last-Modified, answers range requests, and answers 304 if the client has the file
    already. A path that is no readable file is answered with 404.

    Args:
        path: the file.
        status_code: the status of the answer.
        headers: further headers.
        media_type: the content type; by default it is guessed from the name.
        filename: the browser saves the file under this name.
        root: ``path`` is relative to this folder. Paths that leave the folder, by ``..`` or by links, are
            answered with 404, so that the path may come from a request.
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        opened = await trio.to_thread.run_sync(partial(_open, self.path, self.root))
        try:
            await self.fresh()._answer(opened, scope, send)  # noqa: SLF001 - of a copy of this object
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
        """Return the start and the end of the bytes to send, and set the status.

        A request for several ranges is answered with the whole file, as RFC 9110 allows.
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
                return 0, size  # an invalid range
        if start >= size:
            self.status_code = 416
            self.headers["content-range"] = f"bytes */{size}"
            return 0, 0
        self.status_code = 206
        self.headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
        return start, end


def _unchanged(asked: Headers, etag: str, modified: int) -> bool:
    """Return whether the client has the file; If-None-Match takes precedence.

    See RFC 9110, 13.2.2.
    """
    known = asked.get("if-none-match")
    if known is not None:
        tags = [tag.strip().removeprefix("W/") for tag in known.split(",")]
        return "*" in tags or etag.removeprefix("W/") in tags
    since = _parse_date(asked.get("if-modified-since", ""))
    return since is not None and modified <= since


def http_date(seconds: int) -> str:
    """Return a time as HTTP writes it, for example ``Sun, 06 Nov 1994 08:49:37 GMT``."""
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
