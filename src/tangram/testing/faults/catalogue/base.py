"""What a fault is, and who puts it in: `Chaos`. The faults themselves stand beside this file, by who is
struck.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Literal

import attrs
import trio

from tangram.groups import unwrap_single
from tangram.supervision import SupervisionEvent
from tangram.testing.checks.invariants import Broken, Evidence, InvariantBroken, broken, check
from tangram.testing.run.server import RunningTangram
from tangram.testing.seams.injection import InjectedFault, NothingToStrike, StruckAlready

__all__ = ["FAULTS", "Chaos", "InjectableFault", "On", "Struck", "fault", "gave_up"]

PAUSE = (0.05, 0.2)
"""Seconds between two faults that strike beside a test."""

READY_SECONDS = 30.0
"""Seconds that are waited for a server to be at rest again after a fault, before it is given up: longer than
any bound, so that who is late is told with how late it was."""

START_SECONDS = 5.0
"""Seconds for everything to start, on a slow machine: it takes a tenth of one."""

MOST_JITTER = 1.2
"""Of a back-off, at most: a restart may have to wait so long before it begins."""

LOOK_EVERY = 0.01
"""Seconds between two looks at what has no event of its own."""

OUTAGE = frozenset({"broker", "bus"})
"""Children without which nothing reaches Redis: a service that does not expect that ends with them."""

_INJECTED = f"{InjectedFault.__module__}.{InjectedFault.__qualname__}"

Strike = Callable[["Chaos"], Awaitable[None]]

On = Literal["anything", "sockets", "real", "process"]
"""What a fault needs: nothing (it works on fakes under a virtual clock, and on a real server), real sockets
for a proxy (the broker may be in memory, the clock virtual), a real broker or real time, or a server in a
process of its own, which it starts and ends itself: the promise is about the end of a process, or the fault
would hurt the test as well."""


@attrs.frozen
class InjectableFault:
    """One kind of fault."""

    name: str
    strike: Strike
    counts: str | tuple[str, ...] | None
    """The child whose crash it should count as, ``plugin`` for any; several where it should be several
    crashes; None where it should crash nobody."""
    about: str
    on: On = "anything"
    """What it needs."""

    @property
    def strikes_plugin(self) -> bool:
        """Whether it strikes one plugin and nothing else."""
        return set(self.crashes) == {"plugin"}

    @property
    def crashes(self) -> list[str]:
        """Whom it should crash."""
        return [self.counts] if isinstance(self.counts, str) else list(self.counts or ())


FAULTS: dict[str, InjectableFault] = {}
"""All of them, by name."""


def fault(*, counts: str | tuple[str, ...] | None = None, on: On = "anything") -> Callable[[Strike], Strike]:
    """Decorator: keep a function in `FAULTS` under its name; its docstring is what is told of it."""

    def keep(strike: Strike) -> Strike:
        name = strike.__name__
        FAULTS[name] = InjectableFault(name, strike, counts, " ".join((strike.__doc__ or "").split()), on)
        return strike

    return keep


@attrs.frozen
class Struck:
    """One fault that was put in, or several at once."""

    name: str
    at: float
    """On the loop's clock."""
    healed: float
    """Seconds from the beginning until everything was at rest again, the fault itself among them."""
    outcome: str
    """``up``, ``quarantined`` or ``ended``; in a campaign ``broken`` where it did not end as promised."""


