"""The forecast host of the published weather plugin, as a proxy with its own certificate.

The plugin's requests were recorded: one file of GRIB messages for each run of the model, from the newest run
back. A server that is started with `Winds.environ` downloads from here, whichever server it is.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from tests.downstream.prepare import python_of

__all__ = ["HOST", "LEVELS", "Winds", "open_winds"]

HOST = "object.data.gouv.fr"
LEVELS = (300, 850)
"""Pressures in hPa for which there is a wind."""

MAKE = """
import sys
import eccodes
import numpy

path, date, hour = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
grid = {
    "Ni": 12, "Nj": 8, "iDirectionIncrementInDegrees": 5, "jDirectionIncrementInDegrees": 5,
    "latitudeOfFirstGridPointInDegrees": 70, "latitudeOfLastGridPointInDegrees": 35,
    "longitudeOfFirstGridPointInDegrees": 340, "longitudeOfLastGridPointInDegrees": 35,
}
with open(path, "wb") as file:
    for step in range(25):
        for level in map(int, sys.argv[4:]):
            for factor, name in enumerate(("u", "v", "t"), 1):
                message = eccodes.codes_grib_new_from_samples("regular_ll_pl_grib2")
                keys = {"dataDate": date, "dataTime": hour * 100, "stepRange": step} | grid
                for key, value in (keys | {"shortName": name, "level": level}).items():
                    eccodes.codes_set(message, key, value)
                field = numpy.add.outer(numpy.arange(8.0), numpy.arange(12.0)) * factor + level / 100
                eccodes.codes_set_values(message, field.ravel())
                eccodes.codes_write(message, file)
                eccodes.codes_release(message)
"""
"""Program that writes one run's file; all hours are equal, so that answers do not depend on the time."""


@dataclass
class Winds:
    """The answers of the proxy, and the requests that it got."""

    folder: Path
    port: int
    mode: str = "missing"
    """One of ``missing`` (no run), ``broken`` (the file is no forecast), ``there``, ``away`` (hang up)."""
    asked: list[str] = field(default_factory=list)
    """The requested paths, in order."""

    def environ(self, folder: Path) -> dict[str, str]:
        """Return the environment of a server that keeps its downloads in *folder*."""
        folder.mkdir(parents=True, exist_ok=True)
        proxy = f"http://127.0.0.1:{self.port}"
        return {
            "HTTPS_PROXY": proxy,
            "HTTP_PROXY": proxy,
            "SSL_CERT_FILE": str(self.folder / "client.pem"),
            "TMPDIR": str(folder),
        }

    async def answer(self, path: str) -> bytes:
        """Return one whole response."""
        self.asked.append(path)
        if self.mode == "missing":
            return b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
        body = b"no forecast" if self.mode == "broken" else await self._forecast(path)
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)

    async def _forecast(self, path: str) -> bytes:
        run = re.search(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):00:00Z\.grib2$", path)
        assert run, path
        year, month, day, hour = run.groups()
        file = self.folder / f"{year}{month}{day}{hour}.grib2"
        if not file.exists():
            levels = map(str, LEVELS)
            command = [str(python_of("full")), "-c", MAKE, str(file), f"{year}{month}{day}", hour, *levels]
            await trio.run_process(command)
        return file.read_bytes()


@asynccontextmanager
async def open_winds(folder: Path) -> AsyncIterator[Winds]:
    """Run a proxy that has the forecast's host."""
    folder.mkdir(parents=True)  # noqa: ASYNC240 - a test's own folder
    await trio.run_process([str(python_of("full")), "-m", "trustme", "-q", "-d", str(folder), "-i", HOST])
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(folder / "server.pem", folder / "server.key")
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        winds = Winds(folder, listeners[0].socket.getsockname()[1])
        nursery.start_soon(trio.serve_listeners, partial(_serve, winds, tls), listeners)
        yield winds
        nursery.cancel_scope.cancel()


async def _serve(winds: Winds, tls: ssl.SSLContext, stream: trio.SocketStream) -> None:
    try:
        wanted = await _head(stream)
        if winds.mode == "away" or wanted.split(maxsplit=2)[:2] != ["CONNECT", f"{HOST}:443"]:
            await stream.aclose()
            return
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        inner = trio.SSLStream(stream, tls, server_side=True)
        while head := await _head(inner):
            await inner.send_all(await winds.answer(head.split()[1]))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # a client need not say good-bye


async def _head(stream: trio.abc.Stream) -> str:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        some = await stream.receive_some(65536)
        if not some:
            return ""
        head += some
    return head.decode()
