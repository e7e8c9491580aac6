"""``[[cache.entries]]``: files of other servers, fetched once, kept on the disk, and served from there.

A parameter's value becomes one segment of a path, so it may be nothing that leads elsewhere. A file appears
under its name whole or not at all: it is written beside it and renamed. Many who wait for one file wait for
one download; the download does not belong to the first of them, who may go away.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import attrs
import structlog
import trio

from tangram.config.model import CacheEntry
from tangram.errors import PluginError
from tangram.redis_url import redact_text, redact_url
from tangram.routing import APIRouter, FileResponse, HTTPException
from tangram.routing.files import inside

if TYPE_CHECKING:
    import httpx

__all__ = ["FETCH_SECONDS", "MAX_FILE_BYTES", "CacheRoutes"]

log = structlog.get_logger("tangram.web")

FETCH_SECONDS = 30.0
"""For one download, from the first byte of the request to the last of the answer: style fonts take under
one.
"""
MAX_FILE_BYTES = 64 * 1024 * 1024
"""Of one file: four times the largest that the published front ends fetch. An endless answer must not fill
the disk.
"""

_PLACEHOLDER = re.compile(r"\{(\w+)(?::path)?\}")


@attrs.define(eq=False)
class _Download:
    done: trio.Event = attrs.field(factory=trio.Event)
    status: int = 502
    detail: str = ""


class CacheRoutes:
    """The routes of all entries. ``run`` hosts the downloads; it belongs beside the site, in the same
    incarnation.
    """

    def __init__(
        self,
        entries: tuple[CacheEntry, ...],
        client: Callable[[], httpx.AsyncClient],
        *,
        folder: Path,
        base: Path | None = None,
    ) -> None:
        """``folder`` is for entries without a ``local_path``; other paths are relative to ``base``."""
        self._client = client
        self._folder = folder
        self._base = base
        self._downloads: dict[Path, _Download] = {}
        self._nursery: trio.Nursery | None = None
        self.router = APIRouter(tags=["cache"])
        for entry in entries:
            self._add(entry)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Host the downloads until cancelled."""
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
                "a cache entry is left out: without a {name} in its route it needs local_path",
                serve_route=entry.serve_route,
            )
            return
        root = entry.local_path or self._folder
        if not root.is_absolute() and self._base is not None:
            root = self._base / root

        async def answer(**values: str) -> FileResponse:
            return await self._answer(entry, root, {name: values[name] for name in names})

        # A route's parameters are known from its handler's signature; these are the operator's.
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
            await self._fetch_once(_origin(entry.origin, values), target)
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
        # Whatever a download raises costs those who wait for it, and nobody else.
        except Exception as error:  # noqa: BLE001
            log.warning("a file cannot be fetched", url=redact_url(url), cause=redact_text(repr(error)))
            if isinstance(error, PluginError):
                download.status, download.detail = 503, "downloads need httpx, which is not installed"
        finally:
            self._downloads.pop(target, None)
            download.done.set()

    async def _fetch(self, url: str, target: Path) -> tuple[int, str]:
        async with self._client().stream("GET", url, follow_redirects=True) as answer:
            if answer.status_code != 200:
                log.info("an origin does not give a file", url=redact_url(url), status=answer.status_code)
                passed_on = answer.status_code in {404, 410}
                return (404, "Not Found") if passed_on else (502, f"the origin answers {answer.status_code}")
            await _store(answer.aiter_bytes(), target)
        return 200, ""


async def _store(chunks: Any, target: Path) -> None:
    """Write beside the target and rename; on any failure nothing is left."""
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
        # Renamed, it is gone already; a stop must not leave a half file behind, so this does not wait for a
        # thread.
        partial.unlink(missing_ok=True)


def _target(root: Path, segments: list[str]) -> Path:
    for segment in segments:
        if segment in {"", ".", ".."} or any(c in segment for c in "/\\\0") or segment.startswith("."):
            raise HTTPException(404)
        if len(segment.encode()) > 200:
            raise HTTPException(404)
    return root.joinpath(*segments)


def _existing(root: Path, segments: list[str]) -> Path | None:
    if not segments:
        return root.resolve() if root.is_file() else None
    try:
        found = inside(root, "/".join(segments))
    except HTTPException:
        return None
    return found if found.is_file() else None


def _origin(origin: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: quote(values.get(found[1], found[0]), safe=""), origin)
