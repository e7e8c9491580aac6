"""Shared parts of the figures: values beside targets, and helper processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

ROOT = Path(__file__).resolve().parents[2]

FREELY: Mapping[str, Mapping[str, Any]] = {
    "core": {"log_level": "CRITICAL"},
    # No limit and no back-off, so that each restart is like the first.
    "supervisor": {
        "root_restarts": 1_000_000,
        "plugin_restarts": 1_000_000,
        "backoff_initial": 0.0,
        # Entries expire after a second; by default they would count as leftovers.
        "root_window": 1.0,
        "plugin_window": 1.0,
    },
}
"""Configuration of a server without a limit on crashes."""

ANSWER_WITHIN = 60.0
"""Seconds for an answer of a helper, which may have to connect 1,000 clients."""


@attrs.frozen
class Figure:
    """One line of the table.

    Servers are opened with ``checks=()``: figures are judged here, their logs are silent, and helper
    processes live beside them.
    """

    what: str
    measured: str
    target: str
    ok: bool | None
    """None if the figure has no target."""

    def __str__(self) -> str:
        verdict = {True: "ok", False: "MISSED", None: ""}[self.ok]
        return f"{self.what:62} {self.measured:>26}  {self.target:22} {verdict}".rstrip()


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that ``share`` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000 * len(ordered)) // 1000) - 1))]


def at_most(what: str, values: Sequence[float], share: float, limit: float) -> Figure:
    """Compare a quantile in milliseconds with its limit in seconds."""
    got = quantile(values, share)
    name = "longest" if share >= 1.0 else f"p{share * 100:g}"
    measured = f"{got * 1000:.1f} ms (n={len(values)})"
    return Figure(f"{what}, {name}", measured, f"<= {limit * 1000:g} ms", got <= limit)


def none_of(what: str, count: int) -> Figure:
    """Return a figure for a count that must be 0."""
    return Figure(what, str(count), "0", count == 0)


def tell(text: str) -> None:
    """Print a line of progress on standard error; the table goes to standard output."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class Helper:
    """A helper process: JSON lines go in and come out."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._rest = b""

    async def ask(self, **request: object) -> dict[str, Any]:
        """Send a request and wait for the line that answers it."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps(request).encode() + b"\n")
        return await self.hear()

    async def hear(self) -> dict[str, Any]:
        """Return the next line."""
        assert self._process.stdout is not None
        with trio.fail_after(ANSWER_WITHIN):
            while b"\n" not in self._rest:
                chunk = await self._process.stdout.receive_some(65536)
                if not chunk:
                    raise RuntimeError("a helper process of the benchmark ended")
                self._rest += chunk
        line, self._rest = self._rest.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def open_helper(program: str, *arguments: str) -> AsyncIterator[Helper]:
    """Start one of the programs beside this file; it is ended with the block."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", f"benchmarks.figures.{program}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield Helper(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    await stream.aclose()


async def wait_for(condition: Any, *, within: float = 20.0, every: float = 0.002) -> None:
    """Poll until ``condition()`` holds."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{condition} did not come true within {within} s")
        await trio.sleep(every)
