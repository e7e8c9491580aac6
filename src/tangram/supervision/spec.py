"""The records of supervision: child, window, back-off, crash, event and statistics.

1. Only records and their checks live here; ``decide`` reasons about them, ``runner`` carries out.
2. This file knows no clock, no random source and no Trio: the time is an argument wherever it matters.

The names and meanings are Erlang/OTP's (design principles, "Supervisor Behaviour"). A *child* is an async
function with a name, a restart type, limits for its start and its stop, and its place in the start order.
An *incarnation* is one run of that function, numbered from 1.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Literal, get_args

import attrs

from tangram import defaults
from tangram.errors import SpecError

__all__ = [
    "AutoShutdown",
    "Backoff",
    "Child",
    "ChildStatistics",
    "Crash",
    "Restart",
    "Strategy",
    "SupervisionEvent",
    "SupervisorStatistics",
    "Window",
    "WindowStatistics",
    "check_supervisor",
]

Restart = Literal["permanent", "transient", "temporary"]
Strategy = Literal["one_for_all", "rest_for_one", "one_for_one"]
AutoShutdown = Literal["never", "any_significant", "all_significant"]
Exhausted = Literal["quarantine", "escalate"]
StartFailure = Literal["fail", "quarantine"]
Kind = Literal[
    "started", "ready", "crashed", "restarting", "stopped", "quarantined", "gave_up", "stubborn", "planned"
]


class Window:
    """A sliding window of restarts: more than ``restarts`` within ``seconds`` are too many.

    Plain and mutable. Handed to several supervisors it is one budget for all of them; handed to a child it
    is that child's own budget, charged instead of its supervisor's.
    """

    __slots__ = ("_charged", "restarts", "seconds")

    def __init__(self, restarts: int, seconds: float) -> None:
        if restarts < 0 or not seconds > 0:
            raise SpecError(
                f"expected a window of >= 0 restarts in > 0 seconds, not {restarts!r} in {seconds!r}; "
                "Window(0, 1) allows no restart at all"
            )
        self.restarts = restarts
        self.seconds = seconds
        # One more than the allowed number is enough to refuse, so an endless crash loop takes no memory.
        self._charged: deque[float] = deque(maxlen=restarts + 1)

    def __repr__(self) -> str:
        return f"Window({self.restarts!r}, {self.seconds!r})"

    def charge(self, now: float) -> bool:
        """Count a restart at ``now``; return False if it is one too many.

        A restart that is exactly ``seconds`` old still counts, as in OTP.
        """
        self._charged.append(now)
        return self.used(now) <= self.restarts

    def used(self, now: float) -> int:
        """Return the number of restarts in the window at ``now``; at most ``restarts + 1``."""
        while self._charged and self._charged[0] < now - self.seconds:
            self._charged.popleft()
        return len(self._charged)

    def resize(self, restarts: int, seconds: float) -> None:
        """Set another budget; the restarts that were charged still count.

        Raises:
            SpecError: ``restarts`` is below 0, or ``seconds`` is not more than 0.
        """
        resized = Window(restarts, seconds)
        resized._charged.extend(self._charged)
        self.restarts, self.seconds, self._charged = restarts, seconds, resized._charged

    def clear(self) -> None:
        """Forget all restarts, for example after the operator has mended their cause."""
        self._charged.clear()


@attrs.frozen
class Backoff:
    """The delays before restarts: 0 s for the first, then ``initial`` doubling to ``maximum``.

    OTP has no back-off. The first restart comes at once, because most crashes are single accidents.
    """

    initial: float = defaults.BACKOFF_INITIAL
    """The second restart's delay, in seconds. A port or a file is released in less than 50 ms."""
    maximum: float = defaults.BACKOFF_MAXIMUM
    """The longest delay in seconds, jitter aside: a few needless attempts cost less than a long wait."""
    factor: float = 2.0
    """The quotient of two successive delays."""
    jitter: float = 0.2
    """The share by which a delay varies up and down, so that many children do not restart in step."""
    reset: float = defaults.BACKOFF_RESET
    """Seconds without a crash after which the next crash counts as the first."""

    def delay(self, attempt: int, chance: float) -> float:
        """Return the seconds to wait before a restart.

        Args:
            attempt: the number of the restart; 0 is the first.
            chance: a number in [0, 1) that sets the jitter.
        """
        if attempt == 0 or self.initial == 0:
            return 0.0
        # The exponent is bounded: after a night of crashes 2.0 ** attempt would overflow.
        grown = self.initial * self.factor ** min(attempt - 1, 64)
        return min(self.maximum, grown) * (1 + self.jitter * (2 * chance - 1))


