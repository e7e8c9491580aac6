"""The record of one moment: every number of metrics and pictures, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from tangram.metrics.histogram import HistogramValues
from tangram.metrics.requests import RequestKey

__all__ = ["Moment", "ProcessNumbers", "TopicNumbers"]


@attrs.frozen(kw_only=True)
class ProcessNumbers:
    """The process as the operating system sees it."""

    cpu_seconds: float
    """User and system time of all threads."""
    resident_bytes: int
    virtual_bytes: int
    open_fds: int
    max_fds: int
    start_time: float
    """Seconds since the epoch."""


@attrs.frozen
class TopicNumbers:
    """The numbers of one topic whose name `[metrics] topics` allows."""

    topic: str
    members: int
    messages: int
    deliveries: int
    sent_bytes: int


@attrs.frozen(kw_only=True)
class Moment:
    """All numbers of one moment.

    Counters count since the server's start, over all incarnations.
    """

    at: float
    """Seconds on Trio's clock."""
    connections: int
    accepted: int
    disconnects: Mapping[tuple[int, str], int]
    """Ended connections by close code and reason."""
    memberships: int
    topics: int
    received: int
    """Frames from clients."""
    deliveries: int
    sent_bytes: int
    backlog_bytes: int
    conflated: int
    pushes: Mapping[str, int]
    """By result: ``ok``, ``failed``, ``refused``."""
    declared_pushes: Mapping[tuple[str, str], int]
    """Answered pushes of declared channels by plugin and result."""
    handler_durations: Mapping[tuple[str, str, str], HistogramValues]
    """Handlers of declared channels, by plugin, channel and event."""
    joins: Mapping[str, int]
    """By result: ``ok``, ``refused``."""
    recoveries: Mapping[str, int]
    """Joins that asked for positions, by result."""
    delivery_lag: HistogramValues
    services: Mapping[tuple[str, str], bool]
    """Whether a plugin's service runs or has returned."""
    restarts: Mapping[tuple[str, str], int]
    """By child and cause."""
    quarantined: int
    loop_lag: HistogramValues
    bus_up: bool
    bus_reconnects: int
    forwards: Mapping[str, int]
    """Requests for plugins on other nodes, by result."""
    nodes: int
    """Nodes of the cluster, this one included; 1 for a server that is alone."""
    nodes_differing: int
    """Nodes that differ from this one, for example by their version."""
    leases: Mapping[str, bool]
    """Whether this node holds the lease, by placed plugin or ``PLUGIN/SERVICE``."""
    requests: Mapping[RequestKey, HistogramValues]
    process: ProcessNumbers
    named_topics: Sequence[TopicNumbers] = ()
    build: Mapping[str, str] = attrs.Factory(dict[str, Any])
    """Labels of ``tangram_build_info``."""
