"""The Trio shell of supervision: carries out what ``decide`` decides, and reports what came of it.

Every child runs in a task of the supervisor's nursery, in a shielded cancel scope of its own. Its last act
is to report its end; the report is put into the decider at once, and the effects that come back are carried
out at once, all synchronously: between a crash and the cancelling of the first sibling there is no
scheduling at all. One more task keeps the time, and sees to it that a supervisor which is cancelled itself
stops its children in order all the same.
"""

from __future__ import annotations

import contextvars
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TypedDict, Unpack

import attrs
import structlog
import trio

from tangram.errors import NoSuchChild, StartFailed
from tangram.supervision.child_task import CURRENT_CHILD_TASK, ChildTask, OnEvent, Started, takes_task_status
from tangram.supervision.decide import Decider
from tangram.supervision.event_logging import log_event
from tangram.supervision.outcome import failure_of, raise_outcome, statistics_of
from tangram.supervision.records import attach_crash, crash_of, fatal_leaf, where_stands
from tangram.supervision.spec import (
    AutoShutdown,
    Backoff,
    Child,
    Crash,
    Strategy,
    SupervisionEvent,
    SupervisorStatistics,
    Window,
    check_supervisor,
)
from tangram.supervision.table import AT_REST, Cancel, Effect, Entry, Start, State

__all__ = ["Settings", "Supervisor", "open_supervisor", "run_supervisor"]

log = structlog.get_logger("tangram.supervision")

FOREVER = 1e9
"""Seconds, 31 years: what is further away is never, for Trio takes no arbitrarily late deadlines."""


class Settings(TypedDict, total=False):
    """What `open_supervisor` takes beside the children."""

    name: str
    strategy: Strategy
    restarts: int
    window: float | Window
    backoff: Backoff
    auto_shutdown: AutoShutdown
    shutdown_timeout: float
    clock: Callable[[], float]
    rng: random.Random | None
    on_event: OnEvent | None