@attrs.frozen(eq=False)
class Child:
    """The specification of one child; times are in seconds.

    ``Child("reader", read, restart="transient", stop_timeout=2.0)``
    """

    name: str
    """Unique in its supervisor."""
    run: Callable[..., Awaitable[object]]
    """The async function of each incarnation; has a ``task_status`` parameter if it reports its own start."""
    restart: Restart = attrs.field(default="permanent", kw_only=True)
    """``permanent``: always restarted; ``transient``: after a crash; ``temporary``: never."""
    start_timeout: float = attrs.field(default=defaults.START_TIMEOUT, kw_only=True)
    """The limit until ``task_status.started()``; a later start has failed. ``math.inf`` means no limit."""
    stop_timeout: float = attrs.field(default=defaults.STOP_TIMEOUT, kw_only=True)
    """The time to end after a cancellation. Past it, and each such time later, it is reported."""
    significant: bool = attrs.field(default=False, kw_only=True)
    """Its own end may end the supervisor (``auto_shutdown``); not for permanent children."""
    window: Window | None = attrs.field(default=None, kw_only=True)
    """Its own budget, charged instead of the supervisor's. OTP has none."""
    exhausted: Exhausted = attrs.field(default="quarantine", kw_only=True)
    """The effect of its own full window: ``quarantine`` leaves it stopped, ``escalate`` fails all."""
    start_failure: StartFailure = attrs.field(default="fail", kw_only=True)
    """The effect of a failed start at first boot: fail the supervisor, or leave this child stopped."""
    quarantined: Crash | None = attrs.field(default=None, kw_only=True)
    """A crash under another supervisor, for which the child begins in quarantine.

    It is not started, and no event reports it, until `Supervisor.restart_child`.
    """

    def __attrs_post_init__(self) -> None:
        faults = list(self._faults())
        if faults:
            raise SpecError(f"child {self.name!r}: " + "; ".join(faults))

    def _faults(self) -> Iterable[str]:
        if not self.name:
            yield "its name must not be empty"
        if not callable(self.run):
            yield f"run must be an async function, not {self.run!r}"
        for what, allowed in _CHOICES.items():
            if (value := getattr(self, what)) not in allowed:
                yield f"{what} must be one of {', '.join(allowed)}, not {value!r}"
        for what in ("start_timeout", "stop_timeout"):
            value = getattr(self, what)
            if not isinstance(value, int | float) or math.isnan(value) or value <= 0:
                yield f"{what} must be more than 0 seconds, not {value!r}"
        if self.significant and self.restart == "permanent":
            yield "a permanent child cannot be significant, because it never ends by itself"


_CHOICES: Final = {
    "restart": get_args(Restart),
    "exhausted": get_args(Exhausted),
    "start_failure": get_args(StartFailure),
}


def check_supervisor(
    children: Iterable[Child], *, strategy: str, auto_shutdown: str, shutdown_timeout: float
) -> tuple[Child, ...]:
    """Return the children as a tuple.

    Raises:
        SpecError: with every fault of the children and of the supervisor's settings.
    """
    faults: list[str] = []
    if strategy not in get_args(Strategy):
        faults.append(f"strategy must be one of {', '.join(get_args(Strategy))}, not {strategy!r}")
    if auto_shutdown not in get_args(AutoShutdown):
        faults.append(
            f"auto_shutdown must be one of {', '.join(get_args(AutoShutdown))}, not {auto_shutdown!r}"
        )
    if not shutdown_timeout > 0:
        faults.append(f"shutdown_timeout must be more than 0 seconds, not {shutdown_timeout!r}")
    listed = tuple(children)
    seen: set[str] = set()
    for child in listed:
        if not isinstance(child, Child):
            faults.append(f"expected a Child, not {child!r}")
            continue
        if child.name in seen:
            faults.append(f"the name {child.name!r} is given to two children")
        seen.add(child.name)
        if child.significant and auto_shutdown == "never":
            faults.append(f"child {child.name!r} is significant, but auto_shutdown is 'never'")
    if faults:
        raise SpecError("; ".join(faults))
    return listed


