from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing

from tangram.config.model import CacheEntry
from tangram.web import cache as module
from tangram.web.cache import CacheRoutes
from tests.web.asgi import Answer, call, site_of

FONTS = CacheEntry(
    serve_route="/fonts/{stack}/{range}.pbf",
    origin="https://fonts.example/{stack}/{range}.pbf",
    media_type="application/x-protobuf",
)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


class Origin:
    """Another server, in memory; ``gate`` holds its answers back."""

    def __init__(self, status: int = 200, body: bytes = b"glyphs") -> None:
        self.asked: list[str] = []
        self.was_asked = trio.Event()
        self.gate = trio.Event()
        self.gate.set()
        self.status = status
        self.body = body
        self.fails: Exception | None = None
        self.breaks: Exception | None = None

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(str(request.url))
        self.was_asked.set()
        await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        return httpx.Response(self.status, content=self.chunks())

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self.body[:3]
        if self.breaks is not None:
            raise self.breaks
        yield self.body[3:]

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self.answer))


class Server:
    """A site with cache routes, and its downloads."""

    def __init__(self, folder: Path, origin: Origin, *entries: CacheEntry) -> None:
        self.client = origin.client()
        self.cache = CacheRoutes(entries or (FONTS,), lambda: self.client, folder=folder, base=folder)
        self.site = site_of(cache=self.cache)

    async def get(self, path: str) -> Answer:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.cache.run)
            answer = await call(self.site, "GET", path)
            nursery.cancel_scope.cancel()
        return answer


async def test_a_missing_file_is_fetched_once_and_kept(tmp_path: Path) -> None:
    """The first request downloads the file, the second is served from the disk."""
    origin = Origin()
    server = Server(tmp_path, origin)

    first = await server.get("/fonts/Noto%20Sans/0-255.pbf")
    assert (first.status, first.body) == (200, b"glyphs")
    assert first.headers["content-type"] == "application/x-protobuf"
    assert (tmp_path / "Noto Sans" / "0-255").read_bytes() == b"glyphs"
    assert (await server.get("/fonts/Noto%20Sans/0-255.pbf")).body == b"glyphs"
    assert origin.asked == ["https://fonts.example/Noto%20Sans/0-255.pbf"]


@pytest.mark.parametrize(
    "path",
    [
        "/fonts/%2e%2e/secret.pbf",
        "/fonts/../secret.pbf",
        "/fonts/..%2f..%2fetc/passwd.pbf",
        "/fonts/a%5cb/x.pbf",
        "/fonts/%00/x.pbf",
        "/fonts/.hidden/x.pbf",
        "/fonts/" + "a" * 300 + "/x.pbf",
    ],
)
async def test_no_parameter_leads_out_of_the_folder(tmp_path: Path, path: str) -> None:
    """Dots, separators and the like are 404, and are not asked for elsewhere."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    origin = Origin()

    assert (await Server(folder, origin).get(path)).status == 404
    assert origin.asked == []


async def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    """A symbolic link that leads out of the folder is not followed."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (tmp_path / "0-255").write_text("secret")
    (folder / "out").symlink_to(tmp_path)
    answer = await Server(folder, Origin(404)).get("/fonts/out/0-255.pbf")

    assert answer.status == 404


class HeldDownload:
    """A site whose origin holds its answer back, and the answers to requests for one file."""

    def __init__(self, folder: Path) -> None:
        self.origin = Origin()
        self.origin.gate = trio.Event()
        self.server = Server(folder, self.origin)
        self.answers: list[Answer] = []

    async def ask(self) -> None:
        self.answers.append(await call(self.server.site, "GET", "/fonts/A/0-255.pbf"))

    @asynccontextmanager
    async def open(self) -> AsyncIterator[trio.Nursery]:
        """Run downloads; wait for the requests of the block, then let the origin answer."""
        async with trio.open_nursery() as downloads:
            await downloads.start(self.server.cache.run)
            async with trio.open_nursery() as nursery:
                yield nursery
                self.origin.gate.set()
            downloads.cancel_scope.cancel()


async def test_concurrent_requests_share_one_download(tmp_path: Path) -> None:
    """Ten requests for one missing file make one request to the origin, and all get the file."""
    held = HeldDownload(tmp_path)
    async with held.open() as nursery:
        for _ in range(10):
            nursery.start_soon(held.ask)
        await held.origin.was_asked.wait()

    assert [(one.status, one.body) for one in held.answers] == [(200, b"glyphs")] * 10
    assert len(held.origin.asked) == 1


