from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from tangram.routing import APIRouter, FileResponse, ResponseAborted, RouteTable
from tangram.routing.files import CHUNK, http_date, media_type_of
from tests.routing.calling import Peer, call, scope_of, table_of

CONTENT = bytes(range(256)) * 4
# Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110
MOMENT = 784_111_777
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "data.bin").write_bytes(CONTENT)
    (root / "sub" / "page.html").write_text("<p>")
    (root / "empty.txt").write_bytes(b"")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "root-secret").write_text("secret")
    (root / "link").symlink_to(tmp_path / "secret.txt")
    (root / "up").symlink_to(tmp_path)
    (root / "inner").symlink_to(root / "data.bin")
    os.mkfifo(root / "pipe")
    os.utime(root / "data.bin", (MOMENT, MOMENT))
    return root


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def files(folder: Path) -> RouteTable:
    router = APIRouter()

    @router.get("/files/{name:path}")
    async def below(name: str) -> FileResponse:
        return FileResponse(name, root=folder)

    @router.get("/plain")
    async def plain() -> FileResponse:
        return FileResponse(folder / "data.bin", filename="é .bin", headers={"cache-control": "no-cache"})

    return table_of(router)


async def get(folder: Path, name: str = "data.bin", method: str = "GET", **headers: str) -> Any:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return await call(files(folder), method, f"/files/{name}", headers=named)


async def test_a_file(folder: Path) -> None:
    """A file is sent whole, with its type, its length and its validators."""
    answer = await get(folder)

    assert (answer.status, answer.body) == (200, CONTENT)
    assert answer.header("content-length") == "1024"
    assert answer.header("last-modified") == DATE
    assert answer.header("accept-ranges") == "bytes"
    assert answer.header("etag")
    assert (await get(folder, "sub/page.html")).header("content-type") == "text/html; charset=utf-8"
    assert (await get(folder, "inner")).body == CONTENT
    assert (await get(folder, "empty.txt")).body == b""


async def test_head_and_headers(folder: Path) -> None:
    """HEAD gets the headers of GET, and a file's name may have any characters."""
    head = await get(folder, method="HEAD")
    named = await call(files(folder), "GET", "/plain")

    assert (head.status, head.header("content-length"), head.body) == (200, "1024", b"")
    assert named.header("content-disposition") == "attachment; filename*=UTF-8''%C3%A9%20.bin"
    assert named.header("cache-control") == "no-cache"


@pytest.mark.parametrize(
    "name",
    [
        "../secret.txt",
        "%2e%2e/secret.txt",
        "..%2fsecret.txt",
        "sub/../../secret.txt",
        "sub/..",
        "./data.bin",
        "/etc/passwd",
        "//etc/passwd",
        "..\\secret.txt",
        "link",
        "up/secret.txt",
        "up/root-secret",
        "..%2froot-secret",
        "data.bin%00.txt",
        "data.bin/",
        "sub",
        "",
        "pipe",
        "nothing",
        "x" * 5000,
        "~root",
    ],
)
async def test_paths_outside_the_root_are_not_found(folder: Path, name: str) -> None:
    """Dots, links, null bytes, folders and pipes are 404, and a pipe does not block."""
    with trio.fail_after(30):
        answer = await get(folder, name)

    assert (answer.status, answer.json()) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    ("asked", "status", "told", "body"),
    [
        ("bytes=0-3", 206, "bytes 0-3/1024", CONTENT[:4]),
        ("bytes=1000-", 206, "bytes 1000-1023/1024", CONTENT[1000:]),
        ("bytes=-24", 206, "bytes 1000-1023/1024", CONTENT[1000:]),
        ("bytes=-9999", 206, "bytes 0-1023/1024", CONTENT),
        ("bytes=1000-9999", 206, "bytes 1000-1023/1024", CONTENT[1000:]),
        ("bytes=1024-", 416, "bytes */1024", b""),
        ("bytes=-0", 416, "bytes */1024", b""),
        ("bytes=5-3", 200, None, CONTENT),
        ("bytes=-", 200, None, CONTENT),
        ("bytes=0-1,5-6", 200, None, CONTENT),
        ("lines=0-1", 200, None, CONTENT),
        ("bytes=" + "9" * 30 + "-", 200, None, CONTENT),
    ],
)
async def test_ranges(folder: Path, asked: str, status: int, told: str | None, body: bytes) -> None:
    """One valid range is answered with that part; anything else with the whole file."""
    answer = await get(folder, range=asked)

    assert (answer.status, answer.header("content-range"), answer.body) == (status, told, body)
    assert answer.header("content-length") == str(len(body))