class Chaos:
    """Puts faults into one server."""

    def __init__(self, tangram: RunningTangram, *, seed: int = 0, plugin: str | None = None) -> None:
        self.tangram = tangram
        self.rng = random.Random(seed)  # noqa: S311 - reproducible
        self.plugin = plugin
        """The plugin that is struck; None: any."""
        self.struck: list[Struck] = []
        self.told = 0
        """Messages that faults have published for their own browser."""
        self.begun = 0
        """Faults that were begun."""
        self.detoured = False
        """The bus reaches Redis through a fault's proxy now."""
        self._at_work = 0

    @property
    def alone(self) -> bool:
        """Whether no fault strikes beside the one that asks."""
        return self._at_work <= 1

    @property
    def heal_bound(self) -> float:
        """Seconds that a server may need to be at rest again: its longest back-off, and a start."""
        return self.tangram.server.config.supervisor.backoff_max * MOST_JITTER + START_SECONDS

    async def strike(self, *names: str) -> Struck:
        """Put in one fault, or several side by side, and wait until the server is at rest again.

        Several are begun in the order of their names, and go on at the same time. Whom one of them has
        stopped just then is struck by the other as soon as it is there again.

        What is bounded (``steady_in_time``) is the time from the end of the last fault to rest. A fault that
        waits inside until something is healed has the same bound for that, `heal_bound`, and is told by
        ``ends_as_promised`` where it takes longer.

        Raises:
            LookupError: there is no fault of that name.
            NothingToStrike: there is nothing that it could strike, or not here.
            StruckAlready: there is, and it was not there all the time.
            InvariantBroken: the server did not do about it what it promises.
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
                # Each has come to its first wait before the next begins: Trio draws the order of those that
                # are only spawned.
                await nursery.start(put_in, one)
        unkept = [error for error in failed if isinstance(error, InvariantBroken)]
        if len(unkept) > 1:
            raise InvariantBroken([one for error in unkept for one in error.broken]) from unkept[0]
        for found in [*unkept, *failed]:
            raise found

    async def _put_in(self, one: InjectableFault) -> None:
        """One fault; who is being stopped or started just now is waited for."""
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
            # Also what a client of the fault was told: nobody who comes by should be hurt.
            told = "it took too long" if isinstance(error, trio.TooSlowError) else _told(error)
            raise InvariantBroken([Broken("ends_as_promised", f"{one.name}: {told}")]) from error

    def _find(self, name: str) -> InjectableFault:
        try:
            return FAULTS[name]
        except KeyError:
            raise LookupError(f"there is no fault {name!r}; expected one of {', '.join(FAULTS)}") from None

    def _count(self, name: str, faults: Sequence[InjectableFault], mark: int) -> None:
        """A fault that should count is one crash, of the child that it struck."""
        wanted = [child for one in faults for child in one.crashes]
        crashed = _crashed(self.tangram.events[mark:], outage=not OUTAGE.isdisjoint(wanted))
        if len(wanted) > 1:  # the first to be told has the others stopped, which may end by their own as well
            late = {event.child or "" for event in self.tangram.events[mark:] if _is_late(event)}
            crashed += sorted(late.difference(crashed))
        # Two at once may be noticed in either order.
        right = sorted(child.split(":")[0] for child in crashed) == sorted(wanted)
        crashes = len(crashed) if right else -len(crashed)
        found = broken(Evidence(faults=len(wanted), crashes=crashes), ["faults_are_counted"])
        if found:
            message = f"{name} should crash {wanted or 'nobody'}, it crashed {crashed or 'nobody'}"
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

    # -- what faults need ------------------------------------------------------------------------------------

    def any_plugin(self) -> str:
        """The child of a plugin that runs now.

        Raises:
            NothingToStrike: there is none.
            StruckAlready: there is one, between two lives.
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
            raise StruckAlready(f"{', '.join(known)} should be struck, and nothing of it runs just now")
        raise NothingToStrike("no plugin runs that could be struck")

    def affordable(self, seconds: float, most: float) -> float:
        """``seconds``, if they are few enough for real time, or the clock is a virtual one.

        Raises:
            NothingToStrike: they are not.
        """
        virtual = hasattr(trio.lowlevel.current_clock(), "autojump_threshold")
        if seconds > most and not virtual:
            raise NothingToStrike(
                f"it would take {seconds:g} s, more than {most:g} s: shorten start_timeout and stop_timeout"
            )
        return seconds

    def need_network(self) -> None:
        """The web port is one that others can dial.

        Raises:
            NothingToStrike: it is one in memory; who listens at the port of its URL is a stranger.
        """
        if self.tangram.port is not None:
            raise NothingToStrike("the web port is one in memory: open the server without memory_port")

    def forgive_cut(self, what: str) -> None:
        """A connection was cut: by a crash that struck beside this fault it may be; else this does nothing.

        Raises:
            StruckAlready: another fault strikes, too.
        """
        if not self.alone:
            raise StruckAlready(f"{what}, by what struck beside it")

    async def wait_crash(self, child: str, *, after: int) -> SupervisionEvent:
        """Its crash, of which there must be one since ``after``; or its end by what was put in, where another
        crash had asked for that end just before.

        Raises:
            StruckAlready: a fault beside this one had stopped it before.
            AssertionError: it was not told.
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
                await trio.sleep(LOOK_EVERY)
        came = [f"{event.kind} {event.child}" for event in tangram.events[after:]]
        raise AssertionError(f"the crash of {child!r} was not told; what came was {came}")

    async def wait_events(
        self, kind: str, child: str, count: int, *, after: int, seconds: float | None = None
    ) -> None:
        """Until so many events of ``kind`` and ``child`` have come since ``after``; within `heal_bound`,
        unless other ``seconds`` are given.

        Raises:
            NothingToStrike: the child was quarantined before, or the server gave up.
            AssertionError: they did not come.
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
                await trio.sleep(LOOK_EVERY)
        raise AssertionError(f"{came} events {kind!r} of {child!r} came within {seconds:g} s, not {count}")

    async def wait_bus(self, *, up: bool = True, seconds: float | None = None) -> None:
        """Until the bus is up, or down; within `heal_bound`, unless other ``seconds`` are given."""
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
        """The process that the server started; only a broker of its own is ever touched.

        Raises:
            NothingToStrike: there is none.
        """
        tree = self.tangram.server.tree
        pid = None if tree is None or tree.broker is None else tree.broker.statistics().pid
        if pid is None:
            raise NothingToStrike("the server has no broker process of its own")
        return pid


def gave_up(events: Sequence[SupervisionEvent]) -> bool:
    """Whether the server gave up: a budget of its own was spent, or a plugin's where that ends it, or
    somebody who gave up cannot end.
    """
    return any(
        event.kind == "gave_up" and (event.path in {(), ("incarnation",)} or event.child is not None)
        for event in events
    )


def _crashed(events: Sequence[SupervisionEvent], *, outage: bool) -> list[str]:
    """Who crashed; with ``outage`` without those that only missed Redis."""
    return [
        event.child or ""
        for event in events
        if event.kind == "crashed"
        and event.supervisor in {"root", "incarnation"}
        # The end of one that gave up is no crash of its own.
        and not (event.child == "incarnation" and gave_up(events))
        and (event.child == "broker" or not (outage and _blames_redis(event)))
    ]


def _is_late(event: SupervisionEvent) -> bool:
    """An end by what a fault has put in, when the stop was asked for already: no crash (rule 7)."""
    return event.kind == "stopped" and (event.cause or "").startswith(_INJECTED)


def _blames_redis(event: SupervisionEvent) -> bool:
    return (event.cause or "").startswith("tangram.errors.BrokerUnavailable")


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, AssertionError) else repr(error)
