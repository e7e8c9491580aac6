"""CPU a request: the native engine, Hypercorn contained, and uvicorn on asyncio, with the same application
and client.

    python benchmarks/http_engines.py [--quick] [--engines native hypercorn uvicorn] [--connections 32]

The server runs in a process of its own; its CPU time is what the operating system says it used
(/proc/PID/stat, user and system). The client is this process: raw sockets on epoll, one request at a time
on each connection.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ANSWER = b'{"id":42,"name":"tangram","kind":"benchmark","value":1.5,"ok":true}'
REQUEST = (
    b"GET /items/42 HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: benchmark\r\nAccept: application/json\r\n"
    b"Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n\r\n"
)
TICKS = os.sysconf("SC_CLK_TCK")


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The smallest application that answers JSON."""
    assert scope["type"] == "http"
    await receive()
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(ANSWER)),
            ],
        }
    )
    await send({"type": "http.response.body", "body": ANSWER})


class Settings:
    """The defaults of ``[server]``."""

    max_header_bytes = 32768
    max_headers = 100
    max_body = 2 * 1024 * 1024
    header_timeout = 10.0
    idle_timeout = 75.0
    write_timeout = 10.0
    max_connections = 10000
    max_connections_per_address = 0
    access_log = False


def serve(engine: str) -> None:
    """The server process: prints its port, and serves until it is ended."""
    if engine == "uvicorn":
        import uvicorn

        # asyncio turns Nagle's algorithm off only where it can see that this is TCP.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        print(listener.getsockname()[1], flush=True)
        config = uvicorn.Config(
            app, log_level="error", access_log=False, loop="asyncio", http="httptools", lifespan="off"
        )
        uvicorn.Server(config).run([listener])
        return

    import trio

    from tangram.transports.listeners import open_listeners

    held = open_listeners("127.0.0.1", 0)
    print(held[0].port, flush=True)
    if engine == "hypercorn":
        from tangram.transports.hypercorn import serve_hypercorn

        trio.run(lambda: serve_hypercorn(app, held, Settings(), grace=lambda: 1.0))
    else:
        from tangram.transports.native import serve_native

        trio.run(lambda: serve_native(app, held, Settings(), grace=lambda: 1.0))


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(pid: int) -> int:
    """Resident bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def drive(port: int, connections: int, requests: int) -> list[float]:
    """Send ``requests`` requests over ``connections`` connections; answers each one's seconds."""
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    began: dict[int, float] = {}
    for _ in range(connections):
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(client, select.EPOLLIN)
        sockets[client.fileno()] = client
    taken: list[float] = []
    sent = 0
    for number, client in sockets.items():
        client.sendall(REQUEST)
        began[number] = time.perf_counter()
        sent += 1
    while len(taken) < requests:
        for number, _ in poll.poll():
            client = sockets[number]
            if not client.recv(65536).endswith(ANSWER):
                continue
            now = time.perf_counter()
            taken.append(now - began[number])
            if sent < requests:
                client.sendall(REQUEST)
                began[number] = now
                sent += 1
    for client in sockets.values():
        client.close()
    return taken


def measure(engine: str, connections: int, requests: int) -> dict[str, float]:
    """One engine in its own process."""
    command = [sys.executable, __file__, "--serve", engine]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        try:
            drive_when_ready(port)
            drive(port, connections, requests // 10)
            before, start = cpu_seconds(server.pid), time.perf_counter()
            taken = sorted(drive(port, connections, requests))
            seconds, cpu = time.perf_counter() - start, cpu_seconds(server.pid) - before
        finally:
            server.kill()
    return {
        "cpu_us": cpu / requests * 1e6,
        "per_second": requests / seconds,
        "p50_ms": taken[len(taken) // 2] * 1000,
        "p99_ms": taken[int(len(taken) * 0.99)] * 1000,
    }


def drive_when_ready(port: int) -> None:
    """Wait for the first answer."""
    for _ in range(100):
        try:
            drive(port, 1, 1)
        except OSError:
            time.sleep(0.05)
        else:
            return


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests")
    parser.add_argument("--engines", nargs="*", default=["native", "hypercorn", "uvicorn"])
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    requests = 5000 if options.quick else 50000
    print(f"{'engine':10} {'CPU us/request':>15} {'requests/s':>11} {'p50 ms':>8} {'p99 ms':>8}")
    for engine in options.engines:
        count = requests // 5 if engine == "hypercorn" else requests
        row = measure(engine, options.connections, count)
        figures = f"{row['cpu_us']:15.1f} {row['per_second']:11.0f} {row['p50_ms']:8.2f} {row['p99_ms']:8.2f}"
        print(f"{engine:10} {figures}")


if __name__ == "__main__":
    main()
