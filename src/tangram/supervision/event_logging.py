"""Supervision events as log records: one for each event, with a level that fits it."""

from __future__ import annotations

from typing import Any, Final

import structlog

from tangram.supervision.spec import Crash, SupervisionEvent

__all__ = ["log_event"]

log = structlog.get_logger("tangram.supervision")

_LINES: Final[dict[str, tuple[str, str]]] = {
    "started": ("debug", "child started"),
    "ready": ("info", "all children are up"),
    "crashed": ("error", "child crashed"),
    "restarting": ("warning", "restarting"),
    "planned": ("info", "planned restart"),
    "stopped": ("debug", "stopped"),
    "quarantined": ("error", "child is left stopped: it crashed too often"),
    "gave_up": ("critical", "supervisor gives up and stops everything"),
    "stubborn": ("error", "child goes on although it was cancelled"),
}


def log_event(event: SupervisionEvent) -> None:
    """Write the record of an event; fields without a value are left out.

    A crash is one record at level error. Where a nested supervisor gives up because of it, that supervisor
    writes its records at level debug, and the one above writes the record at level error.
    """
    level, line = _LINES[event.kind]
    if event.kind == "gave_up" and event.child is not None:
        level, line = (
            "critical",
            "supervisor that gave up cannot end: a child goes on although it was cancelled",
        )
    elif event.kind == "gave_up" and event.path:
        level, line = "debug", "supervisor gives up to the one above it"
    elif event.kind == "quarantined" and event.restarts_left is None:
        level, line = "error", "child is left stopped: it did not start"
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
        if event.escalated and len(event.path) > 1:
            level = "debug"
        else:
            values |= _crash_fields(event, event.crash)
    if event.kind == "stopped" and event.child is not None and event.cause not in (None, "returned"):
        level, line = "warning", "child ended with an error while it was being stopped"
    if event.kind in {"restarting", "quarantined"} and event.child is not None:
        values |= _named(event.child)
    getattr(log, level)(line, **{key: value for key, value in values.items() if value is not None})


def _named(child: str) -> dict[str, str]:
    """Return the field by which a child called ``plugin:demo`` is found, ``plugin=demo``."""
    kind, _, name = child.partition(":")
    return {kind: name} if name else {}


def _crash_fields(event: SupervisionEvent, crash: Crash) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "where": crash.where or None,
        "restarts_left": event.restarts_left,
        "path": " > ".join(crash.path) if len(crash.path) > 1 else None,
        "others": list(crash.others) or None,
        "traceback": list(crash.traceback) or None,
    }
    if named := _named(crash.path[0]):
        fields |= {**named, "service": " > ".join(crash.path[1:]) or None}
    return fields
