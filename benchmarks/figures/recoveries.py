"""Recover through ten kinds of fault with unmodified phoenix.js, and count what is lost.

A process of Node has the pages, each with a socket of its own behind a proxy. A plugin publishes numbers by
``state.publish``, and another program publishes numbers by ``PUBLISH``. One fault strikes after another; each
page comes back and recovers, and nothing goes on before every page has the newest number of both.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio
from benchmarks.figures.common import Figure, none_of, tell
from benchmarks.figures.judging import Watched
from benchmarks.lib.pages import NodePages, open_pages
from tests.e2e.prepare import PHOENIX, find_node

from tangram.broker.ping import open_probe
from tangram.errors import BrokerUnavailable
from tangram.redis_url import parse_redis_url
from tangram.testing import Home, Proxy, RunningProcess, free_port, open_process, open_proxy

SCRIPT = Path(__file__).with_name("recoveries.cjs")
OURS, THEIRS = "numbers:ours", "numbers:theirs"
EVERY = 0.05
"""Seconds between two numbers of each publisher."""
BACK = 90.0
"""Seconds for all pages to have a new number of both publishers."""
NOISE = '"' + "x" * 262_144 + '"'
"""A message for clients that do not read."""
SETTINGS = """
[channel]
max_backlog = 600000
upgrade_burst = 100000
join_burst = 100000
[[channel.history]]
topics = "numbers:*"
size = 5000
"""
PLUGIN = f"""
import json
import tangram
import trio

plugin = tangram.Plugin()


@plugin.register_service()
async def count(state):
    while True:
        try:
            # After an outage it is not known whether the last number was taken: the history says it.
            page = await state.history("{OURS}", limit=1)
            number = json.loads(page.events[-1][1])["n"] if page.events else 0
            while True:
                number += 1
                await state.publish("to:{OURS}:n", {{"n": number}})
                if await state.redis_client.getdel("crash"):
                    raise RuntimeError("crash on request")
                await trio.sleep({EVERY})
        except (tangram.BrokerUnavailable, ConnectionError):
            await trio.sleep({EVERY})