class Supervisor:
    """A running supervisor; made by `open_supervisor`, never directly."""

    def __init__(self, decider: Decider, clock: Callable[[], float], on_event: OnEvent | None) -> None:
        self._decider = decider
        self._clock = clock
        self.parent = CURRENT_CHILD_TASK.get()
        """The life in which it was opened; None for the outermost."""
        # A supervisor below another tells its events to the same listener, unless it is given one of its own.
        inherited = None if self.parent is None else self.parent.supervisor.on_event
        self.on_event: OnEvent | None = on_event or inherited
        self._context = contextvars.copy_context()
        self._lives: dict[str, ChildTask] = {}
        self._errors: dict[str, BaseException] = {}
        self._changed = trio.Event()
        self._body = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._inbox: deque[Callable[[], list[Effect]]] = deque()
        self._posting = False
        self._broken: BaseException | None = None

    @property
    def name(self) -> str:
        """The supervisor's name."""
        return self._decider.name

    @property
    def path(self) -> tuple[str, ...]:
        """The names of the children in which it stands, from the outermost supervisor down."""
        return () if self.parent is None else (*self.parent.supervisor.path, self.parent.child)

    # -- what others ask for -------------------------------------------------------------------------------

    async def start_child(self, child: Child) -> object:
        """Add a child behind all others and start it; gives what it reported with
        ``task_status.started(value)``.

        Raises:
            SpecError: there is a child of that name already, or it does not fit the supervisor.
            StartFailed: it did not start; it is not kept.
        """
        self._post(lambda: self._decider.add(child, self._clock()))
        entry = self._decider.entries.get(child.name)
        if entry is None or entry.spec is not child:
            raise StartFailed(
                child.name, f"supervisor {self.name!r} is stopping; child {child.name!r} is not started"
            )
        return await self._until_up(entry)

    async def stop_child(self, name: str) -> None:
        """Stop a child, or give up its restart; a temporary one is forgotten. Returns when it is gone.

        Raises:
            NoSuchChild: there is none of that name.
        """
        entry = self._decider.entry(name)
        self._post(lambda: self._decider.stop(name, self._clock()))
        await self._until(lambda: entry.state in AT_REST)

    async def restart_child(self, name: str) -> object:
        """Start a child that was stopped, finished or is quarantined; a running one is stopped first. Not
        charged.

        Raises:
            NoSuchChild: there is none of that name.
            StartFailed: it did not start. It rests as it did before; one that was running is retried as
            after a crash, and may be up again by then.
        """
        entry = self._decider.entry(name)
        above = entry.incarnation
        self._post(lambda: self._decider.restart(name, self._clock()))
        return await self._until_up(entry, above=above)

    def delete_child(self, name: str) -> None:
        """Forget a child that is stopped, finished or quarantined.

        Raises:
            NoSuchChild: there is none of that name.
            SpecError: it is not at rest.
        """
        self._decider.entry(name)
        self._post(lambda: self._decider.delete(name, self._clock()))

    async def restart_all(self, *, reason: str = "") -> None:
        """Stop all in reverse order and start all in order; no window is charged. Returns when all are up,
        or it ended.
        """
        self._post(lambda: self._decider.restart_all(self._clock(), reason))
        await self._until(lambda: self._decider.phase in ("up", "closed"))

    def hurry(self) -> None:
        """What was missing is back: end every back-off, also below."""
        self._post(lambda: self._decider.hurry(self._clock()))
        for life in self._lives.values():
            for nested in life.nested:
                nested.hurry()

    def adjust(
        self, times: Mapping[str, tuple[float, float]], *, backoff: Backoff, shutdown_timeout: float
    ) -> None:
        """Other limits from the next start, stop and back-off on; whoever starts or stops now keeps its own.

        ``times`` names children, each with its ``start_timeout`` and ``stop_timeout``; all are seconds.

        Raises:
            NoSuchChild: there is none of that name.
            SpecError: a time is not more than 0; nothing is changed.
        """
        check_supervisor(
            [], strategy=self._decider.strategy, auto_shutdown="never", shutdown_timeout=shutdown_timeout
        )
        self._decider.adjust(times, backoff, shutdown_timeout)

    async def wait(self) -> None:
        """Until the supervisor has ended by itself (``auto_shutdown``)."""
        await self._until(lambda: self._decider.closed)

    def value(self, name: str) -> object:
        """What the running incarnation of a child reported when it was started.

        Raises:
            NoSuchChild: there is none of that name, or it is not running.
        """
        self._decider.entry(name)
        life = self._lives.get(name)
        if life is None or not life.is_up:
            raise NoSuchChild(f"child {name!r} of supervisor {self.name!r} is not running")
        return life.value

    def statistics(self) -> SupervisorStatistics:
        """The whole tree below, as it is now; readable at any time, also in the middle of a restart."""
        return statistics_of(self._decider, self._lives, self._clock())

    # -- waiting for what was asked for --------------------------------------------------------------------

    async def _until(self, is_so: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint()
        while not is_so():
            await self._changed.wait()

    async def _until_up(self, entry: Entry, *, above: int = 0) -> object:
        def failed() -> Crash | None:
            # Kept also when a retry has come up meanwhile: who asked is told of the start that was asked for.
            return entry.failure if entry.failure is not None and entry.failure.incarnation > above else None

        def over() -> bool:
            again = entry.incarnation > above and entry.state is State.RUNNING
            return again or failed() is not None or entry.state in AT_REST or self._decider.closing

        name = entry.spec.name
        await self._until(over)
        if (failure := failed()) is not None:
            # Not before it is gone: who is told of a failed start may try again at once. It is gone as well
            # where it was retried already; and a supervisor that closes takes nothing more.
            await self._until(
                lambda: entry.gone or entry.incarnation > failure.incarnation or self._decider.closing
            )
            raise self._start_failed(entry, failure)
        if entry.state is State.RUNNING:
            return self._lives[name].value
        if entry.state is State.STOPPED or self._decider.closing:
            raise StartFailed(name, f"child {name!r} was stopped before it had started")
        return None

    def _start_failed(self, entry: Entry, failure: Crash) -> StartFailed:
        name = entry.spec.name
        error = StartFailed(
            name, f"child {name!r} of supervisor {self.name!r} did not start: {failure.cause}"
        )
        attach_crash(error, failure)
        error.__cause__ = (
            self._errors.pop(name, None) if entry.state is State.REMOVED else self._errors.get(name)
        )
        return error

    # -- events in, effects out ----------------------------------------------------------------------------

    def _post(self, event: Callable[[], list[Effect]]) -> None:
        """Put one event into the decider and carry out what comes back, in order, also when a listener
        posts more.
        """
        if self._posting:
            self._inbox.append(event)
            return
        self._posting = True
        try:
            while True:
                for effect in event():
                    self._carry_out(effect)
                if not self._inbox:
                    break
                event = self._inbox.popleft()
        finally:
            self._posting = False
            if self._decider.failure is not None:
                self._body.cancel()
            self._changed.set()
            self._changed = trio.Event()

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Start):
            self._start(effect)
        elif isinstance(effect, Cancel):
            life = self._lives[effect.child]
            life.stop_due = self._clock() + effect.limit
            life.scope.cancel()
        else:
            self._tell(effect.event)

    def _start(self, effect: Start) -> None:
        assert self._nursery is not None
        assert effect.child not in self._lives, "two incarnations of a child overlap"
        life = ChildTask(child=effect.child, incarnation=effect.incarnation, supervisor=self)
        self._lives[effect.child] = life
        # A task inherits the context of whoever starts it, which may be a child that has just crashed:
        # start it from a copy of the context in which the supervisor was opened.
        context = self._context.copy()
        context.run(CURRENT_CHILD_TASK.set, life)
        context.run(
            lambda: self._open_nursery.start_soon(self._live, life, name=f"{self.name}/{effect.child}")
        )

    @property
    def _open_nursery(self) -> trio.Nursery:
        assert self._nursery is not None
        return self._nursery

    def _tell(self, event: SupervisionEvent) -> None:
        where = None
        if event.kind in {"stubborn", "gave_up"} and event.child is not None:
            where = self._where(event.child)
        path = (*self.path, event.child) if event.child is not None else self.path
        event = attrs.evolve(event, path=path, where=where)
        # Neither may cost the effects that follow: behind a cancel or a start that is lost all wait for ever.
        self._hand(event, log_event)
        if self.on_event is not None:
            self._hand(event, self.on_event)

    def _hand(self, event: SupervisionEvent, listener: OnEvent) -> None:
        try:
            listener(event)
        except Exception:
            # The log itself may be what failed, and then cannot be told of.
            with suppress(Exception):
                log.exception(
                    "a listener to supervision events failed", supervisor=self.name, kind=event.kind
                )

    def _where(self, name: str) -> str | None:
        life = self._lives.get(name)
        return None if life is None or life.task is None else where_stands(life.task)

    # -- the children's tasks ------------------------------------------------------------------------------

    async def _live(self, life: ChildTask) -> None:
        """One incarnation: nothing that a child raises leaves this task; it is reported."""
        run = self._decider.entries[life.child].spec.run
        life.task = trio.lowlevel.current_task()
        error: BaseException | None = None
        try:
            with life.scope:
                if life.scope.cancel_called:
                    pass  # stopped in the very step in which it was started
                elif takes_task_status(run):
                    await run(task_status=Started(life, self._report_started))
                else:
                    self._report_started(life, None)
                    await run()
        except BaseException as caught:  # noqa: BLE001 - all of it is reported, and the decider decides
            error = caught
        self._report_ended(life, error)

    def _report_started(self, life: ChildTask, value: object) -> None:
        life.is_up = True
        life.value = value
        self._errors.pop(life.child, None)
        self._post(lambda: self._decider.started(life.child, self._clock()))

    def _report_ended(self, life: ChildTask, error: BaseException | None) -> None:
        now = self._clock()
        del self._lives[life.child]
        life.task = None
        if error is None:
            self._post(lambda: self._decider.ended(life.child, now))
            return
        crash = crash_of(life.child, error, at=now, incarnation=life.incarnation)
        fatal = fatal_leaf(error)
        self._errors[life.child] = fatal or error
        entry = self._decider.entries[life.child]
        self._post(lambda: self._decider.ended(life.child, now, crash, fatal=fatal is not None))
        awaited = entry.failure is not None and entry.failure.incarnation == life.incarnation
        if entry.state is State.REMOVED and not awaited:
            # Nobody will ask for it, and a pool of workers that crash must not keep the frames of each.
            self._errors.pop(life.child, None)

    async def _keep_time(self) -> None:
        try:
            await self._tick_until_closed()
        except BaseException as error:  # noqa: BLE001 - raised again by `raise_outcome`
            # Kept, not raised on: a cancellation reaches the block as well, which raises it when all
            # children are gone.
            if not isinstance(error, trio.Cancelled):
                self._broken = error
            self._close()
            # The deadline of this shield is the decider's: each child's stop time and the total of the
            # stop. What is stubborn past them Trio cannot end; it is named each stop time.
            with trio.CancelScope(shield=True):
                await self._tick_until_closed()

    async def _tick_until_closed(self) -> None:
        while not self._decider.closed:
            now = self._clock()
            wait = self._decider.wake_at(now) - now
            changed = self._changed
            if wait > 0:
                with trio.move_on_after(wait if wait < FOREVER else math.inf):
                    await changed.wait()
                    continue
            else:
                await trio.lowlevel.checkpoint()
            self._post(lambda: self._decider.tick(self._clock()))

    def _close(self) -> None:
        # A supervisor below another may use no more time than is left of its own stop.
        due = math.inf if self.parent is None else self.parent.stop_due
        if not self._decider.closed:
            self._post(lambda: self._decider.close(self._clock(), due))

    # -- the whole -----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _hold(self) -> AsyncIterator[Supervisor]:
        """The supervisor's whole life, around the block of `open_supervisor`."""
        decider = self._decider
        error: BaseException | None = None
        async with trio.open_nursery() as nursery:
            self._open(nursery)
            try:
                await self._until(lambda: decider.booted or decider.closed)
                if decider.failure is None:
                    with self._body:
                        yield self
            except BaseException as caught:  # noqa: BLE001 - raised again below, when all children are gone
                error = caught
            self._close()
            # No deadline here: the decider bounds each stop, and names who goes on past it.
            with trio.CancelScope(shield=True):
                await self._until(lambda: decider.closed)
        if self.parent is not None:
            self.parent.nested.remove(self)
        failure = failure_of(decider, self._errors) or self._broken
        raise_outcome(self.name, failure, error, from_inside=nursery.cancel_scope.cancel_called)

    def _open(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        if self.parent is not None:
            self.parent.nested.append(self)
        nursery.start_soon(self._keep_time, name=f"{self.name}: time")
        self._post(lambda: self._decider.open(self._clock()))


@asynccontextmanager
async def open_supervisor(
    children: Iterable[Child] = (),
    *,
    name: str = "root",
    strategy: Strategy = "one_for_all",
    restarts: int = 3,
    window: float | Window = 60.0,
    backoff: Backoff | None = None,
    auto_shutdown: AutoShutdown = "never",
    shutdown_timeout: float = 10.0,
    clock: Callable[[], float] = trio.current_time,
    rng: random.Random | None = None,
    on_event: OnEvent | None = None,
) -> AsyncIterator[Supervisor]:
    """Start the children in order, keep them running, and stop them in reverse order at the end of the block.

    Args:
        children: in start order.
        name: for logs and events.
        strategy: who goes with a child that crashes.
        restarts: so many within ``window`` seconds are allowed; one more ends the supervisor.
        window: seconds, or a `Window` that is shared with others (then ``restarts`` is not used).
        backoff: the delays before restarts.
        auto_shutdown: whether the end of a significant child ends the supervisor.
        shutdown_timeout: seconds for the whole stop, whatever the children's own stop times.
        clock: gives seconds.
        rng: where the jitter comes from.
        on_event: called with each `SupervisionEvent`; must not block.

    Raises:
        SpecError: a child or the supervisor is declared wrongly.
        StartFailed: a child did not start at first boot; the block is not entered.
        RestartsExhausted: too many restarts; the block is cancelled.
        ChildStubborn: a child that should be restarted did not end within three stop times; the block is
        cancelled.
    """
    listed = check_supervisor(
        children, strategy=strategy, auto_shutdown=auto_shutdown, shutdown_timeout=shutdown_timeout
    )
    decider = Decider(
        listed,
        name=name,
        strategy=strategy,
        window=window if isinstance(window, Window) else Window(restarts, window),
        backoff=backoff or Backoff(),
        auto_shutdown=auto_shutdown,
        shutdown_timeout=shutdown_timeout,
        draw=(rng or random.Random()).random,  # noqa: S311 - jitter is no secret
    )
    supervisor = Supervisor(decider, clock, on_event)
    async with supervisor._hold():  # noqa: SLF001 - the only door to it
        yield supervisor


async def run_supervisor(
    children: Iterable[Child] | Callable[[], Iterable[Child]],
    *,
    task_status: trio.TaskStatus[Supervisor] = trio.TASK_STATUS_IGNORED,
    **settings: Unpack[Settings],
) -> None:
    """A supervisor as a child: ``Child("inner", partial(run_supervisor, make_children, name="inner"))``.

    ``children`` may be a function; then each incarnation has new ones. Reports its start, with the
    `Supervisor`, when all children are up; returns when it has ended by itself; raises as `open_supervisor`
    does.
    """
    listed = children() if callable(children) else children
    async with open_supervisor(listed, **settings) as supervisor:
        task_status.started(supervisor)
        await supervisor.wait()
