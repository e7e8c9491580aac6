"""Measure how soon a saved file is in force with 200 browsers joined, and the cost of 1,000 reloads.

    python benchmarks/reload.py [--quick] [--rounds N] [--reloads N]

``tangram dev`` runs in a process of its own. Each round saves one kind of change, and ends when all browsers
have its message and the server answers with the new code. Then another process imports a plugin again and
again; its memory, tasks, threads and descriptors are counted before and after. The exit status is 1 if a
target is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib.processes import (
    Process,
    free_port,
    keep_off,
    memory_bytes,
    running,
    wait_for_port,
)
from benchmarks.lib.report import Target, conclude, machine, promised, table, write
from benchmarks.lib.servers import environ_of

CLIENTS: Final = 200
SEEN_MS: Final = 500.0
"""Milliseconds from a save until all browsers know of it, 95th percentile."""
GROWTH_MB: Final = 5.0
"""Memory that all reloads together may cost."""
WARM: Final = 100
"""Reloads before memory is counted: caches fill."""
IDLE: Final = 4.0
"""Seconds until the server has ended everything that a restart leaves for a while."""
GIVE_UP: Final = 30.0
HEARTBEAT: Final = 20.0
PLUGIN: Final = "reload_bench"

SOURCE: Final = """
import gc
from pathlib import Path

import tangram
import trio
from reload_bench.{module} import VALUE

router = tangram.APIRouter(prefix="/bench")
plugin = tangram.Plugin(routers=[router])


@router.get("/state")
async def state() -> dict[str, int]:
    return {{"route": {route}, "value": VALUE}}


@router.get("/page.css")
async def styles() -> tangram.FileResponse:
    return tangram.FileResponse(Path(__file__).parent / "page.css", media_type="text/css")


@router.get("/tasks")
async def tasks() -> dict[str, int]:
    gc.collect()
    return {{"tasks": trio.lowlevel.current_statistics().tasks_living, "objects": len(gc.get_objects())}}


@plugin.register_service()
async def publish(state: tangram.BackendState) -> None:
    await state.publish("to:bench:service", {{"service": {service}}})
    await trio.sleep_forever()
"""


@dataclass
class Sources:
    """The package of the plugin on the disk."""

    folder: Path
    module: str = "values"
    route: int = 0
    service: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "values.py").write_text("VALUE = 0\n")
        (self.folder / "page.css").write_text("/* 0 */\n")
        self.save()

    def save(self, **changes: Any) -> None:
        """Write the module with the plugin."""
        for name, value in changes.items():
            setattr(self, name, value)
        text = SOURCE.format(module=self.module, route=self.route, service=self.service)
        (self.folder / "__init__.py").write_text(text)

    def break_syntax(self) -> None:
        (self.folder / "__init__.py").write_text("def broken(:\n")

    def rename_module(self, number: int) -> None:
        """Rename the module with the value, and import it by its new name."""
        old, new = self.folder / f"{self.module}.py", f"values_{number}"
        old.rename(self.folder / f"{new}.py")
        (self.folder / f"{new}.py").write_text(f"VALUE = {number}\n")
        self.save(module=new)

    def add_dependency(self, number: int) -> None:
        """Let the module with the value import a new module."""
        (self.folder / f"base_{number}.py").write_text(f"BASE = -{number}\n")
        (self.folder / f"{self.module}.py").write_text(
            f"from {PLUGIN}.base_{number} import BASE\n\nVALUE = BASE\n"
        )


@dataclass
class Browsers:
    """Connections that have joined the plugin's topic and that of ``tangram dev``."""

    seen: Counter[str] = field(default_factory=Counter)
    """Received messages of all browsers, by event."""
    last: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    lost: int = 0
    """Memberships and connections that ended."""
    changed: trio.Event = field(default_factory=trio.Event)

    async def read(self, socket: WebSocketConnection) -> None:
        try:
            while True:
                _join, _ref, _topic, event, payload = json.loads(await socket.get_message())
                self.lost += event in {"phx_error", "phx_close"}
                if event in {"reload", "service"}:
                    self.last[event] = payload
                self.seen[event] += 1
                self.changed.set()
        except ConnectionClosed:
            self.lost += 1

    async def wait(self, event: str, number: int) -> None:
        """Wait until all browsers together have received a number of messages."""
        while self.seen[event] < number:
            self.changed = trio.Event()
            await self.changed.wait()


