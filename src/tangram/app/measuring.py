"""Everything that the server measures over all incarnations, and the task that samples it.

1. Parts count for themselves; here their `statistics()` are read, at a scrape or at a sample, and summed over
   the incarnations.
2. The task measures by how much the event loop is late, four times a second, and gives the pictures a
   `Moment` at every second point.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Final, Protocol

import trio

from tangram.app.incarnation import PLUGIN, Incarnation
from tangram.bus import Bus
from tangram.cluster import Nodes
from tangram.declared.pool import RESULTS as PUSH_RESULTS
from tangram.gateway.channels import Channels, ChannelsStatistics
from tangram.gateway.recovery import RESULTS
from tangram.metrics.carried import Carried
from tangram.metrics.histogram import DELIVERY_BOUNDS, LOOP_BOUNDS, Histogram, HistogramValues
from tangram.metrics.moment import Moment, TopicNumbers
from tangram.metrics.pictures import SPANS, Mark, Pictures
from tangram.metrics.process import read_process
from tangram.metrics.requests import RequestTimes
from tangram.supervision import SupervisionEvent, SupervisorStatistics
from tangram.ticks import next_tick
from tangram.version import VERSION

__all__ = ["Measuring", "services_of"]

LAG_INTERVAL: Final = 0.25
"""Seconds between two measurements of the event loop: each costs some 20 us."""

FORWARD_RESULTS: Final = ("answered", "failed", "unavailable")
"""The results of requests for plugins on other nodes."""

MAX_NAMED_TOPICS: Final = 200
"""Topics with metrics of their own: a pattern may match more than the operator has thought of."""

MAX_STARTED: Final = 4096
"""Children whose last start is remembered."""

REQUESTED: Final = "requested"
"""The cause of a restart that the operator or a reload asked for."""


class MeasuredTree(Protocol):
    """The part of the tree that is read here."""

    @property
    def incarnation(self) -> Incarnation: ...
    @property
    def quarantined(self) -> Mapping[str, object]: ...
    @property
    def nodes(self) -> Nodes | None: ...
    @property
    def placed(self) -> frozenset[str]: ...


class Measuring:
    """The measurements of one server.

    Args:
        monotonic: the clock of delivery lags, in seconds.
        wall: returns seconds since the epoch.
    """

    def __init__(
        self, monotonic: Callable[[], float] = time.perf_counter, wall: Callable[[], float] = time.time
    ) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self.request_times = RequestTimes()
        self.forwards: Counter[str] = Counter()
        """Requests for plugins on other nodes, by result."""
        self.pictures = Pictures()
        self._lag = Histogram(DELIVERY_BOUNDS)
        self._loop_lag = Histogram(LOOP_BOUNDS)
        self._restarts: Counter[tuple[str, str]] = Counter()
        self._channels: Carried[Channels] = Carried(
            lambda one: _channel_counters(one.statistics()), lambda one: not one.connection_count
        )
        self._buses: Carried[Bus] = Carried(lambda one: {"reconnects": one.statistics().reconnects})
        self.redis_since: float | None = None
        """Seconds since the epoch at which Redis came or went; None before it was connected first."""
        self._redis_up: bool | None = None
        self.started: dict[tuple[str, ...], float] = {}
        """Seconds since the epoch of the last start of each child, by its path in the tree."""
        self._build = {"version": VERSION, "python": platform.python_version()}

    @contextmanager
    def counting_channels(self, channels: Channels) -> Iterator[None]:
        """Count the channels of an incarnation for the block."""
        self._channels.add(channels)
        try:
            yield
        finally:
            self._channels.end(channels)

    @contextmanager
    def counting_bus(self, bus: Bus) -> Iterator[None]:
        """Count the bus of an incarnation for the block."""
        self._buses.add(bus)
        try:
            yield
        finally:
            self._buses.end(bus)

    def timed(
        self, deliver: Callable[[Sequence[tuple[bytes, bytes]]], None]
    ) -> Callable[[Sequence[tuple[bytes, bytes]]], None]:
        """Return a sink of the bus that measures how long each batch takes to the sockets.

        The delivery writes to the sockets of clients that keep up, so that its end is the end of the last
        write. A batch is measured as a whole, and each of its messages is counted with that time.
        """
        clock, observe = self._monotonic, self._lag.observe

        def timed_deliver(batch: Sequence[tuple[bytes, bytes]]) -> None:
            began = clock()
            deliver(batch)
            observe(clock() - began, len(batch))

        return timed_deliver

    def note_redis(self, *, up: bool) -> None:
        """Note that Redis is connected or not."""
        if up is not self._redis_up:
            self._redis_up, self.redis_since = up, self._wall()

    def take_event(self, event: SupervisionEvent) -> None:
        """Note a start or count a restart; this listens to the supervisors."""
        if event.kind == "started":
            self._note_start(event.path)
        if event.kind not in {"restarting", "planned", "quarantined"} or not event.path:
            return
        cause = REQUESTED if event.crash is None else event.crash.exception
        child = event.path[-1]
        if event.kind != "quarantined":
            self._restarts[child, cause] += 1
        self.pictures.mark(Mark(self._wall(), child, event.cause or cause))

    def _note_start(self, path: tuple[str, ...]) -> None:
        if path not in self.started and len(self.started) >= MAX_STARTED:
            self.started.clear()  # plugins that start children under new names again and again
        self.started[path] = self._wall()

    async def run(
        self, tree: MeasuredTree, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Measure the event loop and feed the pictures until cancelled."""
        task_status.started()
        step = min(step for step, _ in SPANS.values())
        sampled = trio.current_time()
        self.pictures.take(self.moment(tree), self._wall())
        while True:
            due = next_tick(trio.current_time(), LAG_INTERVAL)
            await trio.sleep_until(due)
            now = trio.current_time()
            self._loop_lag.observe(now - due)
            if now - sampled >= 0.99 * step:
                sampled = now
                self.pictures.take(self.moment(tree), self._wall())

    def moment(self, tree: MeasuredTree, named: Sequence[str] = ()) -> Moment:
        """Return all numbers of now.

        Args:
            tree: the server's tree.
            named: patterns on the topics whose own numbers are included.
        """
        incarnation = tree.incarnation
        channels, supervisor = incarnation.channels, incarnation.supervisor
        now = None if channels is None else channels.statistics()
        totals = self._channels.totals(
            None if channels is None or now is None else (channels, _channel_counters(now))
        )
        return Moment(
            at=trio.current_time(),
            connections=0 if now is None else now.connections,
            accepted=totals["accepted"],
            disconnects=_by(totals, "disconnect"),
            memberships=0 if now is None else now.hub.members,
            topics=0 if now is None else now.hub.topics,
            received=totals["received"],
            deliveries=totals["deliveries"],
            sent_bytes=totals["sent_bytes"],
            backlog_bytes=0 if now is None else now.pending,
            conflated=totals["conflated"],
            pushes=_results(totals, "pushes", ("ok", "failed", "refused")),
            declared_pushes=_declared_pushes(incarnation),
            handler_durations=_handler_durations(incarnation),
            joins=_results(totals, "joins", ("ok", "refused")),
            recoveries=_results(totals, "recoveries", RESULTS),
            delivery_lag=self._lag.values(),
            services={} if supervisor is None else services_of(supervisor.statistics(), incarnation),
            restarts=dict(self._restarts),
            quarantined=len(tree.quarantined),
            loop_lag=self._loop_lag.values(),
            bus_up=incarnation.has_redis,
            bus_reconnects=self._buses.totals()["reconnects"],
            nodes=1 if tree.nodes is None else len(tree.nodes.alive()),
            nodes_differing=0 if tree.nodes is None else len(tree.nodes.differences()),
            leases={} if tree.nodes is None else _leases(tree.nodes, tree.placed),
            requests=self.request_times.values(),
            forwards={result: self.forwards[result] for result in FORWARD_RESULTS},
            process=read_process(),
            named_topics=() if channels is None or not named else _named_topics(channels, named),
            build=self._build,
        )