async def test_a_download_outlives_the_client_that_started_it(tmp_path: Path) -> None:
    """A download goes on if the client that asked first disconnects."""
    held = HeldDownload(tmp_path)
    async with held.open() as nursery, trio.open_nursery() as impatient:
        impatient.start_soon(held.ask)
        await held.origin.was_asked.wait()
        nursery.start_soon(held.ask)
        await trio.testing.wait_all_tasks_blocked(0.01)
        impatient.cancel_scope.cancel()

    assert [(one.status, one.body) for one in held.answers] == [(200, b"glyphs")]
    assert len(held.origin.asked) == 1


@pytest.mark.parametrize(("origin_says", "we_say"), [(404, 404), (410, 404), (500, 502), (403, 502)])
async def test_a_refusal_of_the_origin_is_404_or_502(tmp_path: Path, origin_says: int, we_say: int) -> None:
    """A missing file is 404 and any other refusal 502; nothing is kept.

    The next request asks the origin again.
    """
    origin = Origin(origin_says)
    server = Server(tmp_path, origin)

    assert (await server.get("/fonts/A/0-255.pbf")).status == we_say
    assert files_below(tmp_path) == []
    origin.status = 200
    assert (await server.get("/fonts/A/0-255.pbf")).status == 200


async def test_an_origin_that_cannot_be_reached_is_a_502(tmp_path: Path) -> None:
    """Trouble on the way to the origin costs the request."""
    origin = Origin()
    origin.fails = httpx.ConnectError("no route")

    assert (await Server(tmp_path, origin).get("/fonts/A/0-255.pbf")).status == 502


async def test_an_origin_that_does_not_answer_is_a_504(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download has a deadline."""
    # The autojump clock would jump while a thread looks at the disk.
    monkeypatch.setattr(module, "FETCH_SECONDS", 0.05)
    origin = Origin()
    origin.gate = trio.Event()

    with trio.fail_after(30):
        assert (await Server(tmp_path, origin).get("/fonts/A/0-255.pbf")).status == 504


async def test_a_failed_download_leaves_no_file(tmp_path: Path) -> None:
    """A download that breaks off leaves no file and no part of one."""
    origin = Origin()
    origin.breaks = httpx.ReadError("reset")

    assert (await Server(tmp_path, origin).get("/fonts/A/0-255.pbf")).status == 502
    assert files_below(tmp_path) == []


# httpx leaves its generators to the collector when a body is not read to its end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
async def test_an_endless_download_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file has a bound, announced or not."""
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 4)

    assert (await Server(tmp_path, Origin()).get("/fonts/A/0-255.pbf")).status == 502
    assert files_below(tmp_path) == []
    gc.collect()


async def test_a_route_without_parameters_is_its_local_path(tmp_path: Path) -> None:
    """Without a {name} local_path is the file itself, relative to the configuration's folder."""
    origin = Origin()
    entry = CacheEntry(serve_route="/style.json", origin="https://x.example/s", local_path=Path("style.json"))

    assert (await Server(tmp_path, origin, entry).get("/style.json")).body == b"glyphs"
    assert (tmp_path / "style.json").read_bytes() == b"glyphs"


async def test_an_entry_without_origin_serves_local_files_only(tmp_path: Path) -> None:
    """Without an origin nothing is fetched."""
    entry = CacheEntry(serve_route="/data/{name}", local_path=tmp_path)
    (tmp_path / "here").write_text("x")
    server = Server(tmp_path, Origin(), entry)

    assert (await server.get("/data/here")).body == b"x"
    assert (await server.get("/data/missing")).status == 404


async def test_an_entry_that_cannot_work_is_left_out(tmp_path: Path) -> None:
    """Neither a parameter nor a local path: there is no such route, and the others are served."""
    server = Server(tmp_path, Origin(), CacheEntry(serve_route="/nothing"), FONTS)

    assert (await server.get("/nothing")).status == 404
    assert (await server.get("/fonts/A/1.pbf")).status == 200


async def test_a_request_after_the_stop_starts_no_download(tmp_path: Path) -> None:
    """Without its host a missing file is 503, not a request that hangs."""
    assert (await call(Server(tmp_path, Origin()).site, "GET", "/fonts/A/0-255.pbf")).status == 503