@asynccontextmanager
async def joined(port: int, clients: int) -> AsyncIterator[Browsers]:
    """Connect browsers that stay joined."""
    browsers = Browsers()
    tokens = {}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        for topic in ("bench", "tangram:dev"):
            tokens[topic] = (await http.post("/token", json={"channel": topic})).json()["token"]
    sockets: list[WebSocketConnection] = []

    async def keep_alive() -> None:
        while True:
            await trio.sleep(HEARTBEAT)
            for socket in sockets:
                await socket.send_message('[null,"h","phoenix","heartbeat",{}]')

    async def connect() -> None:
        async with open_websocket_url(f"ws://127.0.0.1:{port}/websocket?vsn=2.0.0") as socket:
            sockets.append(socket)
            for topic, token in tokens.items():
                await socket.send_message(json.dumps([topic, topic, topic, "phx_join", {"token": token}]))
            await browsers.read(socket)

    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(connect)
        with trio.fail_after(GIVE_UP):
            await browsers.wait("phx_reply", 2 * clients)
        nursery.start_soon(keep_alive)
        yield browsers
        nursery.cancel_scope.cancel()


Look = Callable[[], Awaitable[bool]]


@dataclass
class Bench:
    """One server with its browsers."""

    sources: Sources
    browsers: Browsers
    http: httpx.AsyncClient
    clients: int

    async def time(self, save: Callable[[], object], look: Look, *, event: str = "reload") -> float:
        """Return the milliseconds from a save until all browsers know of it and *look* sees it."""
        due = self.browsers.seen[event] + self.clients
        begun = time.perf_counter()
        save()
        with trio.fail_after(GIVE_UP):
            await self.browsers.wait(event, due)
            while not await look():
                await self.browsers.wait(event, self.browsers.seen[event] + 1)
        return (time.perf_counter() - begun) * 1000

    async def shows(self, key: str, value: int) -> bool:
        answer = await self.http.get("/bench/state")
        return answer.status_code == httpx.codes.OK and answer.json()[key] == value

    async def rounds(self, numbers: range) -> dict[str, list[float]]:
        """Save each kind of change with each number; return the milliseconds."""
        found: dict[str, list[float]] = {}
        for number in numbers:
            for name, kind in KINDS.items():
                found.setdefault(name, []).append(await kind(self, number))
                # The next save is a change of its own.
                await trio.sleep(0.1)
        return found


async def save_service(bench: Bench, number: int) -> float:
    due = bench.browsers.seen["reload"] + bench.clients

    async def look() -> bool:
        return bench.browsers.last["service"] == {"service": number}

    taken = await bench.time(lambda: bench.sources.save(service=number), look, event="service")
    with trio.fail_after(GIVE_UP):
        await bench.browsers.wait("reload", due)
    return taken


async def save_route(bench: Bench, number: int) -> float:
    return await bench.time(lambda: bench.sources.save(route=number), lambda: bench.shows("route", number))


async def save_file(bench: Bench, number: int) -> float:
    path = bench.sources.folder / "page.css"

    async def look() -> bool:
        return (await bench.http.get("/bench/page.css")).text == f"/* {number} */\n"

    return await bench.time(lambda: path.write_text(f"/* {number} */\n"), look)


async def save_error(bench: Bench, number: int) -> float:
    async def look() -> bool:
        return "SyntaxError" in str(bench.browsers.last["reload"]["error"])

    taken = await bench.time(bench.sources.break_syntax, look)
    await trio.sleep(0.1)
    await bench.time(lambda: bench.sources.save(route=-number), lambda: bench.shows("route", -number))
    return taken


async def rename_module(bench: Bench, number: int) -> float:
    return await bench.time(lambda: bench.sources.rename_module(number), lambda: bench.shows("value", number))


async def add_dependency(bench: Bench, number: int) -> float:
    return await bench.time(
        lambda: bench.sources.add_dependency(number), lambda: bench.shows("value", -number)
    )


KINDS: Final[Mapping[str, Callable[[Bench, int], Awaitable[float]]]] = {
    "a service": save_service,
    "a route": save_route,
    "a front-end file": save_file,
    "a syntax error": save_error,
    "a renamed module": rename_module,
    "an added dependency": add_dependency,
}


@asynccontextmanager
async def serving(folder: Path, command: str, clients: int) -> AsyncIterator[tuple[Bench, Process]]:
    """Run a server with the plugin, and browsers."""
    sources = Sources(folder / PLUGIN)
    port = free_port()
    config = folder / "tangram.toml"
    config.write_text(
        f"[core]\nplugins = [{json.dumps(str(sources.folder))}]\n[server]\nport = {port}\n"
        "max_connections_per_address = 0\n[broker]\nport = 0\n"
        "[channel]\nupgrade_burst = 100000\njoin_burst = 100000\n"
    )
    program = [sys.executable, "-m", "tangram", command, "--config", str(config)]
    with running(Process(program, environ=environ_of(folder), log=folder / "log")) as process:
        wait_for_port(port, process)
        async with (
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=GIVE_UP) as http,
            joined(port, clients) as browsers,
        ):
            yield Bench(sources, browsers, http, clients), process


