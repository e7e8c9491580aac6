"""The children of one supervisor, by name and by state.

1. This file knows which children there are, in which state each is, and how a state is changed.
2. It decides nothing: ``decide`` holds a `Roster` and decides. Like ``decide``, this file knows no Trio, no
   clock and no log.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

import attrs

from tangram.errors import NoSuchChild
from tangram.supervision.spec import Child
from tangram.supervision.table import Entry, State

__all__ = ["TIMED", "UNSETTLED", "Roster"]

TIMED: Final = (State.STARTING, State.STOPPING)
"""States that may last only until `Entry.due`."""

UNSETTLED: Final = (State.STARTING, State.LEAVING, State.STOPPING)
"""States that a child leaves by itself sooner or later."""


class Roster:
    """The entries of one supervisor's children, in start order.

    Args:
        name: the supervisor's name, for error messages.
        children: the first children, in start order.
    """

    def __init__(self, name: str, children: Iterable[Child]) -> None:
        self.name = name
        self.entries: dict[str, Entry] = {}
        """Every child by its name."""
        self.has_work = True
        """Whether a child was added or is to be started since this was last set to False."""
        self._by_state: dict[State, dict[int, Entry]] = {state: {} for state in State}
        self._next_rank = 0
        for child in children:
            self.add(child)

    def entry(self, name: str) -> Entry:
        """Return the child of that name.

        Raises:
            NoSuchChild: there is none; the message names the children that exist.
        """
        try:
            return self.entries[name]
        except KeyError:
            known = ", ".join(self.entries) or "none"
            raise NoSuchChild(f"supervisor {self.name!r} has no child {name!r}; it has: {known}") from None

    def in_state(self, state: State) -> Mapping[int, Entry]:
        """Return the children in a state by their rank, which is their place in the start order."""
        return self._by_state[state]

    def any_in(self, states: Collection[State]) -> bool:
        """Return whether at least one child is in one of the states."""
        return any(self._by_state[state] for state in states)

    def overdue(self, now: float) -> Iterator[Entry]:
        """Yield each child whose start or stop should be over by ``now``.

        The handling of one overdue child may change the state of another, which then is no longer overdue.
        """
        for entry in [e for state in TIMED for e in self._by_state[state].values() if e.due <= now]:
            if entry.state in TIMED:
                yield entry

    def next_due(self) -> float:
        """Return the earliest time at which a start or stop should be over, or infinity."""
        return min((e.due for state in TIMED for e in self._by_state[state].values()), default=math.inf)

    def add(self, child: Child) -> Entry:
        """Add a child behind all others."""
        entry = self.entries[child.name] = Entry(spec=child, rank=self._next_rank)
        if child.quarantined is not None:
            entry.state, entry.last_crash = State.QUARANTINED, child.quarantined
        self._by_state[entry.state][entry.rank] = entry
        self._next_rank += 1
        self.has_work = True
        return entry

    def move(self, entry: Entry, state: State) -> None:
        """Put a child into another state; ``REMOVED`` forgets it."""
        del self._by_state[entry.state][entry.rank]
        entry.state = state
        if state is State.REMOVED:
            del self.entries[entry.spec.name]
        else:
            self._by_state[state][entry.rank] = entry
        if state in (State.WAITING, State.STARTING):
            self.has_work = True

    def set_limits(self, times: Mapping[str, tuple[float, float]]) -> None:
        """Give children other limits, in seconds: ``{name: (start_timeout, stop_timeout)}``.

        Raises:
            NoSuchChild: a name is not known; nothing is changed.
            SpecError: a time is not more than 0; nothing is changed.
        """
        specs = {
            name: attrs.evolve(self.entry(name).spec, start_timeout=start, stop_timeout=stop)
            for name, (start, stop) in times.items()
        }
        for name, spec in specs.items():
            self.entries[name].spec = spec
