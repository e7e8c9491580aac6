"""Define faults, and `Chaos`, which injects them into a server under test.

The faults themselves stand in the modules beside this one, sorted by the part that they strike.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Literal

import attrs
import trio

from tangram.groups import unwrap_single
from tangram.supervision import SupervisionEvent
from tangram.testing.checks.invariants import Broken, Evidence, InvariantBroken, broken, check
from tangram.testing.injection.child_faults import InjectedFault, NothingToStrike, StruckAlready
from tangram.testing.run.server import RunningTangram

__all__ = ["FAULTS", "Chaos", "InjectableFault", "On", "Struck", "fault", "gave_up"]

PAUSE: Final = (0.05, 0.2)
"""Seconds between two faults that strike beside a test."""

READY_SECONDS: Final = 30.0
"""Seconds to wait until a server is at rest again after a fault.

This is longer than every bound that is checked, so that a late server is reported with its actual delay.
"""

START_SECONDS: Final = 5.0
"""Seconds for everything to start on a slow machine; a fast one needs a tenth of a second."""

MOST_JITTER: Final = 1.2
"""Largest jitter factor of a back-off delay: a restart may wait this much longer than configured."""

LOOK_EVERY: Final = 0.01
"""Seconds between two polls of a condition that has no event of its own."""

OUTAGE: Final = frozenset({"broker", "bus"})
"""Children whose end takes Redis away: a service that does not expect that ends with them."""

_INJECTED: Final = f"{InjectedFault.__module__}.{InjectedFault.__qualname__}"

Strike = Callable[["Chaos"], Awaitable[None]]

On = Literal["anything", "sockets", "real", "process"]
"""The environment that a fault needs.

- ``anything``: fakes under a virtual clock, or a real server.
- ``sockets``: real sockets for a proxy; the broker may be in memory and the clock virtual.
- ``real``: a real broker or real time.
- ``process``: a server in a process of its own, which the fault starts and ends itself. Its promise is about
  the end of a process, or the fault would hurt the test process too.
"""


@attrs.frozen
class InjectableFault:
    """A kind of fault, registered by `fault`."""

    name: str
    strike: Strike
    counts: str | tuple[str, ...] | None
    """Child whose crash the fault must count as.

    ``plugin`` stands for any plugin, several names for several crashes, None for no crash.
    """
    about: str
    on: On = "anything"
    """The environment that it needs."""

    @property
    def strikes_plugin(self) -> bool:
        """Return whether the fault strikes one plugin and nothing else."""
        return set(self.crashes) == {"plugin"}

    @property
    def crashes(self) -> list[str]:
        """Return the children that the fault must crash."""
        return [self.counts] if isinstance(self.counts, str) else list(self.counts or ())


FAULTS: Final[dict[str, InjectableFault]] = {}
"""All registered faults, by name."""


def fault(*, counts: str | tuple[str, ...] | None = None, on: On = "anything") -> Callable[[Strike], Strike]:
    """Register the decorated function in `FAULTS` under its name.

    The docstring of the function is the description that users read.

    Args:
        counts: see `InjectableFault.counts`.
        on: the environment that the fault needs.
    """

    def keep(strike: Strike) -> Strike:
        name = strike.__name__
        FAULTS[name] = InjectableFault(name, strike, counts, " ".join((strike.__doc__ or "").split()), on)
        return strike

    return keep


@attrs.frozen
class Struck:
    """The result of one fault, or of several that were injected together."""

    name: str
    at: float
    """When it was injected, on the loop's clock."""
    healed: float
    """Seconds from the injection until the server was at rest again."""
    outcome: str
    """``up``, ``quarantined`` or ``ended``; in a campaign also ``broken`` where a promise was not kept, and
    ``interrupted``.
    """


