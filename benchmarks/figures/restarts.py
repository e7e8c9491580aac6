"""Measure refused requests, errors and the longest gap of answers during restarts."""

from __future__ import annotations

from collections import Counter

import trio
from benchmarks.figures.common import FREELY, Figure, none_of, open_helper, tell
from benchmarks.figures.plugin import make_plugin

from tangram.testing import open_tangram

USERS = 16
PAUSE_MS = 5.0
CRASHED = ("plugin:bench", "web", "bus", "channels")
BETWEEN = 0.05
"""Seconds between two restarts, in which requests are answered as usual."""


async def measure(planned: int, crashes: int) -> list[Figure]:
    """Do ``planned`` clean restarts, then ``crashes``, while many HTTP clients send requests."""
    async with open_tangram([make_plugin()], FREELY, checks=()) as running:
        port = running.url.rsplit(":", 1)[1]
        async with open_helper("load", "127.0.0.1", port, "/bench/value", str(USERS), str(PAUSE_MS)) as load:
            await trio.sleep(0.3)
            await load.ask(do="report")
            for _ in range(planned):
                await running.server.restart()
                await trio.sleep(BETWEEN)
            first = await load.ask(do="report")
            gaps, seen = [], Counter[str]()
            for number in range(crashes):
                await trio.sleep(0.1)
                await load.ask(do="report")
                count = running.server.ready_count
                running.crash(CRASHED[number % len(CRASHED)])
                await running.wait_ready(count + 1, seconds=30.0)
                await trio.sleep(0.15)
                told = await load.ask(do="report")
                gaps.append(told["gap"])
                seen.update(told["counts"])
    clean = Counter[str](first["counts"])
    other = {status: count for status, count in clean.items() if status.isdigit() and status != "200"}
    tell(f"  planned: {dict(clean)}, longest gap {first['gap'] * 1000:.0f} ms; crashes: {dict(seen)}")
    worst = max(gaps)
    median = sorted(gaps)[len(gaps) // 2]
    return [
        none_of(
            f"refused connections in {planned + crashes:,} restarts under load",
            clean["refused"] + seen["refused"],
        ),
        none_of(f"answers other than 200 in {planned:,} planned restarts", sum(other.values())),
        none_of("  requests lost that came before the FIN", clean["lost"]),
        Figure("  answered 200 meanwhile", f"{clean['200']:,}", "", None),
        Figure(
            f"longest gap between good answers over {crashes} crashes",
            f"{worst * 1000:.0f} ms",
            "<= 250 ms",
            worst <= 0.25,
        ),
        Figure("  median of the gaps", f"{median * 1000:.0f} ms", "", None),
        none_of(f"answers 503 in {crashes} crashes", seen["503"]),
        at_most_in_flight(seen["lost"], crashes),
    ]


def at_most_in_flight(lost: int, crashes: int) -> Figure:
    """Return the limit of one lost request for each user: each has one in flight."""
    limit = USERS * crashes
    return Figure(
        f"requests lost in {crashes} crashes (in flight at most)", str(lost), f"<= {limit}", lost <= limit
    )
