"""The invariants: promises that must hold after every run, under all faults.

Each invariant is a function from `Evidence` to messages, none where it holds; reports use its name.
Evidence that a run did not collect is None, and invariants that need it hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

import attrs

from tangram import defaults
from tangram.supervision import SupervisionEvent
from tangram.testing.checks.log_records import LogRecords
from tangram.testing.checks.message_log import KeptMessage

__all__ = ["INVARIANTS", "Broken", "Evidence", "InvariantBroken", "broken", "check"]

STOP_MARGIN: Final = 1.0
"""Seconds past ``shutdown_timeout`` that supervision promises for the whole stop."""

DOCUMENTED_CODES: Final = frozenset({1001, 1002, 1007, 1008, 1009, 1011, 1012, 1013})
"""Close codes that the server may use (RFC 6455, section 7.4.1, and the registry of close codes).

Going away, broken frames, bad text, a policy, too big, a crash, a restart, overload. They are written
out here, because the server's own table may be wrong.
"""


@attrs.frozen
class Evidence:
    """The observations of one run."""

    events: Sequence[SupervisionEvent] = ()
    """Every event of the tree."""
    order: Mapping[str, int] = attrs.field(factory=dict)
    """Place of each of the tree's own children in the start order."""
    order_of: str = "incarnation"
    """Name of the supervisor whose children these are."""
    stopped_at: int | None = None
    """Number of events when the stop began."""
    strategy: str = "one_for_all"
    logs: LogRecords | None = attrs.field(default=None, repr=False)
    """Every record of the log."""
    secrets: Sequence[str] = attrs.field(default=(), repr=False)
    left: Mapping[str, Sequence[str]] | None = None
    """Entries of the census that were not there before, by kind."""
    broker_clients: int | None = None
    """Redis connections that are open after the end."""
    stop_seconds: float | None = None
    stop_bound: float = defaults.SHUTDOWN_TIMEOUT
    """``[supervisor] shutdown_timeout``."""
    status: int | None = None
    """Exit status of the server."""
    stubborn_allowed: Collection[str] = ()
    """Children that were made to ignore their cancellation on purpose."""
    stubborn: Sequence[str] = ()
    """Tasks that had to be cancelled behind a shield of their own at the end, and where they stood."""
    out_of_turn: Collection[str] = ()
    """Children that were cancelled from outside: they may end before their turn in a stop."""
    overlaps: Sequence[str] = ()
    """Children of which two incarnations ran at once, as seen from inside of them."""
    asked: bool = False
    """Whether single children are stopped on request, in any order."""
    planned: bool = False
    """Whether single children were restarted on request, which no strategy explains."""
    faults: int | None = None
    """Injected faults of which each should count as a crash."""
    crashes: int | None = None
    """Crashes of children that faults were injected into."""
    refused: int | None = None
    """Connections refused while the server ran."""
    messages: Sequence[tuple[int, int]] | None = None
    """Numbered messages as a client received them.

    Each has its number, and how many gaps had been announced by then: joins, and errors that ask for
    one.
    """
    kept: Mapping[str, Sequence[KeptMessage]] | None = None
    """Numbered messages of topics with a history, as a client that recovers received them, by topic."""
    backlogs: Sequence[int] = ()
    """Bytes that waited for one slow client, at several moments."""
    backlog_bound: int = 262_144
    """Bytes that may wait for it: ``[channel] max_backlog``, and those in flight."""
    healed: Mapping[str, float] = attrs.field(factory=dict)
    """Seconds from each fault until everything was at rest again, by the fault's name."""
    heal_bound: float = 30.0
    """Seconds that this may take."""
    missing: Sequence[str] = ()
    """Children that should run and do not, where the server did not come to rest."""
    unkept: Sequence[str] = ()
    """Promises of a fault that were not kept, in words."""
    close_codes: Sequence[int] = ()
    """Codes with which the server closed WebSockets."""
    steady: bool | None = None
    """Whether it came back to its wanted state, or ended with a cause, in the time it had."""
    heard: bool | None = None
    """Whether a reading browser got a message after the last fault, or the server had ended."""


