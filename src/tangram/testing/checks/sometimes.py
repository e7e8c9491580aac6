"""*Sometimes* assertions: conditions that must hold at least once in a set of runs.

An invariant that never met its situation has proved nothing. ``sometimes("a browser came back",
client.connections > 1)`` notes that a run reached this; at its end a set of runs lists the names that
none of them reached. Outside of `collecting` it does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, get_args

import attrs

from tangram.supervision import Backoff, SupervisionEvent
from tangram.supervision.spec import Kind, Strategy

__all__ = ["SUPERVISION", "Reached", "collecting", "observe", "sometimes"]


@attrs.define(eq=False)
class Reached:
    """Counts of the conditions that a set of runs reached."""

    counts: dict[str, int] = attrs.field(factory=dict)
    """How often each was reached; 0 where it was expected and no run reached it."""

    def expect(self, names: Iterable[str]) -> None:
        """Expect these names, even if no run executes the line that would note them."""
        for name in names:
            self.counts.setdefault(name, 0)

    def note(self, name: str, times: int = 1) -> None:
        """Count ``name`` as reached ``times`` times; 0 only makes it known."""
        self.counts[name] = self.counts.get(name, 0) + times

    def merge(self, other: Reached) -> None:
        """Add the counts of other runs."""
        for name, times in other.counts.items():
            self.note(name, times)

    @property
    def never(self) -> list[str]:
        """Return the names that no run reached."""
        return sorted(name for name, times in self.counts.items() if not times)

    def __str__(self) -> str:
        width = max((len(name) for name in self.counts), default=0)
        lines = [f"{name:<{width}}  {self.counts[name] or 'never'}" for name in sorted(self.counts)]
        return "\n".join(lines)


_collectors: list[Reached] = []


@contextmanager
def collecting() -> Iterator[Reached]:
    """Collect the conditions that runs of this block reach."""
    reached = Reached()
    _collectors.append(reached)
    try:
        yield reached
    finally:
        _collectors.remove(reached)


def sometimes(name: str, condition: object = True) -> bool:
    """Note that a run reached ``name`` if the condition holds; return whether it does.

    Calling it makes the name known: where the condition holds in none of the runs, it is reported as
    never reached.
    """
    held = bool(condition)
    for reached in _collectors:
        reached.note(name, int(held))
    return held


# -- coverage of supervision, read from the events ----------------------------------------------------------

_BACKOFF: Final = Backoff()
_ATTEMPTS: Final = 9
"""Steps of the back-off: the first is immediate, the ninth is as long as any later one."""


def _step(attempt: int) -> str:
    return f"back-off: {_BACKOFF.delay(attempt, 0.5):g} s"


_KINDS: Final = {kind: f"event: {kind}" for kind in get_args(Kind)}
_STRATEGIES: Final = {strategy: f"strategy: {strategy}" for strategy in get_args(Strategy)}
_QUARANTINE: Final = "escalation: a plugin into quarantine"
_NESTED: Final = "escalation: a nested supervisor gave up"
_ROOT: Final = "escalation: the root gave up"
_CRASH_IN_RESTART: Final = "a crash while a restart was going on"

SUPERVISION: Final[tuple[str, ...]] = (
    *_KINDS.values(),
    *_STRATEGIES.values(),
    *(_step(attempt) for attempt in range(_ATTEMPTS)),
    _QUARANTINE,
    _NESTED,
    _ROOT,
    _CRASH_IN_RESTART,
)
"""Names that cover supervision: every kind of event, strategy, step of the default back-off and
escalation.
"""


def observe(events: Sequence[SupervisionEvent]) -> None:
    """Note the names of `SUPERVISION` that the events of one run reached."""
    restarting: set[tuple[str, ...]] = set()
    for event in events:
        above = event.path[:-1] if event.child is not None else event.path
        sometimes(_KINDS[event.kind])
        if event.kind == "restarting":
            restarting.add(above)
            if event.strategy is not None:
                sometimes(_STRATEGIES[event.strategy])
            if event.delay is not None:
                sometimes(_step(_attempt_of(event.delay)))
        elif event.kind == "crashed":
            sometimes(_CRASH_IN_RESTART, above in restarting)
        elif event.kind == "ready":
            restarting.discard(above)
        elif event.kind == "quarantined":
            sometimes(_QUARANTINE, event.path[:1] == ("incarnation",))
        elif event.kind == "gave_up":
            sometimes(_NESTED if event.path else _ROOT)


def _attempt_of(delay: float) -> int:
    """Return the step of the default back-off that a delay belongs to.

    The jitter of the back-off leaves gaps between its steps.
    """
    return min(range(_ATTEMPTS), key=lambda attempt: abs(_BACKOFF.delay(attempt, 0.5) - delay))
