"""Supervision in the manner of Erlang/OTP, on Trio's nurseries; usable alone.

    children = [Child("reader", read), Child("writer", write)]
    async with open_supervisor(children, strategy="rest_for_one") as supervisor:
        await supervisor.wait()

``docs/supervision.md`` describes it. ``spec`` and ``decide`` hold the decisions, without I/O; ``runner``
carries them out.
"""

from __future__ import annotations

from tangram.supervision.child_task import CURRENT_CHILD_TASK
from tangram.supervision.notify import Notifier
from tangram.supervision.runner import Settings, Supervisor, open_supervisor, run_supervisor
from tangram.supervision.spec import (
    AutoShutdown,
    Backoff,
    Child,
    ChildStatistics,
    Crash,
    Restart,
    Strategy,
    SupervisionEvent,
    SupervisorStatistics,
    Window,
    WindowStatistics,
)
from tangram.supervision.threads import (
    AbandonedThread,
    ThreadStatistics,
    run_sync_in_thread,
    thread_statistics,
)
from tangram.supervision.watchdog import Stall, Watchdog, WatchdogStatistics

__all__ = [
    "CURRENT_CHILD_TASK",
    "AbandonedThread",
    "AutoShutdown",
    "Backoff",
    "Child",
    "ChildStatistics",
    "Crash",
    "Notifier",
    "Restart",
    "Settings",
    "Stall",
    "Strategy",
    "SupervisionEvent",
    "Supervisor",
    "SupervisorStatistics",
    "ThreadStatistics",
    "Watchdog",
    "WatchdogStatistics",
    "Window",
    "WindowStatistics",
    "open_supervisor",
    "run_supervisor",
    "run_sync_in_thread",
    "thread_statistics",
]
