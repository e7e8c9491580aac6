"""Routes of ``[[cache.entries]]``: files of other servers, downloaded once and kept.

The value of a route parameter becomes one path segment, so values that lead to another folder are refused. A
download is written to a temporary file and renamed, so a file is complete or absent. Several requests for the
same file wait for one download. The download runs in a nursery of its own, because the client of the first
request may disconnect while the others still wait.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import attrs
import structlog
import trio

from tangram.config.model import CacheEntry
from tangram.descriptors import is_exhaustion
from tangram.errors import PluginError
from tangram.redis_url import redact_text, redact_url
from tangram.routing import APIRouter, FileResponse, HTTPException
from tangram.routing.files import inside
from tangram.routing.shortage import unavailable

if TYPE_CHECKING:
    import httpx

__all__ = ["FETCH_SECONDS", "MAX_FILE_BYTES", "CacheRoutes"]

log = structlog.get_logger("tangram.web")

FETCH_SECONDS: Final = 30.0
"""Seconds for one download, from the request to the last byte: style fonts take less than one."""

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
"""Bytes of one file: four times the largest file that the published front ends download.

The bound keeps an endless response from filling the disk.
"""

_PLACEHOLDER: Final = re.compile(r"\{(\w+)(?::path)?\}")


@attrs.define(eq=False)
class _Download:
    """A download in progress, and the HTTP status and detail that its waiters get."""

    done: trio.Event = attrs.field(factory=trio.Event)
    status: int = 502
    detail: str = ""


class CacheRoutes:
    """The routes of all cache entries.

    ``run`` holds the nursery of the downloads. It must run in the same incarnation as the site that serves
    ``router``.
    """

    def __init__(
        self,
        entries: tuple[CacheEntry, ...],
        client: Callable[[], httpx.AsyncClient],
        *,
        folder: Path,
        base: Path | None = None,
    ) -> None:
        """Make the routes of ``entries``.

        Args:
            entries: The entries of the configuration.
            client: Returns the HTTP client for downloads; called at each download.
            folder: Where files of entries without a ``local_path`` are kept.
            base: The folder to which a relative ``local_path`` refers.
        """
        self._client = client
        self._folder = folder
        self._base = base
        self._downloads: dict[Path, _Download] = {}
        self._nursery: trio.Nursery | None = None
        self.router = APIRouter(tags=["cache"])
        for entry in entries:
            self._add(entry)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run downloads until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def _add(self, entry: CacheEntry) -> None:
        names = _PLACEHOLDER.findall(entry.serve_route)
        if not names and entry.local_path is None:
            log.warning(
                "cache entry ignored: it needs local_path or a {name} in its route",
                serve_route=entry.serve_route,
            )
            return
        root = entry.local_path or self._folder
        if not root.is_absolute() and self._base is not None:
            root = self._base / root

        async def answer(**values: str) -> FileResponse:
            return await self._answer(entry, root, {name: values[name] for name in names})

        # The router reads the parameters of a route from its handler's signature. Here the operator's
        # serve_route defines them.
        parameters = [Parameter(name, Parameter.KEYWORD_ONLY, annotation=str) for name in names]
        answer.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        answer.__annotations__ = dict.fromkeys(names, str)
        self.router.add_api_route(
            _PLACEHOLDER.sub(r"{\1}", entry.serve_route),
            answer,
            summary=f"A file of {redact_url(entry.origin)}, kept here"
            if entry.origin
            else "A file kept here",
            name="cached_file",
        )

    async def _answer(self, entry: CacheEntry, root: Path, values: Mapping[str, str]) -> FileResponse:
        target = _target(root, list(values.values()))
        found = await trio.to_thread.run_sync(_existing, root, list(values.values()))
        if found is None:
            if entry.origin is None:
                raise HTTPException(404)
            await self._fetch_once(_origin_url(entry.origin, values), target)
            found = await trio.to_thread.run_sync(_existing, root, list(values.values()))
            if found is None:
                raise HTTPException(404)
        return FileResponse(found, media_type=entry.media_type)

    async def _fetch_once(self, url: str, target: Path) -> None:
        download = self._downloads.get(target)
        if download is None:
            if self._nursery is None:
                raise HTTPException(503, "downloads are stopped")
            download = self._downloads[target] = _Download()
            self._nursery.start_soon(self._download, download, url, target)
        await download.done.wait()
        if download.status != 200:
            raise HTTPException(download.status, download.detail)

    async def _download(self, download: _Download, url: str, target: Path) -> None:
        download.detail = "the origin cannot be reached"
        try:
            with trio.move_on_after(FETCH_SECONDS) as limit:
                download.status, download.detail = await self._fetch(url, target)
            if limit.cancelled_caught:
                download.status, download.detail = 504, "the origin does not answer in time"
        except Exception as error:  # noqa: BLE001 - any error of a download fails its waiters only
            if is_exhaustion(error):
                download.status, download.detail = 503, str(unavailable(error).detail)
                return
            log.warning("cache download failed", url=redact_url(url), cause=redact_text(repr(error)))
            if isinstance(error, PluginError):
                download.status, download.detail = 503, "downloads need httpx, which is not installed"
        finally:
            self._downloads.pop(target, None)
            download.done.set()

    async def _fetch(self, url: str, target: Path) -> tuple[int, str]:
        async with self._client().stream("GET", url, follow_redirects=True) as answer:
            if answer.status_code != 200:
                log.info(
                    "cache download refused by its origin", url=redact_url(url), status=answer.status_code
                )
                passed_on = answer.status_code in {404, 410}
                return (404, "Not Found") if passed_on else (502, f"the origin answers {answer.status_code}")
            await _store(answer.aiter_bytes(), target)
        return 200, ""


async def _store(chunks: Any, target: Path) -> None:
    """Write ``chunks`` to a temporary file and rename it to ``target``; delete it on failure."""
    await trio.to_thread.run_sync(lambda: target.parent.mkdir(parents=True, exist_ok=True))
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        size = 0
        async with await trio.open_file(partial, "wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > MAX_FILE_BYTES:
                    raise ValueError(f"the file is longer than {MAX_FILE_BYTES} bytes")
                await file.write(chunk)
        await trio.to_thread.run_sync(os.replace, partial, target)
    finally:
        # After the rename there is nothing to delete. Not in a thread: a stop that cancels this task must not
        # leave a partial file behind.
        partial.unlink(missing_ok=True)


def _target(root: Path, segments: list[str]) -> Path:
    """Return the path of a cached file; raise 404 for values that are no file name."""
    for segment in segments:
        if segment in {"", ".", ".."} or any(c in segment for c in "/\\\0") or segment.startswith("."):
            raise HTTPException(404)
        if len(segment.encode()) > 200:
            raise HTTPException(404)
    return root.joinpath(*segments)


def _existing(root: Path, segments: list[str]) -> Path | None:
    """Return the resolved path of a cached file, or ``None`` where it does not exist yet."""
    if not segments:
        return root.resolve() if root.is_file() else None
    try:
        found = inside(root, "/".join(segments))
    except HTTPException as error:
        if error.status_code != 404:
            raise
        return None
    return found if found.is_file() else None


def _origin_url(origin: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: quote(values.get(found[1], found[0]), safe=""), origin)