async def test_one_response_answers_many(folder: Path) -> None:
    """A FileResponse may be created once and returned for several requests."""
    response = FileResponse(folder / "data.bin")
    router = APIRouter()
    router.add_api_route("/", lambda: response)
    table = table_of(router)

    assert (await call(table, "GET", "/", headers={"if-none-match": "*"})).status == 304
    assert (await call(table, "GET", "/", headers={"range": "bytes=0-1"})).status == 206
    assert (await call(table, "GET", "/")).body == CONTENT


async def test_if_range(folder: Path) -> None:
    """A range is answered with the part only if the file has not changed."""
    etag = (await get(folder)).header("etag")

    assert (await get(folder, range="bytes=0-3", if_range=etag)).status == 206
    assert (await get(folder, range="bytes=0-3", if_range=DATE)).status == 206
    assert (await get(folder, range="bytes=0-3", if_range='"other"')).status == 200


async def test_not_modified(folder: Path) -> None:
    """An unchanged file is answered with 304; the entity tag takes precedence over the date."""
    etag = (await get(folder)).header("etag")
    known = await get(folder, if_none_match=f'"a", W/{etag}')

    assert (known.status, known.body, known.header("etag")) == (304, b"", etag)
    assert known.header("content-length") is None
    assert (await get(folder, if_none_match="*")).status == 304
    assert (await get(folder, if_modified_since=DATE)).status == 304
    assert (await get(folder, if_modified_since=http_date(MOMENT - 1))).status == 200
    assert (await get(folder, if_none_match='"a"', if_modified_since=DATE)).status == 200
    assert (await get(folder, if_modified_since="Sun, 31 Feb 1994 99:99:99 GMT")).status in (200, 304)
    assert (await get(folder, if_modified_since="yesterday")).status == 200


async def test_big_files_come_in_chunks(folder: Path) -> None:
    """At most one chunk of a file is in memory."""
    (folder / "big").write_bytes(b"x" * (2 * CHUNK + 1))
    answer = await get(folder, "big")

    assert [len(chunk) for chunk in answer.chunks] == [CHUNK, CHUNK, 1]


async def test_files_are_opened_and_read_in_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk does not block the event loop."""
    where: list[bool] = []
    here = threading.get_ident()

    def note(name: str) -> None:
        real = getattr(os, name)

        def noted(*args: Any, **options: Any) -> Any:
            where.append(threading.get_ident() == here)
            return real(*args, **options)

        monkeypatch.setattr(os, name, noted)

    note("open")
    note("pread")
    assert (await get(folder, "data.bin")).status == 200

    assert len(where) >= 2
    assert not any(where)


async def test_a_file_that_shrinks_ends_its_connection(folder: Path) -> None:
    """A file that shrinks while it is sent ends its connection: its length was announced."""
    big = folder / "big"
    big.write_bytes(b"x" * (3 * CHUNK))

    class Shrinking(Peer):
        async def send(self, message: dict[str, Any]) -> None:
            await super().send(message)
            if message.get("body"):
                os.truncate(big, CHUNK)

    peer = Shrinking()
    with pytest.raises(ResponseAborted):
        await files(folder)(scope_of("GET", "/files/big"), peer.receive, peer.send)

    assert not peer.complete


async def test_descriptors_are_closed(folder: Path) -> None:
    """The file is closed after every answer, complete or not."""
    before = open_descriptors()
    for headers in ({}, {"range": "bytes=9999-"}, {"if_none_match": "*"}):
        await get(folder, **headers)
    await get(folder, "pipe")
    peer = Peer()
    peer.gone.set()
    await files(folder)(scope_of("GET", "/files/data.bin"), peer.receive, peer.send)

    assert open_descriptors() == before


def test_types_and_dates() -> None:
    """Types follow the name; dates have the format of HTTP."""
    assert http_date(MOMENT) == DATE
    assert [media_type_of(name) for name in ("a.JS", "a.woff2", "a.tar", "a")] == [
        "text/javascript",
        "font/woff2",
        "application/x-tar",
        "application/octet-stream",
    ]


async def test_an_error_that_does_not_mean_missing_is_503(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMFILE and EIO are answered with 503 and Retry-After; EACCES counts as missing."""
    real = os.open
    number = errno.EMFILE

    def failing_open(path: Any, *args: Any, **options: Any) -> int:
        if os.fspath(path).endswith("data.bin"):
            raise OSError(number, os.strerror(number))
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", failing_open)
    for number, status in ((errno.EMFILE, 503), (errno.EIO, 503), (errno.EACCES, 404)):
        answer = await get(folder)
        assert answer.status == status, errno.errorcode[number]
        assert answer.header("retry-after") == ("5" if status == 503 else None)
