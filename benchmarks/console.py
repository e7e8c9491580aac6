"""Measure the cost of the console and of the metrics.

    python benchmarks/console.py [--quick]

The console: 1,000 clients are joined and 500 messages a second are published while a page of the console is
open, and while none is, in turns; the difference of the server's CPU time is the cost of the page. The
scrape: the numbers of 10,000 connections are read and written as text, in this process. The rings: the
bytes of the pictures and of the log's records when all of them are full. The exit status is 1 if a target
is missed.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import attrs
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib.loads import Clients, publish
from benchmarks.lib.processes import cpu_seconds
from benchmarks.lib.report import Target, conclude
from benchmarks.lib.servers import Server, start_tangram

from tangram.app.measuring import Measuring
from tangram.channels.hub import Membership
from tangram.channels.policy import ConnectInfo
from tangram.config.model import ChannelConfig
from tangram.console.records import KEPT, MAX_RECORD, RecordRing
from tangram.gateway.admission import Admission
from tangram.gateway.channels import Channels
from tangram.metrics.exposition import write_metrics
from tangram.metrics.histogram import HTTP_BOUNDS, Histogram
from tangram.metrics.pictures import MAX_ROUTES, SPANS, Pictures
from tangram.metrics.requests import RequestKey

CLIENTS = 1000
RATE = 500  # messages a second
CORE_SHARE = 2.0  # percent of a core, while a page is open
CONNECTIONS = 10_000
SCRAPE_MS = 5.0
RING_MB = 2.0
PAGES = ("tree", "topics", "connections", "pictures", "tail?topic=bench")


@contextmanager
def watching(server: Server, page: str, token: str) -> Iterator[None]:
    """Read the stream of a page in a thread, as a browser does."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", f"/-/live/{page}", headers={"authorization": f"Bearer {token}"})
    response = connection.getresponse()
    assert response.status == 200, response.status
    sock = connection.sock

    def read() -> None:
        try:
            while response.read1(65536):
                pass
        except (OSError, ValueError, http.client.HTTPException, AttributeError):
            pass  # the block has ended

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        sock.shutdown(2)
        thread.join()
        connection.close()


def share(server: Server, seconds: float) -> float:
    """Return the percentage of a core that the server uses under the load."""
    before, began = cpu_seconds(server.pid), time.monotonic()
    publish(server.redis_port, int(RATE * seconds), RATE, 200)
    return 100 * (cpu_seconds(server.pid) - before) / (time.monotonic() - began)


def console(*, rounds: int, seconds: float) -> list[Target]:
    """Compare the load with each page open and with none, in turns."""
    added: dict[str, list[float]] = {page: [] for page in PAGES}
    with tempfile.TemporaryDirectory() as folder:
        server = start_tangram(Path(folder))
        token = next(Path(folder).rglob("operator-token")).read_text().strip()
        clients = Clients(server.port, server.token("bench"), CLIENTS)
        try:
            share(server, seconds)
            for _ in range(rounds):
                for page in PAGES:
                    alone = share(server, seconds)
                    with watching(server, page, token):
                        added[page].append(share(server, seconds) - alone)
        finally:
            clients.end()
            server.end()
    for page, values in added.items():
        print(f"console, {page:18} {statistics.median(values):6.2f} % of a core more")
    # One median over all pages: the difference of two runs is larger by chance than the cost of a page.
    more = statistics.median([value for values in added.values() for value in values])
    return [Target("console open, 1,000 clients and 500 messages/s", more, CORE_SHARE, "% of a core")]


async def scrape(*, rounds: int) -> list[Target]:
    """Measure the CPU time of a scrape with 10,000 connections that have joined two topics each."""
    channels = Channels(ChannelConfig(), "secret" * 8, lambda _messages, _done: None)
    info = ConnectInfo("127.0.0.1", {}, {}, None, "/websocket")
    for number in range(CONNECTIONS):
        session = channels.connect(info, Admission(None, None), lambda: None)
        for topic in ("bench", f"streaming-{number}"):
            membership = Membership(session.conn, topic, "1", session.conn, session.outbox)
            channels.hub.join(membership, None)
        session.outbox.take_all()
    measuring = Measuring()
    incarnation = SimpleNamespace(channels=channels, supervisor=None, has_redis=True, hosts={})
    tree = SimpleNamespace(incarnation=incarnation, quarantined={})
    with measuring.counting_channels(channels):
        times = []
        for _ in range(rounds):
            began = time.thread_time()
            write_metrics(measuring.moment(tree), "")
            times.append(1000 * (time.thread_time() - began))
    return [Target("scrape with 10,000 connections", statistics.median(times), SCRAPE_MS, "ms")]


async def rings() -> list[Target]:
    """Fill every ring, and add up their bytes."""
    pictures, records, measuring = Pictures(), RecordRing(), Measuring()
    tree = SimpleNamespace(
        incarnation=SimpleNamespace(channels=None, supervisor=None, has_redis=False, hosts={}), quarantined={}
    )
    empty = measuring.moment(tree)
    histogram = Histogram(HTTP_BOUNDS)
    histogram.observe(0.01)
    routes = {RequestKey("GET", f"/{n}", 200, "http"): histogram.values() for n in range(2 * MAX_ROUTES)}
    pictures.take(empty, 0.0)
    later = max(step for step, _ in SPANS.values())
    pictures.take(attrs.evolve(empty, at=empty.at + later, requests=routes), later)
    for _ in range(KEPT):
        records.take({"event": "x" * MAX_RECORD, "more": "y" * MAX_RECORD}, 0.0)
    return [Target("rings of pictures and log", (pictures.size + records.size) / 1e6, RING_MB, "MB")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short round")
    options = parser.parse_args()
    targets = trio.run(rings)
    targets += trio.run(lambda: scrape(rounds=5 if options.quick else 30))
    targets += console(rounds=1 if options.quick else 3, seconds=3.0 if options.quick else 8.0)
    for target in targets:
        print(f"{target.what:50} {target.value:8.2f} {target.unit}, promised {target.bound:g}")
    conclude([target.promise() for target in targets])


if __name__ == "__main__":
    main()