@attrs.frozen
class Broken:
    """An invariant that does not hold."""

    invariant: str
    message: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.message}"


class InvariantBroken(AssertionError):
    """Invariants do not hold; ``broken`` lists them all."""

    def __init__(self, broken: Sequence[Broken]) -> None:
        super().__init__("; ".join(map(str, broken)))
        self.broken = broken


Invariant = Callable[[Evidence], Iterable[str]]
INVARIANTS: Final[dict[str, Invariant]] = {}
"""All invariants, by name."""


def _invariant(function: Invariant) -> Invariant:
    INVARIANTS[function.__name__] = function
    return function


def broken(evidence: Evidence, only: Iterable[str] | None = None) -> list[Broken]:
    """Return the broken ones of all invariants, or of those named."""
    names = INVARIANTS if only is None else only
    return [Broken(name, message) for name in names for message in INVARIANTS[name](evidence)]


def check(evidence: Evidence, only: Iterable[str] | None = None) -> None:
    """Check all invariants, or those named.

    Args:
        evidence: of a run.
        only: names of `INVARIANTS`.

    Raises:
        InvariantBroken: one or more do not hold.
    """
    found = broken(evidence, only)
    if found:
        raise InvariantBroken(found)


@_invariant
def nothing_left_alive(evidence: Evidence) -> Iterator[str]:
    """The server leaves nothing behind.

    Checked are tasks, threads, descriptors, ports, open files, asyncio tasks, processes and Redis
    connections.
    """
    for kind, lines in (evidence.left or {}).items():
        yield f"{len(lines)} more {kind.replace('_', ' ')} than before: {', '.join(lines[:5])}"
    if evidence.broker_clients:
        yield f"{evidence.broker_clients} redis connections are still open"


@_invariant
def stops_within_bound(evidence: Evidence) -> Iterator[str]:
    """The stop takes no longer than ``shutdown_timeout`` and a second."""
    limit = evidence.stop_bound + STOP_MARGIN
    if evidence.stop_seconds is not None and evidence.stop_seconds > limit:
        yield f"the stop took {evidence.stop_seconds:.2f} s, its bound is {limit:g} s"


@_invariant
def nobody_is_stubborn(evidence: Evidence) -> Iterator[str]:
    """Every child ends within its stop time."""
    late = Counter(
        f"{_name(event)} went on although it was cancelled, at {event.where}"
        for event in evidence.events
        if event.kind == "stubborn" and event.child not in evidence.stubborn_allowed
    )
    for told, times in late.items():
        yield told if times == 1 else f"{told} ({times} times)"
    for one in evidence.stubborn:
        yield f"it did not end by itself, because of {one}"


@_invariant
def ends_with_its_status(evidence: Evidence) -> Iterator[str]:
    """The exit status is 0 where only a stop ended the server, else another one with a cause.

    The other cases are a server that gave up and one that could not start.
    """
    if evidence.status is None:
        return
    # A gave_up event with a child means that this child does not end, so that the process has to.
    gave_up = any(
        event.kind == "gave_up" and (not event.path or event.child is not None) for event in evidence.events
    )
    up = any(event.kind == "ready" and not event.path for event in evidence.events)
    causes = [event.cause for event in evidence.events if event.kind == "crashed" and event.cause]
    if gave_up and evidence.status == 0:
        yield "it gave up, but ended with status 0"
    elif evidence.status != 0 and not gave_up and (up or not causes):
        yield f"it ended with status {evidence.status}, but no event has a cause"


