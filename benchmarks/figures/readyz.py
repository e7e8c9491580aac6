"""Measure the time from a crash to readyz with many WebSocket clients connected."""

from __future__ import annotations

import time

import trio
from benchmarks.figures.common import FREELY, Figure, Helper, at_most, none_of, open_helper, tell
from benchmarks.figures.plugin import make_plugin

from tangram.testing import RunningTangram, open_tangram

CLIENTS = 1_000
CRASHED = ("plugin:bench", "bus", "channels", "web")


async def ask_readyz(port: int) -> int:
    """Send one request on a new connection; return 0 if the answer was cut off."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        try:
            await stream.send_all(b"GET /-/readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            answer = b"".join([bytes(chunk) async for chunk in stream])
        except trio.BrokenResourceError:
            return 0
    return int(answer[9:12]) if answer else 0


async def crash_once(running: RunningTangram, child: str) -> tuple[float, float, int]:
    """Crash ``child`` and measure the recovery.

    Returns the seconds until readyz answered 200, those until all parts were up, and the number of other
    answers.
    """
    port = int(running.url.rsplit(":", 1)[1])
    count, mark = running.server.ready_count, len(running.events)
    crashed = time.perf_counter()
    running.crash(child)
    await running.wait_event("crashed", child, after=mark)
    answered, other, up = 0.0, 0, [0.0]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_parts, running, count, up)
        while not answered:
            if await ask_readyz(port) == 200:
                answered = time.perf_counter()
            else:
                other += 1
    return answered - crashed, up[0] - crashed, other


async def _watch_parts(running: RunningTangram, count: int, up: list[float]) -> None:
    await running.wait_ready(count + 1, seconds=30.0)
    tree = running.server.tree
    assert tree is not None
    assert tree.incarnation.has_redis
    up[0] = time.perf_counter()


async def measure(rounds: int, clients: int = CLIENTS) -> list[Figure]:
    """Crash the parts in turn, each time with all clients joined again."""
    answered, parts, rejoined = [], [], []
    other = 0
    codes: dict[str, int] = {}
    async with open_tangram([make_plugin(beat=0.5)], FREELY, checks=()) as running:
        port = running.url.rsplit(":", 1)[1]
        async with open_helper("herd", "127.0.0.1", port, "bench", str(clients)) as herd:
            await herd.ask(do="joined")
            for number in range(rounds):
                await settle(herd)
                crashed_at = time.monotonic()
                took, up, bad = await crash_once(running, CRASHED[number % len(CRASHED)])
                answered.append(took)
                other += bad
                parts.append(up)
                told = await herd.ask(do="joined", cuts=clients)
                rejoined.append(told["joined_at"] - crashed_at)
                for code, count in told["cuts"].items():
                    codes[code] = codes.get(code, 0) + count
    tell(f"  how clients were cut off: {codes}")
    return [
        none_of("  answers of readyz other than 200 after a crash", other),
        at_most(f"crash to readyz 200 with {clients:,} WebSockets", answered, 0.5, 0.025),
        at_most(f"crash to readyz 200 with {clients:,} WebSockets", answered, 0.99, 0.100),
        Figure(
            "  all parts up, bus resubscribed, p50",
            f"{sorted(parts)[len(parts) // 2] * 1000:.1f} ms",
            "",
            None,
        ),
        Figure(
            f"  all {clients:,} clients joined again, p50",
            f"{sorted(rejoined)[len(rejoined) // 2] * 1000:.0f} ms",
            "",
            None,
        ),
        Figure(
            f"  all {clients:,} clients joined again, longest", f"{max(rejoined) * 1000:.0f} ms", "", None
        ),
    ]


async def settle(herd: Helper) -> None:
    """Wait until all clients are members and the messages of their joins are sent."""
    await herd.ask(do="joined")
    await trio.sleep(0.15)
