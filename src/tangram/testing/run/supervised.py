"""A supervisor under test, which is held to the promises of every supervisor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Final, Unpack

import attrs
import trio

from tangram import defaults
from tangram.errors import SupervisionError
from tangram.supervision import Child, Settings, SupervisionEvent, Supervisor, open_supervisor
from tangram.testing.checks.census import UNDER_TEST, Census, take_census, track_started, wait_nothing_left
from tangram.testing.checks.invariants import Broken, Evidence, InvariantBroken, broken
from tangram.testing.checks.log_records import LogRecords, record_logs

__all__ = ["ANY_SUPERVISOR", "Supervised", "open_supervised"]

ANY_SUPERVISOR: Final = (
    "nothing_left_alive",
    "stops_within_bound",
    "nobody_is_stubborn",
    "starts_in_order",
    "stops_in_reverse_order",
    "no_two_incarnations",
    "each_crash_logged_once",
    "comes_to_rest",
)
"""Invariants that hold for every supervisor, with any children."""

NAME: Final = "root"


@attrs.define(eq=False)
class Supervised:
    """The events and logs of a supervisor under test, and of those below it."""

    logs: LogRecords = attrs.field(repr=False)
    """Every log record, as dicts."""
    name: str
    """Name of the supervisor."""
    order: dict[str, int]
    """Place of each child that it was opened with."""
    bound: float
    """``shutdown_timeout``, in seconds."""
    events: list[SupervisionEvent] = attrs.field(factory=list)
    """Every event, from the first start."""
    stopped_at: int | None = None
    """Number of events when the end began."""
    stop_seconds: float | None = None
    """Seconds that the end took, by Trio's clock."""
    _supervisor: Supervisor | None = None
    _stop_began: float = 0.0

    @property
    def supervisor(self) -> Supervisor:
        """Return the supervisor itself."""
        assert self._supervisor is not None, "it was not opened: its children did not start"
        return self._supervisor

    def told(self, *kinds: str) -> list[tuple[str, str | None]]:
        """Return kind and child of the events of these kinds, in order."""
        return [(event.kind, event.child) for event in self.events if event.kind in kinds]

    def begin_stop(self) -> None:
        """Note that children are stopped for good from here on; only the first call counts."""
        if self.stopped_at is None:
            self.stopped_at = len(self.events)
            self._stop_began = trio.current_time()

    def end_stop(self) -> None:
        """Note that all children have ended."""
        if self.stopped_at is not None:
            self.stop_seconds = trio.current_time() - self._stop_began

    def note(self, event: SupervisionEvent) -> None:
        """Keep an event; a supervisor that gives up stops its children."""
        self.events.append(event)
        if event.kind == "gave_up" and len(event.path) == 0:
            self.begin_stop()

    def evidence(self, left: Mapping[str, list[str]] | None = None) -> Evidence:
        """Return the evidence for invariants."""
        return Evidence(
            events=self.events,
            order=self.order,
            order_of=self.name,
            stopped_at=self.stopped_at,
            asked=True,
            logs=self.logs,
            left=left,
            stop_seconds=self.stop_seconds,
            stop_bound=self.bound,
        )


@asynccontextmanager
async def open_supervised(
    children: Iterable[Child] = (), *, but: Mapping[str, str] | None = None, **settings: Unpack[Settings]
) -> AsyncIterator[Supervised]:
    """Run `open_supervisor` for the block, and check `ANY_SUPERVISOR` after it.

    They are also checked where the supervisor fails, as it may: then a broken invariant is raised, with
    the supervisor's error as its cause. Beside an error of the block they are notes.

    Args:
        children: in start order.
        but: invariants that this test breaks on purpose, each with the reason.
        settings: as for ``open_supervisor``.

    Raises:
        InvariantBroken: the supervisor broke a promise.
        ValueError: ``but`` has another name.
    """
    without = but or {}
    if unknown := without.keys() - set(ANY_SUPERVISOR):
        raise ValueError(f"no invariant {sorted(unknown)!r}: expected some of {', '.join(ANY_SUPERVISOR)}")
    listed = list(children)
    order = {child.name: place for place, child in enumerate(listed)}
    error: BaseException | None = None
    before = take_census()
    with track_started(), record_logs() as logs:
        bound = settings.get("shutdown_timeout", defaults.SHUTDOWN_TIMEOUT)
        seen = Supervised(logs, settings.get("name", NAME), order, bound)
        try:
            async with _open(seen, listed, settings):
                try:
                    yield seen
                finally:
                    seen.begin_stop()
        except BaseException as raised:  # noqa: BLE001 - raised again below, beside what invariants say
            error = raised
    seen.end_stop()
    _judge(seen, before, [name for name in ANY_SUPERVISOR if name not in without], error)


@asynccontextmanager
async def _open(seen: Supervised, children: Iterable[Child], settings: Settings) -> AsyncIterator[None]:
    listen = settings.get("on_event")

    def note(event: SupervisionEvent) -> None:
        seen.note(event)
        if listen is not None:
            listen(event)

    own: Settings = {**settings, "on_event": note}
    opened = open_supervisor(children, **own)
    # The supervisor keeps the context in which it is opened for its children. So its children carry the
    # mark, and tasks that the test starts beside them do not.
    token = UNDER_TEST.set(seen)
    try:
        seen._supervisor = await opened.__aenter__()  # noqa: SLF001 - its own
    finally:
        UNDER_TEST.reset(token)
    try:
        yield
    except BaseException as raised:
        if not await opened.__aexit__(type(raised), raised, raised.__traceback__):
            raise
    else:
        await opened.__aexit__(None, None, None)


def _judge(seen: Supervised, before: Census, checks: list[str], error: BaseException | None) -> None:
    left = wait_nothing_left(before, seen) if "nothing_left_alive" in checks else None
    found: list[Broken] = broken(seen.evidence(left), checks)
    if found and (error is None or isinstance(error, SupervisionError)):
        raise InvariantBroken(found) from error
    if error is not None:
        for one in found:
            error.add_note(f"beside it, an invariant does not hold: {one}")
        raise error