@_invariant
def starts_in_order(evidence: Evidence) -> Iterator[str]:
    """Children of one supervisor are started in their order."""
    for supervisor, events in _lives(evidence.events):
        order = _order(events, evidence)
        last = -1
        alone: set[str | None] = set()
        for event in events:
            if event.kind == "crashed" and supervisor == "incarnation" and evidence.strategy == "one_for_one":
                alone.add(event.child)
            if event.kind != "started":
                last = -1
                continue
            if event.child in alone:  # such restarts happen side by side, each after its own delay
                alone.discard(event.child)
                continue
            place = order[event.child or ""]
            if place <= last:
                yield f"{event.child} of {supervisor} was started after a later child of the order"
            last = place


@_invariant
def stops_in_reverse_order(evidence: Evidence) -> Iterator[str]:
    """Children of one supervisor are stopped in the reverse of their order.

    This holds at the end, in a restart, and where a supervisor gives up.
    """
    late = {event.child for event in evidence.events if event.kind == "stubborn"}
    for supervisor, events in _lives(evidence.events):
        order = {
            name: place
            for name, place in _order(events, evidence).items()
            if name not in late and name not in evidence.out_of_turn
        }
        first = {id(event) for event in evidence.events[: evidence.stopped_at]}
        for stopped in _stops(events, first, asked=evidence.asked):
            known = [name for name in stopped if name in order]
            if known != sorted(known, key=lambda name: -order[name]):
                yield f"children of {supervisor} were stopped in the order {', '.join(known)}"


def _stops(events: Iterable[SupervisionEvent], first: set[int], *, asked: bool) -> Iterator[list[str]]:
    """Yield lists of children that were stopped one after another, with no start in between.

    Where single children are stopped on request, only stops by a crash, a restart or the end are
    yielded.
    """
    stopped: list[str] = []
    judged = not asked
    for event in events:
        # A child that was stopped on request and fails its next start has a crash after its stop.
        again = event.kind == "crashed" and event.child in stopped
        if again or event.kind in {"started", "ready", "planned"}:
            yield stopped
            stopped = []
        ends = id(event) not in first
        judged = judged or ends or event.kind in {"crashed", "planned", "gave_up"}
        if asked and event.kind == "ready":
            judged = False
        # A child that returns, or ends with an error of its own, has no turn in the order.
        if event.kind == "stopped" and judged and event.cause in ({None, "returned"} if ends else {None}):
            stopped.append(event.child or "")
    yield stopped


@_invariant
def no_two_incarnations(evidence: Evidence) -> Iterator[str]:
    """A child is not started before its last incarnation has ended."""
    alive: dict[tuple[str, ...], int] = {}
    for child in evidence.overlaps:
        yield f"two incarnations of {child} ran at once"
    for event in evidence.events:
        if event.child is None:
            continue
        key = event.path or (event.supervisor, event.child)
        if event.kind == "started":
            if key in alive:
                yield f"{_name(event)}: incarnation {event.incarnation} began while {alive[key]} was alive"
            alive[key] = event.incarnation
        elif event.kind in {"stopped", "crashed", "quarantined"}:
            alive.pop(key, None)
            for below in [one for one in alive if one[: len(key)] == key]:
                yield f"{'/'.join(below)} is alive, but {_name(event)} above it has ended"
                del alive[below]


@_invariant
def healthy_siblings_untouched(evidence: Evidence) -> Iterator[str]:
    """A crash restarts the siblings that the strategy names, and no others."""
    if evidence.planned or evidence.strategy == "one_for_all":
        return
    end = len(evidence.events) if evidence.stopped_at is None else evidence.stopped_at
    events = evidence.events[:end]
    order = _order([event for event in events if event.supervisor == "incarnation"], evidence)
    siblings = _Siblings(order, evidence.strategy)
    for event in events:
        if event.supervisor == "root" and event.kind in {"crashed", "planned", "gave_up"}:
            siblings.allowed = -1  # the whole incarnation is stopped
        elif event.supervisor == "incarnation" and event.child is None:
            siblings.all_of_them(event.kind)
        elif event.supervisor == "incarnation" and not siblings.may(event):
            yield f"{event.child} was stopped, which {evidence.strategy} does not say"