async def measure_saves(clients: int, rounds: int) -> tuple[dict[str, list[float]], int]:
    """Return the milliseconds of each kind of change, and the number of browsers that did not stay joined."""
    with tempfile.TemporaryDirectory() as folder:
        async with serving(Path(folder), "dev", clients) as (bench, _process):
            await bench.rounds(range(1, 2))
            times = await bench.rounds(range(2, rounds + 2))
            return times, bench.browsers.lost


@dataclass
class Left:
    """The parts of a process that may be left behind."""

    megabytes: float
    tasks: int
    threads: int
    descriptors: int
    objects: int


async def count_left(bench: Bench, process: Process, idle: float) -> Left:
    await trio.sleep(idle)
    counted = (await bench.http.get("/bench/tasks")).json()
    server = psutil.Process(process.pid)
    megabytes = memory_bytes(process.pid) / 1e6
    return Left(megabytes, counted["tasks"], server.num_threads(), server.num_fds(), counted["objects"])


def operator_token(folder: Path) -> str:
    (path,) = folder.rglob("operator-token")
    return path.read_text().strip()


async def measure_reloads(
    clients: int, reloads: int, warm: int = WARM, idle: float = IDLE
) -> tuple[Left, Left, float, int]:
    """Return the counts before and after, the median milliseconds of a reload, and lost browsers."""
    with tempfile.TemporaryDirectory() as folder:
        async with serving(Path(folder), "serve", clients) as (bench, process):
            headers = {"authorization": f"Bearer {operator_token(Path(folder))}"}
            times: list[float] = []
            before = None
            for number in range(1, warm + reloads + 1):
                bench.sources.save(route=number)
                begun = time.perf_counter()
                answer = await bench.http.post(f"/-/plugins/{PLUGIN}/restart?reload=true", headers=headers)
                answer.raise_for_status()
                times.append((time.perf_counter() - begun) * 1000)
                if number == warm:
                    before = await count_left(bench, process, idle)
            assert await bench.shows("route", warm + reloads)
            assert before is not None
            return (
                before,
                await count_left(bench, process, idle),
                statistics.median(times),
                bench.browsers.lost,
            )


def p95(values: list[float]) -> float:
    return sorted(values)[max(0, -(-len(values) * 95 // 100) - 1)]


HEAD: Final = """# Reloads

{machine}

{clients} browsers have joined two topics and stay joined. A save is seen when all of them have its message
and the server answers with the new code. {rounds} saves of each kind, one after the other.
"""


def report_saves(times: Mapping[str, list[float]]) -> str:
    rows = [
        [name, f"{statistics.median(values):.0f}", f"{p95(values):.0f}", f"{max(values):.0f}"]
        for name, values in times.items()
    ]
    return table(["saved", "median ms", "p95 ms", "worst ms"], rows)


def report_left(before: Left, after: Left, reloads: int, median: float) -> str:
    names = {
        "megabytes": "memory, MB",
        "tasks": "tasks",
        "threads": "threads",
        "descriptors": "descriptors",
        "objects": "objects of the garbage collector",
    }
    rows = [
        [told, f"{getattr(before, name):,.6g}", f"{getattr(after, name):,.6g}"]
        for name, told in names.items()
    ]
    head = ["", "before", f"after {reloads:,} reloads"]
    return f"One reload takes {median:.1f} ms, median.\n\n{table(head, rows)}"


def targets(times: Mapping[str, list[float]], before: Left, after: Left, lost: int) -> list[Target]:
    found = [Target(f"{name} is saved and seen, p95", p95(one), SEEN_MS, "ms") for name, one in times.items()]
    return [
        *found,
        Target("browsers that a reload disconnected", lost, 0),
        Target("memory of all reloads", after.megabytes - before.megabytes, GROWTH_MB, "MB"),
        Target("tasks left by reloads", after.tasks - before.tasks, 0),
        Target("threads left by reloads", after.threads - before.threads, 0),
        Target("descriptors left by reloads", after.descriptors - before.descriptors, 0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="5 rounds and 100 reloads")
    parser.add_argument("--rounds", type=int, default=0, help="saves of each kind (default: 50)")
    parser.add_argument("--reloads", type=int, default=0, help="reloads for the memory (default: 1,000)")
    options = parser.parse_args()
    rounds = options.rounds or (5 if options.quick else 50)
    reloads = options.reloads or (100 if options.quick else 1000)
    where = machine()
    keep_off()
    times, lost = trio.run(measure_saves, CLIENTS, rounds)
    before, after, median, lost_too = trio.run(measure_reloads, CLIENTS, reloads)
    promises = [one.promise() for one in targets(times, before, after, lost + lost_too)]
    text = HEAD.format(machine=where, clients=CLIENTS, rounds=rounds)
    for part in (report_saves(times), report_left(before, after, reloads, median), promised(promises)):
        text += f"\n{part}"
    write("reload", text, "", quick=options.quick)
    conclude(promises)


if __name__ == "__main__":
    main()
