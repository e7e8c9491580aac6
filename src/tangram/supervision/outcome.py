"""The statistics of a running supervisor, and the exception that it raises at its end."""

from __future__ import annotations

import time
from collections.abc import Mapping

import attrs
import trio

from tangram.errors import ChildStubborn, RestartsExhausted, StartFailed, SupervisionError
from tangram.supervision.child_task import ChildTask
from tangram.supervision.decide import Decider
from tangram.supervision.records import attach_crash, where_stands
from tangram.supervision.spec import ChildStatistics, SupervisorStatistics, Window, WindowStatistics
from tangram.supervision.table import Entry, State

__all__ = ["failure_of", "raise_outcome", "statistics_of"]


def statistics_of(decider: Decider, tasks: Mapping[str, ChildTask], now: float) -> SupervisorStatistics:
    """Return the state of a supervisor and of the tree below it.

    Args:
        decider: the supervisor's decisions.
        tasks: the running children by name.
        now: the time on the supervisor's clock; times of crashes are converted to the time of day.
    """
    shift = time.time() - now
    return SupervisorStatistics(
        name=decider.name,
        state=decider.phase,
        strategy=decider.strategy,
        restarts=decider.restarts,
        window=_window(decider.window, now),
        children=tuple(
            _child(decider, entry, tasks.get(name), now, shift) for name, entry in decider.entries.items()
        ),
        crashes=tuple(attrs.evolve(crash, when=crash.at + shift) for crash in decider.crashes),
    )


def _child(
    decider: Decider, entry: Entry, child_task: ChildTask | None, now: float, shift: float
) -> ChildStatistics:
    crash = entry.last_crash
    waits = entry.state is State.WAITING and not decider.closing
    task = None if child_task is None else child_task.trio_task
    return ChildStatistics(
        name=entry.spec.name,
        state=entry.state.value,
        incarnation=entry.incarnation,
        restart=entry.spec.restart,
        restarts=entry.restarts,
        last_crash=None if crash is None else attrs.evolve(crash, when=crash.at + shift),
        next_delay=max(0.0, decider.gate_of(entry) - now) if waits else None,
        stubborn=where_stands(task) if entry.lates and task is not None else None,
        significant=entry.spec.significant,
        window=None if entry.spec.window is None else _window(entry.spec.window, now),
        nested=() if child_task is None else tuple(nested.statistics() for nested in child_task.nested),
    )


def _window(window: Window, now: float) -> WindowStatistics:
    return WindowStatistics(used=window.used(now), restarts=window.restarts, seconds=window.seconds)


def failure_of(decider: Decider, errors: Mapping[str, BaseException]) -> BaseException | None:
    """Return the exception of a supervisor that ended without a request, or None."""
    failure = decider.failure
    if failure is None:
        return None
    cause = errors.get(failure.child)
    error: BaseException
    if failure.kind == "fatal" and cause is not None:
        return cause
    if failure.kind == "boot":
        error = StartFailed(failure.child, failure.message)
    elif failure.kind == "stubborn":
        error = ChildStubborn(failure.message)
    else:
        crashes = [f"{' > '.join(crash.path)}: {crash.cause}" for crash in decider.crashes]
        error = RestartsExhausted(failure.message, crashes)
    if failure.crash is not None:
        attach_crash(error, failure.crash)
    error.__cause__ = cause
    return error


def raise_outcome(
    name: str, failure: BaseException | None, error: BaseException | None, *, from_inside: bool
) -> None:
    """Raise the supervisor's own failure, the block's error, or both, if there are any.

    Args:
        name: the supervisor.
        failure: the reason for which the supervisor ended by itself.
        error: the exception of the block of `open_supervisor`.
        from_inside: whether the supervisor's nursery was cancelled by code that runs in it.
    """
    if failure is not None:
        ends_process = isinstance(failure, KeyboardInterrupt | SystemExit)
        if error is None or isinstance(error, trio.Cancelled) or ends_process:
            raise failure
        raise BaseExceptionGroup(f"supervisor {name!r} failed, and its block as well", [failure, error])
    if from_inside:
        raise SupervisionError(f"supervisor {name!r} was cancelled from inside, by one of its children")
    if error is not None:
        raise error
