"""Run one scenario beside good clients, with an attacker in another process; judge it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, Literal

import attrs
import psutil
import trio

from tangram.client import fetch_token
from tangram.testing import Home, RunningProcess, open_process
from tangram.testing.run.workers import in_processes
from tests.hostile import probe_plugin
from tests.hostile.attacks import ADDRESS, Target, attack
from tests.hostile.good_clients import GoodClients, open_good_clients
from tests.hostile.scenarios import MIB, PENDING, Scenario

__all__ = ["BrokenPromise", "Judged", "judge", "run_judged", "run_scenario"]

BLOCKED_SECONDS: Final = 0.05
"""Seconds of CPU for which the loop may be blocked."""

P99_FACTOR: Final = 2.0
"""How much slower good clients may become under attack."""

P99_FLOOR: Final = 0.05
"""Seconds of p99 that are always allowed: the loop may be blocked for as long.

The lateness of the machine is added twice, once for the server's process and once for that of the good
clients, because attacker, server and clients share two cores. A process that waits for its clients wakes up
sooner than one that computes, as the server does under attack: so the time for which its loop got no
processor is added for each pass of an answer, too.
"""

PASSES: Final = 4
"""Passes of the loop until a push is answered: it is read, sent to Redis, acknowledged, and answered."""

OVERHEAD: Final = 48 * MIB
"""Bytes for everything but the bounded data: code that is imported at first use, objects of connections, and
memory that the allocator keeps.
"""

LINES: Final = 20
"""Log lines with the address, at most: a log that an attacker can fill is an attack itself."""

TIMEOUT: Final = 1.0
"""Seconds for the head of a request, and for a client to read: the attacks last for some seconds only."""

SETTLE_SECONDS: Final = 1.0
"""Seconds for the good clients before anything is measured."""

SAMPLE_EVERY: Final = 0.05
"""Seconds between two looks at the memory."""

ATTACK_MORE: Final = 20.0
"""Seconds for the attacker's process to start and to end, beyond the attack."""

PROBE: Final = Path(probe_plugin.__file__).read_text()
"""The source of the plugin that measures the server."""

TOPIC: Final = "good"
HOSTILE_TOPIC: Final = "hostile"


@attrs.frozen
class Measured:
    """The measurements of one scenario."""

    blocked: float
    """Longest pass of the loop, in seconds of CPU: other clients' bytes wait as long."""
    memory: int
    """Growth of the process's resident memory, in bytes."""
    p99_before: float
    p99: float
    machine: float
    """99th percentile of the lateness of a process beside the server, in seconds."""
    closed: int
    """Connections of good clients that were lost."""
    lines: int
    """Log lines that name the attacker's address."""
    connections: int
    data: int
    """Connections and bytes of the attacker."""
    crashes: int
    """Children that crashed."""
    steps: int = 0
    """Steps of tasks in the longest block."""
    longest_step: float = 0.0
    """Seconds of CPU of the longest of these steps."""
    task: str = ""
    """The task of that step."""
    collector: float = 0.0
    """Seconds of CPU of the garbage collector in that block."""
    starved: float = 0.0
    """99th percentile of the seconds for which a pass of the loop was ready and got no processor."""


Kind = Literal["blocked", "memory", "p99", "closed", "crashes", "lines"]

TIMES: Final = frozenset({"blocked", "p99"})
"""Promises that a busy machine may break."""


@attrs.frozen
class BrokenPromise:
    """A promise that a scenario broke."""

    kind: Kind
    text: str

    def __str__(self) -> str:
        return self.text


@attrs.frozen
class Judged:
    """A scenario with its measurements and faults."""

    scenario: Scenario
    measured: Measured
    faults: list[BrokenPromise]

    @property
    def only_times(self) -> bool:
        """Return whether only bounds on times were broken."""
        return all(one.kind in TIMES for one in self.faults)


def judge(scenario: Scenario, measured: Measured) -> Iterator[BrokenPromise]:
    """Yield the promises that a scenario broke."""
    for kind, text in _judge(scenario, measured):
        yield BrokenPromise(kind, text)


def _judge(scenario: Scenario, measured: Measured) -> Iterator[tuple[Kind, str]]:
    if measured.blocked > BLOCKED_SECONDS:
        most = f"{BLOCKED_SECONDS * 1000:.0f}"
        step = f"{measured.longest_step * 1000:.0f} ms in {measured.task}"
        text = f"the loop was blocked for {measured.blocked * 1000:.0f} ms, not {most}"
        collector = f"the garbage collector {measured.collector * 1000:.0f} ms"
        yield "blocked", f"{text}; {measured.steps} steps, the longest took {step}, {collector}"
    if measured.memory > scenario.memory + OVERHEAD:
        most = f"{(scenario.memory + OVERHEAD) / MIB:.0f}"
        grown = f"memory grew by {measured.memory / MIB:.0f} MiB"
        yield "memory", f"{grown}; {scenario.bound} and overhead allow {most}"
    machine = 2 * measured.machine + PASSES * measured.starved
    allowed = max(P99_FACTOR * measured.p99_before, P99_FLOOR) + machine
    if measured.p99 > allowed:
        yield "p99", f"p99 of good clients was {measured.p99 * 1000:.0f} ms, not {allowed * 1000:.0f}"
    if measured.closed:
        yield "closed", f"{measured.closed} connections of good clients were closed"
    if measured.crashes:
        yield "crashes", f"{measured.crashes} children crashed"
    if scenario.log and not measured.lines:
        yield "lines", f"no log line names {ADDRESS}"
    if measured.lines > LINES:
        yield "lines", f"{measured.lines} log lines name {ADDRESS}"