@attrs.define
class _Siblings:
    """The children that may be stopped now."""

    order: dict[str, int]
    strategy: str
    allowed: int = attrs.field(init=False)
    """Place of the first child that may be stopped."""
    asked: set[str] = attrs.field(factory=set, init=False)
    """Children that crashed, or whose restart was requested."""

    def __attrs_post_init__(self) -> None:
        self.allowed = len(self.order)

    def all_of_them(self, kind: str) -> None:
        if kind == "ready":
            self.allowed = len(self.order)
        elif kind in {"gave_up", "planned"}:
            self.allowed = -1

    def may(self, event: SupervisionEvent) -> bool:
        """Take an event of one child; return False for a stop that nothing explains."""
        assert event.child is not None
        place = self.order.get(event.child, -1)
        if event.kind == "planned":
            self.asked.add(event.child)
        elif event.kind == "started":
            self.asked.discard(event.child)
        elif event.kind in {"crashed", "quarantined"}:
            # A child that did not start in time counts as crashed, and is stopped after that.
            self.asked.add(event.child)
            if self.strategy == "rest_for_one":
                self.allowed = min(self.allowed, place)
        return event.kind != "stopped" or place >= self.allowed or event.child in self.asked


@_invariant
def faults_are_counted(evidence: Evidence) -> Iterator[str]:
    """Each fault that should count is one crash, and there are no other crashes."""
    if evidence.faults is not None and evidence.crashes is not None and evidence.faults != evidence.crashes:
        yield f"{evidence.faults} faults should count, {evidence.crashes} crashes were counted"


@_invariant
def no_connection_refused(evidence: Evidence) -> Iterator[str]:
    """No client that connects while the server runs is refused."""
    if evidence.refused:
        yield f"{evidence.refused} connections were refused"


@_invariant
def messages_in_order(evidence: Evidence) -> Iterator[str]:
    """Messages come in order and none twice; a missing one was announced by a gap."""
    last, membership = None, None
    for number, joined in evidence.messages or ():
        if last is not None:
            if number <= last:
                yield f"message {number} came after {last}"
            elif number != last + 1 and joined == membership:
                yield f"messages {last + 1} to {number - 1} are missing and no gap was announced"
        last, membership = number, joined


@_invariant
def nothing_missed(evidence: Evidence) -> Iterator[str]:
    """A member that recovers gets every message in order.

    Otherwise a join tells it that it has missed some. A join may repeat messages that it has seen.
    """
    for topic, messages in (evidence.kept or {}).items():
        for last, one in pairwise(messages):
            if one.told == last.told and one.number > last.number + 1:
                missing = f"messages {last.number + 1} to {one.number - 1} of {topic!r}"
                yield f"{missing} are missing, and no join said so"
            elif one.number <= last.number and one.join == last.join:
                yield f"message {one.number} of {topic!r} came after {last.number}, without a join in between"


@_invariant
def close_codes_documented(evidence: Evidence) -> Iterator[str]:
    """The server closes WebSockets with documented codes only, and never with 1000."""
    for code, count in Counter(evidence.close_codes).items():
        if code not in DOCUMENTED_CODES:
            yield f"{count} WebSockets were closed with {code}"


@_invariant
def each_crash_logged_once(evidence: Evidence) -> Iterator[str]:
    """Each crash is one log record with child, incarnation and cause."""
    if evidence.logs is None:
        return
    told: Counter[tuple[object, ...]] = Counter(
        (line.get("supervisor"), line.get("child"), line.get("incarnation"), line.get("cause"))
        for line in evidence.logs
        if line.get("event") == "child crashed"
    )
    crashed: Counter[tuple[object, ...]] = Counter(
        (event.supervisor, event.child, event.incarnation or None, event.cause)
        for event in evidence.events
        if event.kind == "crashed"
    )
    for key in told.keys() | crashed.keys():
        if told[key] != crashed[key]:
            who = f"the crash of {key[1]} of {key[0]} ({key[3]})"
            yield f"{who} is {told[key]} lines in the log, not {crashed[key]}"


