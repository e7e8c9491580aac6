"""Reasons why a plugin is away: texts of answers, and refusals of declared pushes."""

from __future__ import annotations

from collections.abc import Container
from typing import Protocol

from tangram.channels.disconnects import QUARANTINED, RESTARTING, STOPPED, Refusal

__all__ = ["describe_absence", "is_final", "refusal_of"]


class _Placement(Protocol):
    stopped: set[str]


class _Plugins(Protocol):
    @property
    def quarantined(self) -> Container[str]: ...
    @property
    def placement(self) -> _Placement: ...


def refusal_of(plugins: _Plugins, name: str) -> Refusal:
    """Return the refusal of pushes for a plugin that does not run.

    Args:
        plugins: the plugins that the server, or the operator, has left stopped.
        name: the plugin.
    """
    if name in plugins.quarantined:
        return QUARANTINED
    return STOPPED if name in plugins.placement.stopped else RESTARTING


def is_final(plugins: _Plugins, name: str) -> bool:
    """Return whether a plugin stays away until the operator restarts it."""
    return refusal_of(plugins, name) is not RESTARTING


def describe_absence(plugins: _Plugins, name: str) -> str:
    """Return the reason for clients why a plugin does not run."""
    refusal = refusal_of(plugins, name)
    if refusal is QUARANTINED:
        return (
            f"plugin {name!r} is in quarantine: it crashed too often or did not start; the operator sees the "
            "cause in `tangram status` and the log"
        )
    if refusal is STOPPED:
        return f"plugin {name!r} is stopped: the operator has stopped it, and can restart it"
    return f"plugin {name!r} is restarting"