def _named_topics(channels: Channels, patterns: Sequence[str]) -> list[TopicNumbers]:
    """Return the numbers of the topics that a pattern matches, those with most members first."""
    matching = [
        one
        for one in channels.hub.topic_statistics()
        if any(fnmatchcase(one.topic, pattern) for pattern in patterns)
    ]
    matching.sort(key=lambda one: -one.members)
    return [
        TopicNumbers(one.topic, one.members, one.messages, one.deliveries, one.sent_bytes)
        for one in matching[:MAX_NAMED_TOPICS]
    ]


def _channel_counters(found: ChannelsStatistics) -> dict[Hashable, int]:
    counters: dict[Hashable, int] = {
        "accepted": found.accepted,
        "received": found.received,
        "deliveries": found.hub.deliveries,
        "sent_bytes": found.hub.sent_bytes,
        "conflated": found.conflated,
    }
    counters |= {("disconnect", one.code, one.reason): one.count for one in found.disconnects}
    counters |= {("pushes", result): count for result, count in found.pushes.items()}
    counters |= {("joins", result): count for result, count in found.joins.items()}
    counters |= {("recoveries", result): count for result, count in found.recoveries.items()}
    return counters


def _leases(nodes: Nodes, placed: frozenset[str]) -> dict[str, bool]:
    held = frozenset(nodes.book.held)
    return {name: name in held for name in sorted(placed)}


def _by(totals: Counter[Hashable], kind: str) -> dict[tuple[int, str], int]:
    return {
        (key[1], key[2]): count for key, count in totals.items() if isinstance(key, tuple) and key[0] == kind
    }


def _results(totals: Counter[Hashable], kind: str, results: Sequence[str]) -> dict[str, int]:
    return {result: totals[kind, result] for result in results}


def _declared_pushes(incarnation: Incarnation) -> dict[tuple[str, str], int]:
    """Return the answered pushes of each plugin that has handlers, by result."""
    return {
        (name, result): host.push_counts.results[result]
        for name, host in incarnation.hosts.items()
        if host.handles_pushes
        for result in PUSH_RESULTS
    }


def _handler_durations(incarnation: Incarnation) -> dict[tuple[str, str, str], HistogramValues]:
    """Return the durations of each plugin's handlers, by plugin, channel and event."""
    return {
        (name, channel, event): values
        for name, host in incarnation.hosts.items()
        for (channel, event), values in host.push_counts.durations().items()
    }


def services_of(tree: SupervisorStatistics, incarnation: Incarnation) -> dict[tuple[str, str], bool]:
    """Return for each service of each plugin whether it runs or has returned."""
    states = {
        (child.name, service.name): service.state
        for child in tree.children
        if child.name.startswith(PLUGIN) and child.state == "running"
        for below in child.nested
        for service in below.children
    }
    found = {}
    for name, host in incarnation.hosts.items():
        for service in host.loaded.plugin.services:
            state = states.get((PLUGIN + name, service.name))
            # A temporary service that has ended is no child any more.
            ended = state is None and service.restart == "temporary" and host.running
            found[name, service.name] = ended or state in {"running", "finished"}
    return found
