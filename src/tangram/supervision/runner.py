"""The Trio shell of supervision: carries out the effects of ``decide``.

Every child runs in a task of the supervisor's nursery, in a shielded cancel scope of its own. The last
action of that task is to report its end. The report goes to the decider at once, and the returned effects
are carried out at once, all synchronously: between a crash and the cancellation of the first sibling no
other task runs. One more task keeps the time, and makes a supervisor that is itself cancelled stop its
children in order.
"""

from __future__ import annotations

import contextvars
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, TypedDict, Unpack

import attrs
import structlog
import trio

from tangram import defaults
from tangram.errors import NoSuchChild, StartFailed
from tangram.supervision.child_task import (
    CURRENT_CHILD_TASK,
    ChildTask,
    OnEvent,
    takes_task_status,
)
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
from tangram.task_status import RelayedStatus

__all__ = ["Settings", "Supervisor", "open_supervisor", "run_supervisor"]

log = structlog.get_logger("tangram.supervision")

FOREVER: Final = 1e9
"""Seconds (31 years) from which a wait has no deadline, because Trio takes no arbitrarily late ones."""


class Settings(TypedDict, total=False):
    """The keyword arguments of `open_supervisor`."""

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
    """A running supervisor, made by `open_supervisor` and never directly."""

    def __init__(self, decider: Decider, clock: Callable[[], float], on_event: OnEvent | None) -> None:
        self._decider = decider
        self._clock = clock
        self.parent = CURRENT_CHILD_TASK.get()
        """The child's task in which it was opened; None for the outermost."""
        # A nested supervisor hands its events to the listener of the one above, unless it has its own.
        inherited = None if self.parent is None else self.parent.supervisor.on_event
        self.on_event: OnEvent | None = on_event or inherited
        self._context = contextvars.copy_context()
        self._tasks: dict[str, ChildTask] = {}
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
        """The names of the children around it, from the outermost supervisor down."""
        return () if self.parent is None else (*self.parent.supervisor.path, self.parent.child)

    # -- requests -----------------------------------------------------------------------------------------

    async def start_child(self, child: Child) -> object:
        """Add a child behind all others and start it.

        Returns:
            The value that it reported with ``task_status.started(value)``.

        Raises:
            SpecError: there is a child of that name already, or it does not fit the supervisor.
            StartFailed: it did not start; the child is forgotten.
        """
        self._post(lambda: self._decider.add(child, self._clock()))
        entry = self._decider.entries.get(child.name)
        if entry is None or entry.spec is not child:
            raise StartFailed(
                child.name, f"supervisor {self.name!r} is stopping; child {child.name!r} is not started"
            )
        return await self._until_up(entry)

    async def stop_child(self, name: str) -> None:
        """Stop a child, or give up its restart, and wait for its end.

        A temporary child is forgotten.

        Raises:
            NoSuchChild: there is none of that name.
        """
        entry = self._decider.entry(name)
        self._post(lambda: self._decider.stop(name, self._clock()))
        await self._until(lambda: entry.state in AT_REST)

    async def restart_child(self, name: str) -> object:
        """Start a child that is stopped, finished or quarantined; stop a running one first.

        No window is charged.

        Returns:
            The value that it reported with ``task_status.started(value)``.

        Raises:
            NoSuchChild: there is none of that name.
            StartFailed: it did not start. It is in its state of before; a child that was running is retried
                as after a crash, and may be up again already.
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
        """Stop all children in reverse order and start them in order.

        No window is charged. Returns when all children are up, or the supervisor has ended.

        Args:
            reason: appears as ``cause`` in the ``planned`` event.
        """
        self._post(lambda: self._decider.restart_all(self._clock(), reason))
        await self._until(lambda: self._decider.phase in ("up", "closed"))

    def hurry(self) -> None:
        """Skip pending back-off delays, also in nested supervisors, because Redis is back."""
        self._post(lambda: self._decider.hurry(self._clock()))
        for task in self._tasks.values():
            for nested in task.nested:
                nested.hurry()

    def adjust(
        self, times: Mapping[str, tuple[float, float]], *, backoff: Backoff, shutdown_timeout: float
    ) -> None:
        """Set other limits, in seconds, for starts, stops and back-offs from now on.

        Args:
            times: for each named child its ``(start_timeout, stop_timeout)``.
            backoff: the delays before restarts.
            shutdown_timeout: the limit of a whole stop.

        Raises:
            NoSuchChild: there is none of that name.
            SpecError: a time is not more than 0; nothing is changed.
        """
        check_supervisor(
            [], strategy=self._decider.strategy, auto_shutdown="never", shutdown_timeout=shutdown_timeout
        )
        self._decider.adjust(times, backoff, shutdown_timeout)

    async def wait(self) -> None:
        """Wait until the supervisor has ended by itself (``auto_shutdown``)."""
        await self._until(lambda: self._decider.closed)

    def value(self, name: str) -> object:
        """Return the value with which the running incarnation of a child reported its start.

        Raises:
            NoSuchChild: there is none of that name, or it is not running.
        """
        self._decider.entry(name)
        task = self._tasks.get(name)
        if task is None or not task.is_up:
            raise NoSuchChild(f"child {name!r} of supervisor {self.name!r} is not running")
        return task.value

    def statistics(self) -> SupervisorStatistics:
        """Return the state of the whole tree below; allowed at any time, also during a restart."""
        return statistics_of(self._decider, self._tasks, self._clock())

    # -- waiting for the result of a request ---------------------------------------------------------------

    async def _until(self, is_so: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint()
        while not is_so():
            await self._changed.wait()

    async def _until_up(self, entry: Entry, *, above: int = 0) -> object:
        def failed() -> Crash | None:
            # Kept also when a retry has succeeded: the caller asked for this start, and gets its failure.
            return entry.failure if entry.failure is not None and entry.failure.incarnation > above else None

        def over() -> bool:
            again = entry.incarnation > above and entry.state is State.RUNNING
            return again or failed() is not None or entry.state in AT_REST or self._decider.closing

        name = entry.spec.name
        await self._until(over)
        if (failure := failed()) is not None:
            # Wait for the task's end, because the caller may try again at once. A child that was retried has
            # ended too; and a supervisor that is closing takes no further request.
            await self._until(
                lambda: entry.gone or entry.incarnation > failure.incarnation or self._decider.closing
            )
            raise self._start_failed(entry, failure)
        if entry.state is State.RUNNING:
            return self._tasks[name].value
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
        """Put one event into the decider and carry out its effects in order.

        A listener may post further events meanwhile: they are handled after these effects.
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
            task = self._tasks[effect.child]
            task.due = self._clock() + effect.limit
            task.scope.cancel()
        else:
            self._publish(effect.event)

    def _start(self, effect: Start) -> None:
        assert self._nursery is not None
        assert effect.child not in self._tasks, "two incarnations of a child overlap"
        task = ChildTask(child=effect.child, incarnation=effect.incarnation, supervisor=self)
        self._tasks[effect.child] = task
        # A task inherits the context of the task that starts it, which may be a child that has just crashed:
        # start it from a copy of the context in which the supervisor was opened.
        context = self._context.copy()
        context.run(CURRENT_CHILD_TASK.set, task)
        context.run(
            lambda: self._open_nursery.start_soon(self._run_child, task, name=f"{self.name}/{effect.child}")
        )

    @property
    def _open_nursery(self) -> trio.Nursery:
        assert self._nursery is not None
        return self._nursery

    def _publish(self, event: SupervisionEvent) -> None:
        where = None
        if event.kind in {"stubborn", "gave_up"} and event.child is not None:
            where = self._where(event.child)
        path = (*self.path, event.child) if event.child is not None else self.path
        event = attrs.evolve(event, path=path, where=where)
        # A listener that raises must not cost the effects that follow: after a lost cancel or start the
        # whole supervisor would wait for ever.
        self._hand(event, log_event)
        if self.on_event is not None:
            self._hand(event, self.on_event)

    def _hand(self, event: SupervisionEvent, listener: OnEvent) -> None:
        try:
            listener(event)
        except Exception:
            # The log itself may have failed, and then takes no record of that either.
            with suppress(Exception):
                log.exception(
                    "a listener to supervision events failed", supervisor=self.name, kind=event.kind
                )

    def _where(self, name: str) -> str | None:
        task = self._tasks.get(name)
        return None if task is None or task.trio_task is None else where_stands(task.trio_task)

    # -- the children's tasks ------------------------------------------------------------------------------

    async def _run_child(self, task: ChildTask) -> None:
        """Run one incarnation; report every exception of the child, and raise none."""
        run = self._decider.entries[task.child].spec.run
        task.trio_task = trio.lowlevel.current_task()
        error: BaseException | None = None
        try:
            with task.scope:
                if task.scope.cancel_called:
                    pass  # it was stopped in the same step in which it was started
                elif takes_task_status(run):
                    await run(task_status=RelayedStatus(on_started=partial(self._report_started, task)))
                else:
                    self._report_started(task, None)
                    await run()
        except BaseException as caught:  # noqa: BLE001 - reported; the decider decides
            error = caught
        self._report_ended(task, error)

    def _report_started(self, task: ChildTask, value: object) -> None:
        task.is_up = True
        task.value = value
        self._errors.pop(task.child, None)
        self._post(lambda: self._decider.started(task.child, self._clock()))

    def _report_ended(self, task: ChildTask, error: BaseException | None) -> None:
        now = self._clock()
        del self._tasks[task.child]
        task.trio_task = None
        if error is None:
            self._post(lambda: self._decider.ended(task.child, now))
            return
        crash = crash_of(task.child, error, at=now, incarnation=task.incarnation)
        fatal = fatal_leaf(error)
        self._errors[task.child] = fatal or error
        entry = self._decider.entries[task.child]
        self._post(lambda: self._decider.ended(task.child, now, crash, fatal=fatal is not None))
        awaited = entry.failure is not None and entry.failure.incarnation == task.incarnation
        if entry.state is State.REMOVED and not awaited:
            # No caller asks for this exception, and a pool must not keep the frames of each crashed worker.
            self._errors.pop(task.child, None)

    async def _keep_time(self) -> None:
        try:
            await self._tick_until_closed()
        except BaseException as error:  # noqa: BLE001 - raised again by `raise_outcome`
            # Not raised on here: a cancellation reaches the block too, which raises it after all children
            # have ended.
            if not isinstance(error, trio.Cancelled):
                self._broken = error
            self._close()
            # The decider bounds this shield: by each child's stop time and by the total of the stop. Trio
            # cannot end a child that is stubborn past them; each further stop time reports it.
            with trio.CancelScope(shield=True):
                await self._tick_until_closed()

    async def _tick_until_closed(self) -> None:
        while not self._decider.closed:
            wait = self._decider.wake_at - self._clock()
            changed = self._changed
            if wait > 0:
                with trio.move_on_after(wait if wait < FOREVER else math.inf):
                    await changed.wait()
                    continue
            else:
                await trio.lowlevel.checkpoint()
            self._post(lambda: self._decider.tick(self._clock()))

    def _close(self) -> None:
        # A nested supervisor may use no more time than its parent has left for the stop.
        due = math.inf if self.parent is None else self.parent.stop_due
        if not self._decider.closed:
            self._post(lambda: self._decider.close(self._clock(), due))

    # -- opening and closing--------------------------------------------------------------------------------

    @asynccontextmanager
    async def _hold(self) -> AsyncIterator[Supervisor]:
        """Run the supervisor around the block of `open_supervisor`."""
        decider = self._decider
        error: BaseException | None = None
        async with trio.open_nursery() as nursery:
            self._open(nursery)
            try:
                await self._until(lambda: decider.booted or decider.closed)
                if decider.failure is None:
                    with self._body:
                        yield self
            except BaseException as caught:  # noqa: BLE001 - raised again below, after all children have ended
                error = caught
            self._close()
            # No deadline here: the decider bounds each stop, and reports a child that goes on past it.
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
    restarts: int = defaults.RESTARTS,
    window: float | Window = defaults.RESTART_WINDOW,
    backoff: Backoff | None = None,
    auto_shutdown: AutoShutdown = "never",
    shutdown_timeout: float = defaults.SHUTDOWN_TIMEOUT,
    clock: Callable[[], float] = trio.current_time,
    rng: random.Random | None = None,
    on_event: OnEvent | None = None,
) -> AsyncIterator[Supervisor]:
    """Start the children in order, keep them running, and stop them in reverse order.

    The block is entered when all children are up; its end stops them.

        async with open_supervisor([Child("reader", read), Child("writer", write)]) as supervisor:
            await supervisor.wait()

    Args:
        children: in start order.
        name: for logs and events.
        strategy: which children are restarted together with one that crashes.
        restarts: the number allowed within ``window`` seconds; one more ends the supervisor.
        window: seconds, or a `Window` that is shared with other supervisors (then ``restarts`` is not used).
        backoff: the delays before restarts.
        auto_shutdown: whether the end of a significant child ends the supervisor.
        shutdown_timeout: seconds for the whole stop, even if the children's own stop times add up to more.
        clock: returns seconds.
        rng: the source of the jitter.
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
    async with supervisor._hold():  # noqa: SLF001 - the only entrance
        yield supervisor


async def run_supervisor(
    children: Iterable[Child] | Callable[[], Iterable[Child]],
    *,
    task_status: trio.TaskStatus[Supervisor] = trio.TASK_STATUS_IGNORED,
    **settings: Unpack[Settings],
) -> None:
    """Run a supervisor as the child of another one.

    ``Child("inner", partial(run_supervisor, make_children, name="inner"))`` is such a child. It reports its
    start, with the `Supervisor` as the value, when all of its children are up. It returns when it has ended
    by itself, and raises as `open_supervisor` does.

    Args:
        children: the children, or a function that makes new ones for each incarnation.
        task_status: Trio's.
        settings: as for `open_supervisor`.
    """
    listed = children() if callable(children) else children
    async with open_supervisor(listed, **settings) as supervisor:
        task_status.started(supervisor)
        await supervisor.wait()