async def run_judged(
    scenario: Scenario,
    seconds: float,
    *,
    ignored: frozenset[Kind] = frozenset(),
    run: Callable[[Scenario, float], Awaitable[Judged]] | None = None,
) -> Judged:
    """Run one scenario, and once more if only promises about times were broken.

    The bounds on memory, connections, crashes and lines do not depend on the machine: one run that breaks
    them is a fault. A time does depend on it. Where cores are shared, even the CPU time of a step grows
    several times over while another program evicts the caches or the hypervisor takes the core away. That
    passes, but a step of the server that is too long comes back in each run, because an attack repeats it
    many times. So a time counts as broken if two runs in succession break such a promise. ``make hostile``
    and CI judge by this one rule, and the bounds are the same in both runs.

    Args:
        scenario: which attack on which server.
        seconds: of each attack.
        ignored: promises that are not judged.
        run: runs the scenario once and judges it.
    """
    judged = _without(await (run or run_scenario)(scenario, seconds), ignored)
    if judged.faults and judged.only_times:
        judged = _without(await (run or run_scenario)(scenario, seconds), ignored)
    return judged


def _without(judged: Judged, ignored: frozenset[Kind]) -> Judged:
    return attrs.evolve(judged, faults=[one for one in judged.faults if one.kind not in ignored])


async def run_scenario(scenario: Scenario, seconds: float) -> Judged:
    """Run one scenario once, and judge it.

    Args:
        scenario: which attack on which server.
        seconds: of the attack; the good clients are measured for half as long before it.
    """
    with tempfile.TemporaryDirectory(prefix="tangram-hostile-") as folder:
        home = Home(Path(folder))
        home.install("probe", PROBE)
        home.configure(["probe"], extra=_tables(scenario))
        environ = {
            "TANGRAM_SERVER__ENGINE": scenario.engine,
            "TANGRAM_SERVER__MAX_PENDING_BYTES": str(PENDING),
            "TANGRAM_SERVER__HEADER_TIMEOUT": str(TIMEOUT),
            "TANGRAM_SERVER__WRITE_TIMEOUT": str(TIMEOUT),
        }
        async with open_process(home, environ=environ) as server:
            await server.wait_ready()
            async with open_good_clients(home.url, TOPIC) as clients:
                measured = await _measure(scenario, seconds, server, clients)
    return Judged(scenario, measured, list(judge(scenario, measured)))


def _tables(scenario: Scenario) -> str:
    compression = json.dumps(scenario.compression)
    return f"[channel]\ncompression = {compression}\n"


async def _measure(
    scenario: Scenario, seconds: float, server: RunningProcess, clients: GoodClients
) -> Measured:
    await trio.sleep(SETTLE_SECONDS)
    clients.begin_period()
    await trio.sleep(seconds / 2)
    before, closed = clients.begin_period().p99, clients.closed
    await server.get("/probe/longest")
    token = await fetch_token(server.url, HOSTILE_TOPIC)
    target = Target(server.home.port, token.token, HOSTILE_TOPIC)
    memory = _Memory(psutil.Process(server.process.pid))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.watch)
        call = partial(attack, scenario.attack, target, seconds)
        (sent,) = await trio.to_thread.run_sync(partial(in_processes, [call], within=seconds + ATTACK_MORE))
        nursery.cancel_scope.cancel()
    under_attack = clients.begin_period()
    longest = await server.get("/probe/longest")
    return Measured(
        blocked=longest["seconds"],
        steps=longest["steps"],
        longest_step=longest["longest_step"],
        task=longest["task"],
        collector=longest["collector"],
        starved=longest["starved"],
        memory=memory.growth,
        p99_before=before,
        p99=under_attack.p99,
        machine=under_attack.machine,
        closed=clients.closed - closed,
        lines=sum(ADDRESS in line for line in server.lines),
        connections=sent["connections"],
        data=sent["data"],
        crashes=len(server.events("child crashed")),
    )


class _Memory:
    """The largest resident memory of a process since this was made."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._before = self._most = process.memory_info().rss

    @property
    def growth(self) -> int:
        """Return the largest growth in bytes."""
        growth: int = self._most - self._before
        return growth

    async def watch(self) -> None:
        """Sample the memory until cancelled."""
        while True:
            self._most = max(self._most, self._process.memory_info().rss)
            await trio.sleep(SAMPLE_EVERY)