@attrs.frozen
class Crash:
    """The reason of a child's end, as plain data that outlives the exception and its frames."""

    path: tuple[str, ...]
    """Names from the supervisor's child down to the innermost child that crashed: ``("plugin:demo",
    "metrics")``.
    """
    exception: str
    """The type of the leaf that came first, with its module where that is not builtins."""
    message: str
    """The text of the exception."""
    at: float
    """The time on the supervisor's clock."""
    incarnation: int = 0
    """The child's incarnation that crashed."""
    others: tuple[str, ...] = ()
    """The other leaves of a group of exceptions, each as ``Type: message``."""
    traceback: tuple[str, ...] = ()
    """The last frames, innermost last, each as ``file:line in function``.

    Frames of tangram, Trio and the standard library that lead to the child's own code are left out.
    """
    where: str = ""
    """The innermost frame of the child's own code, for example the line of a plugin that called a library."""
    why: str = ""
    """The reason of a supervisor in between that gave up: ``more than 3 restarts in 60 s``."""
    when: float | None = None
    """Seconds since the epoch; filled in where statistics are read."""

    @property
    def cause(self) -> str:
        """One line: ``ValueError: no such aircraft``."""
        return f"{self.exception}: {self.message}" if self.message else self.exception


@attrs.frozen
class SupervisionEvent:
    """One event in a supervisor.

    The same record goes to the log, the status pages, the metrics and the ``admin`` topic.
    """

    kind: Kind
    """``started``, ``ready``, ``crashed``, ``restarting``, ``stopped``, ``quarantined``, ``gave_up``,
    ``stubborn`` or ``planned``.

    ``planned``: a requested restart begins. ``gave_up`` with a child: the supervisor gave up before, and
    cannot end because this child does not end.
    """
    supervisor: str
    """The supervisor's name."""
    child: str | None
    """The child's name; None for an event of the supervisor itself."""
    at: float
    """The time on the supervisor's clock."""
    incarnation: int = 0
    """The child's incarnation."""
    cause: str | None = None
    """One line, where there is a cause."""
    strategy: Strategy | None = None
    """The strategy in use, for ``restarting``."""
    delay: float | None = None
    """Seconds until the restart, for ``restarting``."""
    where: str | None = None
    """The line on which a child waits that goes on although it was cancelled."""
    crash: Crash | None = None
    """The record of the crash."""
    path: tuple[str, ...] = ()
    """The child's place in the whole tree: names of children from the outermost supervisor down."""
    restarts_left: int | None = None
    """The restarts that the charged window still allows, for ``crashed``.

    0 for ``quarantined`` after too many crashes; None for ``quarantined`` after a start that failed.
    """
    escalated: bool = False
    """Whether the supervisor gives up because of this crash, so that the one above reports it too."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return attrs.asdict(self)


@attrs.frozen
class WindowStatistics:
    """The state of a `Window`."""

    used: int
    """Restarts in the window; one more than ``restarts`` where it is full."""
    restarts: int
    """The number of restarts allowed."""
    seconds: float
    """The length of the window."""


@attrs.frozen
class ChildStatistics:
    """The state of one child."""

    name: str
    state: str
    """``waiting``, ``starting``, ``running``, ``leaving`` (its turn to be stopped will come), ``stopping``,
    ``stopped``, ``finished``, ``quarantined``."""
    incarnation: int
    """The number of its present or last incarnation; 0 before the first."""
    restart: Restart
    restarts: int
    """Restarts that its own crashes caused."""
    last_crash: Crash | None
    next_delay: float | None
    """Seconds until it is started again, while it waits in back-off."""
    stubborn: str | None
    """The line on which it waits, if it goes on past its stop time."""
    significant: bool
    window: WindowStatistics | None
    """Its own window, if it has one."""
    nested: tuple[SupervisorStatistics, ...]
    """Supervisors that were opened below this child."""


@attrs.frozen
class SupervisorStatistics:
    """The state of a supervisor and its children."""

    name: str
    state: str
    """``booting``, ``up``, ``restarting``, ``closing``, ``closed``."""
    strategy: Strategy
    restarts: int
    """Restarts decided since it was opened."""
    window: WindowStatistics
    children: tuple[ChildStatistics, ...]
    crashes: tuple[Crash, ...]
    """The last crashes, oldest first."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return attrs.asdict(self)

    @property
    def counts(self) -> dict[str, int]:
        """The number of children in all and by state, as OTP's ``count_children`` has it."""
        alive = ("starting", "running", "leaving", "stopping")
        return {
            "children": len(self.children),
            "active": sum(child.state in alive for child in self.children),
            "waiting": sum(child.state == "waiting" for child in self.children),
            "quarantined": sum(child.state == "quarantined" for child in self.children),
            "supervisors": sum(bool(child.nested) for child in self.children),
        }
