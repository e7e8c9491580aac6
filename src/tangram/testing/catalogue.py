"""Faults by name: what is done to a running server, whether it should count as a crash, and where it works.

``await Chaos(tangram).strike("broker_kill")``, or ``@chaos("broker_kill", "crash_web")`` over a test.
`strike` returns when the fault is over and the server is at rest again.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import attrs
import trio
import trio.lowlevel

from tangram.testing.faults import InjectedFault
from tangram.testing.invariants import Evidence, InvariantBroken, broken
from tangram.testing.server import RunningTangram

__all__ = ["FAULTS", "Chaos", "Fault", "Struck"]

FREEZE_SECONDS = 1.0
"""How long a stopped broker stays stopped: below the bus's own patience with a silent one."""

BLOCK_SECONDS = 1.2
"""How long a blocked loop stands: longer than ``[supervisor] stall_after``, so that the watchdog sees it."""

PAUSE = (0.05, 0.2)
"""Seconds between two faults that strike beside a test."""

READY_SECONDS = 30.0
"""Seconds for the server to be at rest again after a fault."""

Strike = Callable[["Chaos"], Awaitable[None]]


@attrs.frozen
class Fault:
    """One kind of fault."""

    name: str
    strike: Strike
    counts: str | None
    """The child whose crash it should count as, ``plugin`` for any; None where it should crash nobody."""
    about: str


FAULTS: dict[str, Fault] = {}
"""All of them, by name."""


def _fault(*, counts: str | None = None) -> Callable[[Strike], Strike]:
    def keep(strike: Strike) -> Strike:
        name = strike.__name__
        FAULTS[name] = Fault(name, strike, counts, " ".join((strike.__doc__ or "").split()))
        return strike

    return keep


@attrs.frozen
class Struck:
    """One fault that was put in."""

    name: str
    at: float
    """On the loop's clock."""
    healed: float
    """Seconds until everything was at rest again."""
    outcome: str
    """``up``, ``quarantined`` or ``ended``."""