@_invariant
def no_secret_in_logs(evidence: Evidence) -> Iterator[str]:
    """No log record contains a secret, in any field."""
    for line in evidence.logs or ():
        text = repr(line)
        if any(secret and (secret in text or _is_quoted(secret, text)) for secret in evidence.secrets):
            yield f"the log record {line.get('event')!r} holds a secret"


@_invariant
def memory_per_slow_client(evidence: Evidence) -> Iterator[str]:
    """The bytes that wait for a client that does not read stay within their bound."""
    most = max(evidence.backlogs, default=0)
    if most > evidence.backlog_bound:
        yield f"{most} bytes waited for one slow client, its bound is {evidence.backlog_bound}"


@_invariant
def steady_in_time(evidence: Evidence) -> Iterator[str]:
    """After each fault everything is at rest again in time."""
    for name, seconds in evidence.healed.items():
        if seconds > evidence.heal_bound:
            yield f"after {name} it came to rest in {seconds:.1f} s, the bound is {evidence.heal_bound:g} s"


@_invariant
def ends_as_promised(evidence: Evidence) -> Iterator[str]:
    """Each fault ends as its description promises."""
    yield from evidence.unkept


@_invariant
def comes_to_rest(evidence: Evidence) -> Iterator[str]:
    """In the end everything is up again or quarantined, or the tree has ended with its cause.

    A server that is up serves the clients that were there before.
    """
    if evidence.steady is False:
        who = f"; missing: {', '.join(evidence.missing)}" if evidence.missing else ""
        yield f"it neither came back to its wanted state nor ended{who}"
    if evidence.heard is False:
        yield "everything is up, but a browser that was there before gets no message any more"
    for event in evidence.events:
        if event.kind in {"gave_up", "quarantined", "crashed"} and not event.cause:
            yield f"{event.kind} of {_name(event)} has no cause"


def _is_quoted(secret: str, text: str) -> bool:
    """Return whether the secret stands in the text with additional backslashes.

    Each level of quoting puts backslashes before those of the secret, and before quotes.
    """
    bare = secret.replace("\\", "")
    return "\\" in text and bare != "" and bare in text.replace("\\", "")


def _name(event: SupervisionEvent) -> str:
    return "/".join(event.path) or event.child or event.supervisor


def _by_supervisor(
    events: Sequence[SupervisionEvent],
) -> Iterator[tuple[str, list[SupervisionEvent]]]:
    groups: dict[tuple[str, ...], list[SupervisionEvent]] = {}
    for event in events:
        above = event.path[:-1] if event.child is not None else event.path
        groups.setdefault((event.supervisor, *above), []).append(event)
    for key, found in groups.items():
        yield key[0], found


def _lives(events: Sequence[SupervisionEvent]) -> Iterator[tuple[str, list[SupervisionEvent]]]:
    """Yield the events of each supervisor from its start to its end.

    A child that returned before its start in one life has its place again in the next one.
    """
    for supervisor, found in _by_supervisor(events):
        life: list[SupervisionEvent] = []
        for event in found:
            life.append(event)
            if event.kind == "stopped" and event.child is None:
                yield supervisor, life
                life = []
        if life:
            yield supervisor, life


def _order(events: Sequence[SupervisionEvent], evidence: Evidence) -> dict[str, int]:
    """Return the place of each child; unknown ones follow in the order of their first start."""
    own = any(event.supervisor == evidence.order_of for event in events)
    order = dict(evidence.order) if own else {}
    for event in events:
        if event.kind == "started" and event.child is not None:
            order.setdefault(event.child, len(order))
    return order