"""


class Pages(NodePages):
    """The pages of one process of Node."""

    def __init__(self, count: int, sent: list[int], process: trio.Process) -> None:
        super().__init__(process)
        self.watched = {
            (page, topic): Watched(sent if topic == THEIRS else None)
            for page in range(count)
            for topic in (OURS, THEIRS)
        }
        self.newest = {OURS: 0, THEIRS: 0}

    def take(self, said: dict[str, Any]) -> None:
        self.watched[said["page"], said["topic"]].take(said)
        self.newest[said["topic"]] = max(self.newest[said["topic"]], said.get("n", 0))

    @property
    def joins(self) -> int:
        return sum(one.joins for one in self.watched.values())

    async def wait_joins(self, count: int) -> None:
        """Return once the pages have joined that often in all."""
        await self.wait(lambda: self.joins >= count, BACK)

    async def wait_new(self) -> None:
        """Return once each page has a number of both that is newer than any that was seen by now."""
        seen = dict(self.newest)
        await self.wait(
            lambda: all((one.last or 0) > seen[topic] for (_, topic), one in self.watched.items()), BACK
        )


@attrs.define
class Stage:
    """Everything that a fault can strike."""

    home: Home
    broker_port: int
    proxy: Proxy
    pages: Pages
    server: RunningProcess
    restart: Callable[[], Awaitable[RunningProcess]]

    @property
    def broker_pid(self) -> int:
        return int(self.server.events("broker ready")[-1]["pid"])

    async def ask(self, *words: str) -> Any:
        async with open_probe(parse_redis_url(f"redis://127.0.0.1:{self.broker_port}")) as probe:
            return await probe.ask(*words)


async def cut(stage: Stage) -> None:
    await stage.pages.say("cut")


async def reload(stage: Stage) -> None:
    stage.server.send(signal.SIGHUP)


async def crash_plugin(stage: Stage) -> None:
    await stage.ask("SET", "crash", "1")


async def kill_broker(stage: Stage) -> None:
    os.kill(stage.broker_pid, signal.SIGKILL)


async def kill_server(stage: Stage) -> None:
    stage.server.process.kill()
    await stage.server.wait_end()
    stage.server = await stage.restart()


async def freeze_broker(stage: Stage) -> None:
    """Stop the broker while the pages come back, for longer than a publication and a join wait for it."""
    pid = stage.broker_pid
    os.kill(pid, signal.SIGSTOP)
    await stage.pages.say("cut")
    await trio.sleep(8)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


async def take_lease(stage: Stage) -> None:
    """Let another node record for a second, and die."""
    await stage.ask("SET", "{tangram}:recorder", "other", "PX", "1000")
    await stage.ask("HINCRBY", "{tangram}:history", "f", "1")


async def reset_proxy(stage: Stage) -> None:
    stage.proxy.reset_all()


async def stall_proxy(stage: Stage) -> None:
    """Swallow everything for a time; connections of the time before do not come back to life."""
    stage.proxy.black_hole = True
    await trio.sleep(4)
    stage.proxy.restore()
    stage.proxy.reset_all()


async def stop_reading(stage: Stage) -> None:
    """Send so much to pages that do not read that they are closed as slow clients."""
    await stage.pages.say("pause 3")
    for _ in range(60):
        await stage.ask("PUBLISH", "to:noise:n", NOISE)


FAULTS: dict[str, Callable[[Stage], Awaitable[None]]] = {
    "connections cut": cut,
    "server reloaded (SIGHUP)": reload,
    "plugin crashed": crash_plugin,
    "broker killed (SIGKILL)": kill_broker,
    "server killed (SIGKILL)": kill_server,
    "broker frozen (SIGSTOP)": freeze_broker,
    "recorder fenced, lease lost": take_lease,
    "proxy resets": reset_proxy,
    "proxy stalls": stall_proxy,
    "slow clients closed": stop_reading,
}
FEW = {"recorder fenced, lease lost", "slow clients closed"}
"""Faults that do not make every page join again."""


async def publish_numbers(port: int, sent: list[int]) -> None:
    """Publish numbers as a program that only knows ``PUBLISH``."""
    number = 0
    while True:
        with suppress(BrokerUnavailable, OSError, trio.TooSlowError):
            async with open_probe(parse_redis_url(f"redis://127.0.0.1:{port}")) as probe:
                while True:
                    number += 1
                    with trio.fail_after(2):
                        await probe.ask("PUBLISH", f"to:{THEIRS}:n", json.dumps({"n": number}))
                    sent.append(number)
                    await trio.sleep(EVERY)
        await trio.sleep(EVERY)


@asynccontextmanager
async def open_stage(folder: Path, count: int) -> AsyncIterator[Stage]:
    """Run server, proxy, publishers and pages."""
    home, port = Home(folder), free_port()
    home.install("counter", PLUGIN)
    home.configure(["counter"], extra=SETTINGS)
    home.config.write_text(home.config.read_text().replace("[broker]\nport = 0", f"[broker]\nport = {port}"))
    sent: list[int] = []

    async with trio.open_nursery() as nursery:

        async def run_server(task_status: trio.TaskStatus[RunningProcess]) -> None:
            async with open_process(home) as server:
                await server.wait_ready()
                task_status.started(server)
                await trio.sleep_forever()

        async def restart() -> RunningProcess:
            found: RunningProcess = await nursery.start(run_server)
            return found

        server = await restart()
        async with open_proxy("127.0.0.1", home.port) as proxy:
            url, root = f"http://127.0.0.1:{proxy.port}", str(find_node()[1])
            command = [str(SCRIPT), root, f"phoenix-{PHOENIX[0]}", url, str(count), OURS, THEIRS]
            async with open_pages(partial(Pages, count, sent), *command) as pages:
                nursery.start_soon(publish_numbers, port, sent)
                await pages.wait_new()
                yield Stage(home, port, proxy, pages, server, restart)
        nursery.cancel_scope.cancel()


async def measure(rounds: int, count: int, least: int) -> list[Figure]:
    """Strike every fault ``rounds`` times, with ``count`` pages, and judge what they received.

    A recovery is one join of one page on one topic, from a position of its own, whose reply says that nothing
    was missed. A join that is told a gap is not one, and neither is a page's first join. There must be
    ``least`` of them.
    """
    with tempfile.TemporaryDirectory(prefix="tangram-recoveries-") as folder:
        async with open_stage(Path(folder), count) as stage:
            pages = stage.pages
            for _ in range(rounds):
                for name, strike in FAULTS.items():
                    before = pages.joins
                    tell(f"  {name} ...")
                    await strike(stage)
                    if name not in FEW:
                        await pages.wait_joins(before + 2 * count)
                    await pages.wait_new()
                    tell(f"  {name}: {pages.joins - before} joins")
            return judge(pages, least)


def judge(pages: Pages, least: int) -> list[Figure]:
    ours = [one for (_, topic), one in pages.watched.items() if topic == OURS]
    theirs = [one for (_, topic), one in pages.watched.items() if topic == THEIRS]
    every = [*ours, *theirs]
    recovered = sum(one.recovered for one in every)
    numbers = sum(one.numbers for one in every)
    what = f"in {recovered:,} recoveries of phoenix.js over {len(FAULTS)} kinds of fault"
    return [
        Figure(
            "recoveries, each of a page's own position", f"{recovered:,}", f">= {least:,}", recovered >= least
        ),
        Figure("  messages that the pages counted", f"{numbers:,}", "", None),
        none_of(f"messages lost {what}", sum(one.lost for one in every)),
        none_of("  out of order", sum(one.disordered for one in every)),
        none_of("  repeats beyond the last write", sum(one.excessive for one in every)),
        none_of("  gaps told to pages of state.publish", sum(one.told for one in ours)),
        Figure("  gaps told to pages of PUBLISH", str(sum(one.told for one in theirs)), "", None),
        Figure("  repeats of the last write", str(sum(one.repeated for one in every)), "", None),
    ]
