"""Moments with numbers of choice."""

from __future__ import annotations

from typing import Any

from tangram.metrics.histogram import DELIVERY_BOUNDS, HANDLER_BOUNDS, LOOP_BOUNDS, Histogram
from tangram.metrics.moment import Moment, ProcessNumbers

PROCESS = ProcessNumbers(
    cpu_seconds=1.5,
    resident_bytes=40_000_000,
    virtual_bytes=90_000_000,
    open_fds=12,
    max_fds=1024,
    start_time=1.7e9,
)


def moment(at: float = 0.0, **given: Any) -> Moment:
    values: dict[str, Any] = {
        "connections": 0,
        "accepted": 0,
        "disconnects": {},
        "memberships": 0,
        "topics": 0,
        "received": 0,
        "deliveries": 0,
        "sent_bytes": 0,
        "backlog_bytes": 0,
        "conflated": 0,
        "pushes": {"ok": 0, "failed": 0, "refused": 0},
        "declared_pushes": {("demo", "ok"): 2, ("demo", "timeout"): 0},
        "handler_durations": {("demo", "map:{area}", "select"): Histogram(HANDLER_BOUNDS).values()},
        "joins": {"ok": 0, "refused": 0},
        "recoveries": dict.fromkeys(("recovered", "first", "epoch", "too_old", "too_much", "unavailable"), 0),
        "delivery_lag": Histogram(DELIVERY_BOUNDS).values(),
        "services": {},
        "restarts": {},
        "quarantined": 0,
        "loop_lag": Histogram(LOOP_BOUNDS).values(),
        "bus_up": True,
        "bus_reconnects": 0,
        "nodes": 1,
        "nodes_differing": 0,
        "leases": {},
        "requests": {},
        "forwards": {"answered": 0, "failed": 0, "unavailable": 0},
        "process": PROCESS,
        "build": {"version": "0.1.0", "python": "3.11"},
    }
    return Moment(at=at, **{**values, **given})
