"""Plugins that were left stopped, for the reports of tests that failed."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tangram.supervision.spec import SupervisionEvent

__all__ = ["describe_quarantines", "print_quarantines"]


def describe_quarantines(events: Iterable[SupervisionEvent]) -> list[str]:
    """Return a line for each child that was left stopped, with the cause and its place.

    A test of such a plugin fails at its first request or push, which are answered with 503 or
    ``restarting``: neither has the cause.
    """
    found = {event.child: event for event in events if event.kind == "quarantined"}
    return [_describe(event) for event in found.values()]


def print_quarantines(events: Iterable[SupervisionEvent]) -> None:
    """Print the lines; pytest shows them beside the report of a test that failed."""
    for line in describe_quarantines(events):
        sys.stdout.write(f"{line}\n")


def _describe(event: SupervisionEvent) -> str:
    kind, _, name = (event.child or "").partition(":")
    who = f"{kind} {name!r}" if name else f"child {kind!r}"
    place = f" at {event.crash.where}" if event.crash is not None and event.crash.where else ""
    return f"{who} was left stopped: {event.cause}{place}"