class Chaos:
    """Injects faults into one server under test."""

    def __init__(self, tangram: RunningTangram, *, seed: int = 0, plugin: str | None = None) -> None:
        self.tangram = tangram
        self.rng = random.Random(seed)  # noqa: S311 - reproducible
        self.plugin = plugin
        """Name of the plugin to strike; None for any."""
        self.struck: list[Struck] = []
        self.published = 0
        """Numbered messages that faults have published for their own browser."""
        self.begun = 0
        """Faults that have begun."""
        self.detoured = False
        """Whether the bus reaches Redis through the proxy of a fault now."""
        self._at_work = 0

    @property
    def alone(self) -> bool:
        """Return whether no other fault is active beside the calling one."""
        return self._at_work <= 1

    @property
    def heal_bound(self) -> float:
        """Return the seconds that a server may need to rest again: a back-off and a start."""
        return self.tangram.server.config.supervisor.backoff_max * MOST_JITTER + START_SECONDS

    async def strike(self, *names: str) -> Struck:
        """Inject one fault, or several side by side, and wait until the server is at rest again.

        Several faults begin in the order of their names and go on at the same time. A fault whose target
        another one has just stopped waits until that target runs again.

        ``steady_in_time`` bounds the time from the end of the last fault to rest. A fault that waits inside
        until something is healed has the same bound, `heal_bound`, and breaks ``ends_as_promised`` when it
        takes longer.

        Raises:
            LookupError: there is no fault of that name.
            NothingToStrike: the fault has no target, or it cannot strike here.
            StruckAlready: the target exists, but did not run at any time within the bound.
            InvariantBroken: the server did not keep a promise.
        """
        faults = [self._find(name) for name in names]
        mark, began = len(self.tangram.events), trio.current_time()
        self.begun += len(faults)
        self._at_work += len(faults)
        try:
            await self._put_in_all(faults)
            over = trio.current_time()
            outcome = await self._rest()
        finally:
            self._at_work -= len(faults)
        now = trio.current_time()
        struck = Struck(" + ".join(names), began, now - began, outcome)
        check(Evidence(healed={struck.name: now - over}, heal_bound=self.heal_bound), ["steady_in_time"])
        self.struck.append(struck)
        self._count(struck.name, faults, mark)
        return struck

    async def _rest(self) -> str:
        try:
            return await self.tangram.wait_steady(seconds=READY_SECONDS)
        except AssertionError as error:
            seen = Evidence(steady=False, missing=self.tangram.missing())
            raise InvariantBroken(broken(seen, ["comes_to_rest"])) from error

    async def _put_in_all(self, faults: Sequence[InjectableFault]) -> None:
        failed: list[InvariantBroken | NothingToStrike] = []

        async def put_in(one: InjectableFault, *, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            try:
                await self._put_in(one)
            except (InvariantBroken, NothingToStrike) as error:
                failed.append(error)

        async with trio.open_nursery() as nursery:
            for one in faults:
                # Each fault reaches its first wait before the next begins: Trio schedules tasks that are
                # only spawned in random order.
                await nursery.start(put_in, one)
        unkept = [error for error in failed if isinstance(error, InvariantBroken)]
        if len(unkept) > 1:
            raise InvariantBroken([one for error in unkept for one in error.broken]) from unkept[0]
        for found in [*unkept, *failed]:
            raise found

    async def _put_in(self, one: InjectableFault) -> None:
        """Inject one fault, and wait for a target that is being stopped or started just now."""
        until = trio.current_time() + self.heal_bound
        while True:
            try:
                await self._try(one)
            except StruckAlready:
                tangram = self.tangram
                if trio.current_time() >= until or tangram.ended or tangram.server.stopping:
                    raise
                await trio.sleep(LOOK_EVERY)
            else:
                return

    async def _try(self, one: InjectableFault) -> None:
        try:
            await one.strike(self)
        except (Exception, BaseExceptionGroup) as raised:
            error = unwrap_single(raised)
            if isinstance(error, InvariantBroken | NothingToStrike):
                raise error from None
            if not isinstance(error, Exception):
                raise
            # Errors that a client of the fault received count as well: no other client may be hurt.
            message = "it took too long" if isinstance(error, trio.TooSlowError) else _message(error)
            raise InvariantBroken([Broken("ends_as_promised", f"{one.name}: {message}")]) from error

    def _find(self, name: str) -> InjectableFault:
        try:
            return FAULTS[name]
        except KeyError:
            raise LookupError(f"there is no fault {name!r}; expected one of {', '.join(FAULTS)}") from None

    def _count(self, name: str, faults: Sequence[InjectableFault], mark: int) -> None:
        """Check that each counted fault was one crash of the child that it struck."""
        wanted = [child for one in faults for child in one.crashes]
        crashed = _crashed(self.tangram.events[mark:], outage=not OUTAGE.isdisjoint(wanted))
        if len(wanted) > 1:  # the first crash stops the others, which may still end by their own exception
            late = {event.child or "" for event in self.tangram.events[mark:] if _is_late(event)}
            crashed += sorted(late.difference(crashed))
        # Two simultaneous crashes may be noticed in either order.
        right = sorted(child.split(":")[0] for child in crashed) == sorted(wanted)
        crashes = len(crashed) if right else -len(crashed)
        found = broken(Evidence(faults=len(wanted), crashes=crashes), ["faults_are_counted"])
        if found:
            message = f"{name} should crash {wanted or 'no child'}, it crashed {crashed or 'no child'}"
            raise InvariantBroken([attrs.evolve(found[0], message=message)])

    @asynccontextmanager
    async def striking(self, *names: str) -> AsyncIterator[None]:
        """Inject one fault after another beside the block; all are over and healed at its end."""
        for name in names:
            self._find(name)

        async def strike_all() -> None:
            for name in names:
                await trio.sleep(self.rng.uniform(*PAUSE))
                await self.strike(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(strike_all)
            yield

    # -- helpers for faults ----------------------------------------------------------------------------------

    def any_plugin(self) -> str:
        """Return the child name of a plugin that runs now.

        Raises:
            NothingToStrike: there is no plugin.
            StruckAlready: there is one, but it is between two incarnations.
        """
        wanted = "plugin:" if self.plugin is None else f"plugin:{self.plugin}"
        known = [
            name
            for name in self.tangram.ports.children
            if name == wanted or (self.plugin is None and name.startswith(wanted))
        ]
        found = [name for name in self.tangram.ports.names if name in known]
        if found:
            return self.rng.choice(found)
        if known and self.tangram.missing():
            raise StruckAlready(f"{', '.join(known)} should be struck, but is between two incarnations")
        raise NothingToStrike("no plugin is running that could be struck")

    def affordable(self, seconds: float, most: float) -> float:
        """Return ``seconds`` if a real clock can afford them, or the clock is virtual.

        Raises:
            NothingToStrike: they are more than ``most``.
        """
        virtual = hasattr(trio.lowlevel.current_clock(), "autojump_threshold")
        if seconds > most and not virtual:
            raise NothingToStrike(
                f"it would take {seconds:g} s, more than {most:g} s: shorten start_timeout and stop_timeout"
            )
        return seconds

    def need_network(self) -> None:
        """Require a web port that other sockets can connect to.

        Raises:
            NothingToStrike: the web port is in memory; a listener at the port of its URL would be a
                stranger.
        """
        if self.tangram.port is not None:
            raise NothingToStrike("the web port is in memory: open the server without memory_port")

    def forgive_cut(self, what: str) -> None:
        """Excuse a connection that was cut, if another fault is active that may have cut it.

        Raises:
            StruckAlready: another fault is active.
        """
        if not self.alone:
            raise StruckAlready(f"{what}, by a fault beside it")

    async def wait_crash(self, child: str, *, after: int) -> SupervisionEvent:
        """Wait for the crash event of ``child`` among the events from ``after`` on.

        A child that ends by the injected exception after another crash has asked for its end counts as well.

        Raises:
            StruckAlready: a fault beside this one had stopped the child before.
            AssertionError: the crash was not reported within `heal_bound`.
        """
        tangram = self.tangram
        with trio.move_on_after(self.heal_bound):
            while True:
                for event in tangram.events[after:]:
                    if event.child == child and (event.kind == "crashed" or _is_late(event)):
                        return event
                    if event.child == child and event.kind == "stopped" and not self.alone:
                        raise StruckAlready(f"{child!r} was stopped before it could crash")
                if tangram.ended:
                    break
                await tangram.wait_change()
        came = [f"{event.kind} {event.child}" for event in tangram.events[after:]]
        raise AssertionError(f"the crash of {child!r} was not reported; the events were {came}")

    async def wait_events(
        self, kind: str, child: str, count: int, *, after: int, seconds: float | None = None
    ) -> None:
        """Wait until ``count`` events of ``kind`` and ``child`` have come since ``after``.

        Args:
            kind: of the events.
            child: of the events.
            count: how many are awaited.
            after: index of the first event that counts.
            seconds: the bound; `heal_bound` unless given.

        Raises:
            NothingToStrike: the child was quarantined before, or the server gave up.
            AssertionError: they did not come in time.
        """
        seconds = self.heal_bound if seconds is None else seconds
        events = self.tangram.events
        came = 0
        with trio.move_on_after(seconds):
            while True:
                since = events[after:]
                came = sum(event.kind == kind and event.child == child for event in since)
                if came >= count:
                    return
                if any(event.kind == "quarantined" and event.child == child for event in since):
                    raise NothingToStrike(f"{child!r} was quarantined before it could be struck again")
                if gave_up(since):
                    raise NothingToStrike(f"the server gave up before {child!r} could be struck again")
                await self.tangram.wait_change()
        raise AssertionError(f"{came} events {kind!r} of {child!r} came within {seconds:g} s, not {count}")

    async def wait_bus(self, *, up: bool = True, seconds: float | None = None) -> None:
        """Wait until the bus is up, or down, within ``seconds`` (`heal_bound` unless given)."""
        seconds = self.heal_bound if seconds is None else seconds
        with trio.move_on_after(seconds):
            while self._bus_is_up() != up:  # noqa: ASYNC110 - the bus of the next incarnation is another one
                await trio.sleep(LOOK_EVERY)
            return
        raise AssertionError(f"the bus should be {'up' if up else 'down'} within {seconds:g} s")

    def _bus_is_up(self) -> bool:
        tree = self.tangram.server.tree
        return tree is not None and tree.incarnation.bus is not None and tree.incarnation.bus.up

    def broker_pid(self) -> int:
        """Return the process id of the server's own broker; no other is ever touched.

        Raises:
            NothingToStrike: there is none.
        """
        tree = self.tangram.server.tree
        pid = None if tree is None or tree.broker is None else tree.broker.statistics().pid
        if pid is None:
            raise NothingToStrike("the server has no broker process of its own")
        return pid


def gave_up(events: Sequence[SupervisionEvent]) -> bool:
    """Return whether the server gave up.

    It does when its own restart budget is spent, when a plugin's is where that ends the server, or when a
    child of a supervisor that gave up does not end.
    """
    return any(
        event.kind == "gave_up" and (event.path in {(), ("incarnation",)} or event.child is not None)
        for event in events
    )


def _crashed(events: Sequence[SupervisionEvent], *, outage: bool) -> list[str]:
    """Return the children that crashed; with ``outage`` without those that only missed Redis."""
    return [
        event.child or ""
        for event in events
        if event.kind == "crashed"
        and event.supervisor in {"root", "incarnation"}
        # An incarnation that gave up ends with an exception; that is no crash of its own.
        and not (event.child == "incarnation" and gave_up(events))
        and (event.child == "broker" or not (outage and _blames_redis(event)))
    ]


def _is_late(event: SupervisionEvent) -> bool:
    """Return whether an injected exception ended a child that was being stopped already.

    That is no crash (rule 7 of supervision).
    """
    return event.kind == "stopped" and (event.cause or "").startswith(_INJECTED)


def _blames_redis(event: SupervisionEvent) -> bool:
    return (event.cause or "").startswith("tangram.errors.BrokerUnavailable")


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, AssertionError) else repr(error)
