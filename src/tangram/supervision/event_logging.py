"""Supervision events as log records: one for each event, with a level that fits it."""

from __future__ import annotations

from typing import Any, Final

import structlog

from tangram.supervision.spec import SupervisionEvent

__all__ = ["log_event"]

log = structlog.get_logger("tangram.supervision")

_LINES: Final[dict[str, tuple[str, str]]] = {
    "started": ("debug", "child started"),
    "ready": ("info", "all children are up"),
    "crashed": ("error", "child crashed"),
    "restarting": ("warning", "restarting"),
    "planned": ("info", "planned restart"),
    "stopped": ("debug", "stopped"),
    "quarantined": ("error", "child is left stopped: it crashed too often or did not start"),
    "gave_up": ("critical", "supervisor gives up and stops everything"),
    "stubborn": ("error", "child goes on although it was cancelled"),
}


def log_event(event: SupervisionEvent) -> None:
    """Write the record of an event; fields without a value are left out."""
    level, line = _LINES[event.kind]
    if event.kind == "gave_up" and event.child is not None:
        level, line = (
            "critical",
            "supervisor that gave up cannot end: a child goes on although it was cancelled",
        )
    elif event.kind == "gave_up" and event.path:
        # The supervisor above decides and logs the consequence, often a plugin's restart.
        level, line = "warning", "supervisor gives up to the one above it"
    values: dict[str, Any] = {
        "supervisor": event.supervisor,
        "child": event.child,
        "incarnation": event.incarnation or None,
        "cause": event.cause,
        "strategy": event.strategy,
        "delay": None if event.delay is None else round(event.delay, 3),
        "where": event.where,
    }
    if event.kind == "crashed" and event.crash is not None:
        crash = event.crash
        values["path"] = " > ".join(crash.path) if len(crash.path) > 1 else None
        values["others"] = list(crash.others) or None
        values["traceback"] = list(crash.traceback) or None
    if event.kind == "stopped" and event.child is not None and event.cause not in (None, "returned"):
        level, line = "warning", "child ended with an error while it was being stopped"
    getattr(log, level)(line, **{key: value for key, value in values.items() if value is not None})