class Chaos:
    """Puts faults into one server."""

    def __init__(self, tangram: RunningTangram, *, seed: int = 0, plugin: str | None = None) -> None:
        self.tangram = tangram
        self.rng = random.Random(seed)  # noqa: S311 - reproducible
        self.plugin = plugin
        """The plugin that is struck; None: any."""
        self.struck: list[Struck] = []

    async def strike(self, *names: str) -> Struck:
        """Put in one fault, or several at once, and wait until the server is at rest again.

        Raises:
            LookupError: there is no fault of that name, or nothing that it could strike.
            InvariantBroken: the server did not do about it what it promises.
        """
        faults = [self._find(name) for name in names]
        mark, began = len(self.tangram.events), trio.current_time()
        for fault in faults:
            await fault.strike(self)
        try:
            outcome = await self.tangram.wait_steady(seconds=READY_SECONDS)
        except AssertionError as error:
            raise InvariantBroken(broken(Evidence(steady=False), ["comes_to_rest"])) from error
        took = trio.current_time() - began
        struck = Struck(" + ".join(names), began, took, outcome)
        self.struck.append(struck)
        if outcome == "up" and len(faults) == 1:
            self._count(faults[0], mark)
        return struck

    def _find(self, name: str) -> Fault:
        try:
            return FAULTS[name]
        except KeyError:
            raise LookupError(f"there is no fault {name!r}; expected one of {', '.join(FAULTS)}") from None

    def _count(self, fault: Fault, mark: int) -> None:
        """A fault that should count is one crash, of the child that it struck."""
        crashed = [
            event.child or ""
            for event in self.tangram.events[mark:]
            if (
                event.kind == "crashed"
                and event.supervisor in {"root", "incarnation"}
                # A service that does not expect an outage ends with it, beside the fault that caused it.
                and not (event.cause or "").startswith("tangram.errors.BrokerUnavailable")
            )
            or (event.child == "broker" and event.kind == "crashed")
        ]
        wanted = [] if fault.counts is None else [fault.counts]
        crashes = len(crashed) if [name.split(":")[0] for name in crashed] == wanted else -len(crashed)
        found = broken(Evidence(faults=len(wanted), crashes=crashes), ["faults_are_counted"])
        if found and crashed != wanted:
            message = f"{fault.name} should crash {wanted or 'nobody'}, it crashed {crashed or 'nobody'}"
            raise InvariantBroken([attrs.evolve(found[0], message=message)])

    @asynccontextmanager
    async def striking(self, *names: str) -> AsyncIterator[None]:
        """Strike one fault after another beside the block; at its end all have struck and are healed."""
        for name in names:
            self._find(name)

        async def strike_all() -> None:
            for name in names:
                await trio.sleep(self.rng.uniform(*PAUSE))
                await self.strike(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(strike_all)
            yield

    def any_plugin(self) -> str:
        """The child of a plugin that runs now."""
        found = [name for name in self.tangram.ports.names if name.startswith("plugin:")]
        if self.plugin is not None:
            found = [name for name in found if name == f"plugin:{self.plugin}"]
        if not found:
            raise LookupError("no plugin runs that could be struck")
        return self.rng.choice(found)

    def broker_pid(self) -> int:
        """The process that the server started; only a broker of its own is ever touched."""
        tree = self.tangram.server.tree
        pid = None if tree is None or tree.broker is None else tree.broker.statistics().pid
        if pid is None:
            raise LookupError("the server has no broker process of its own")
        return pid


# -- the broker ----------------------------------------------------------------------------------------------


@_fault(counts="broker")
async def broker_kill(chaos: Chaos) -> None:
    """The embedded broker gets SIGKILL: it is replaced on the same port, and everything begins anew."""
    mark = len(chaos.tangram.events)
    memory = chaos.tangram.memory
    if memory is not None:
        memory.kill()
    else:
        os.kill(chaos.broker_pid(), signal.SIGKILL)
    await chaos.tangram.wait_event("crashed", "broker", after=mark)


@_fault()
async def broker_stop(chaos: Chaos) -> None:
    """The broker is stopped (SIGSTOP) for a second: nobody crashes, and what was sent meanwhile arrives."""
    memory = chaos.tangram.memory
    if memory is not None:
        memory.freeze()
        await trio.sleep(FREEZE_SECONDS)
        memory.thaw()
        return
    pid = chaos.broker_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        await trio.sleep(FREEZE_SECONDS)
    finally:
        os.kill(pid, signal.SIGCONT)


@_fault()
async def broker_readonly(chaos: Chaos) -> None:
    """The broker refuses writes for a moment, as a replica does: nobody crashes. In memory only."""
    memory = chaos.tangram.memory
    if memory is None:
        raise LookupError("broker_readonly needs the broker in memory: open_tangram(fakes=True)")
    memory.make_readonly()
    await trio.sleep(0.2)
    memory.make_readonly(readonly=False)


# -- parts and plugins ---------------------------------------------------------------------------------------


async def _crash(chaos: Chaos, child: str, error: BaseException | None = None) -> None:
    mark = len(chaos.tangram.events)
    chaos.tangram.crash(child, error)
    await chaos.tangram.wait_event("crashed", child, after=mark)


@_fault(counts="bus")
async def crash_bus(chaos: Chaos) -> None:
    """An exception in the bus."""
    await _crash(chaos, "bus")


@_fault(counts="web")
async def crash_web(chaos: Chaos) -> None:
    """An exception in the web."""
    await _crash(chaos, "web")


@_fault(counts="channels")
async def crash_channels(chaos: Chaos) -> None:
    """An exception in the channels."""
    await _crash(chaos, "channels")


@_fault(counts="plugin")
async def crash_plugin(chaos: Chaos) -> None:
    """An exception in a plugin, after it was ready."""
    await _crash(chaos, chaos.any_plugin())


@_fault(counts="plugin")
async def crash_group_of_three(chaos: Chaos) -> None:
    """Three exceptions at once in a plugin: one crash, and the first leaf is its cause."""
    errors = [InjectedFault("the first"), ValueError("the second"), KeyError("the third")]
    await _crash(chaos, chaos.any_plugin(), ExceptionGroup("three at once", errors))


@_fault(counts="plugin")
async def crash_in_cleanup(chaos: Chaos) -> None:
    """A plugin crashes, and its siblings raise from their clean-up: one crash all the same."""
    chaos.tangram.ports.break_cleanup("channels")
    await _crash(chaos, chaos.any_plugin())


@_fault(counts="plugin")
async def crash_during_restart(chaos: Chaos) -> None:
    """A plugin crashes; while everything restarts, the web is asked for again and again."""
    await _crash(chaos, chaos.any_plugin())
    for _ in range(5):
        with suppress(Exception):
            await chaos.tangram.http.get("/-/readyz", timeout=2.0)


# -- browsers and the machine --------------------------------------------------------------------------------


def _connect(chaos: Chaos) -> socket.socket:
    return chaos.tangram.connect()


@_fault()
async def browser_reset(chaos: Chaos) -> None:
    """Twenty clients connect, send half a request, and reset the connection."""
    for _ in range(20):
        client = _connect(chaos)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        client.send(b"GET /-/readyz HTT")
        await trio.lowlevel.checkpoint()
        client.close()


@_fault()
async def browser_half_frame(chaos: Chaos) -> None:
    """A browser opens a WebSocket, sends half a frame, and goes."""
    client = _connect(chaos)
    try:
        key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        client.send(
            b"GET /websocket?vsn=2.0.0 HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\n" + key + b"\r\n"
        )
        with trio.move_on_after(5):
            await trio.lowlevel.wait_readable(client)
        client.send(b"\x81\xfe\x01")
        await trio.sleep(0.01)
    finally:
        trio.lowlevel.notify_closing(client)
        client.close()


@_fault()
async def upgrade_with_extra_byte(chaos: Chaos) -> None:
    """A WebSocket upgrade with a byte too many behind its headers: it ends that connection only."""
    client = _connect(chaos)
    try:
        client.send(
            b"GET /websocket HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\nX"
        )
        with trio.move_on_after(5):
            await trio.lowlevel.wait_readable(client)
    finally:
        trio.lowlevel.notify_closing(client)
        client.close()


@_fault()
async def slow_browser(chaos: Chaos) -> None:
    """A client that sends its request a byte at a time, and is served all the same."""
    client = _connect(chaos)
    try:
        for byte in b"GET /-/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n":
            client.send(bytes([byte]))
            await trio.sleep(0.002)
        with trio.fail_after(5):
            await trio.lowlevel.wait_readable(client)
        client.recv(65536)
    finally:
        trio.lowlevel.notify_closing(client)
        client.close()


@_fault()
async def loop_blocked(chaos: Chaos) -> None:
    """The event loop is blocked: nobody crashes, and the watchdog has seen it."""
    watchdog = chaos.tangram.server.watchdog
    assert watchdog is not None
    before = watchdog.statistics().stalls
    time.sleep(BLOCK_SECONDS)  # noqa: ASYNC251 - that is the fault
    await trio.sleep(0.3)
    if watchdog.statistics().stalls == before:
        raise AssertionError("the watchdog did not see that the loop was blocked")


@_fault()
async def planned_restart(chaos: Chaos) -> None:
    """The operator restarts everything: no crash, and no window is charged."""
    await chaos.tangram.server.restart()
