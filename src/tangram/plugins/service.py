"""Describe one service of a plugin: its function and how it is supervised.

This file declares only. ``host.py`` runs services.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

import attrs

from tangram import defaults
from tangram.plugins.instances import Instances

__all__ = [
    "RESTART_TYPES",
    "RestartType",
    "Service",
    "ServiceFunction",
    "is_async",
    "name_of",
    "takes_task_status",
]

RestartType: TypeAlias = Literal["permanent", "transient", "temporary"]
RESTART_TYPES: Final[tuple[RestartType, ...]] = ("permanent", "transient", "temporary")
"""The values of ``restart``, from the strictest to the most lenient."""

ServiceFunction: TypeAlias = Callable[..., Any]
"""``async def f(state)``, ``async def f(state, *, task_status)`` or, in a thread, ``def f(state)``."""


@attrs.frozen(eq=False)
class Service:
    """A registered service: a function and its supervision settings."""

    function: ServiceFunction
    """Called with the ``BackendState``, once in each incarnation of the plugin."""
    name: str
    """Unique within its plugin."""
    priority: int = 0
    """Services start in order of (priority, name)."""
    restart: RestartType = "transient"
    """Which ends of the function count as a crash: see ``Plugin.register_service``."""
    start_timeout: float = defaults.START_TIMEOUT
    """Seconds until the function must call ``task_status.started()``, if it takes ``task_status``."""
    stop_timeout: float = defaults.STOP_TIMEOUT
    """Seconds that the function may take to end after it was cancelled."""
    threaded: bool = False
    """The function is not async and runs in a thread."""
    reports_start: bool = False
    """The function takes ``task_status`` and reports its start itself."""
    instances: Instances = "each"
    """On how many nodes it runs: see ``Plugin.register_service``."""


def name_of(function: object) -> str:
    """Return the default name of a service: the name of its function."""
    inner = inspect.unwrap(function) if callable(function) else function
    return str(
        getattr(inner, "__name__", None) or getattr(getattr(inner, "func", None), "__name__", "service")
    )


def is_async(function: ServiceFunction) -> bool:
    """Return whether a call gives an awaitable.

    Partials and objects with an async ``__call__`` are recognised.
    """
    inner: Any = function
    while hasattr(inner, "func") and not inspect.isfunction(inner):
        inner = inner.func
    called = getattr(type(inner), "__call__", None)  # noqa: B004 - asks whether it is async, not whether it exists
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(called)


def takes_task_status(function: ServiceFunction) -> bool:
    """Return whether a function has a parameter ``task_status``."""
    try:
        return "task_status" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        # Builtins have no signature, and no task_status.
        return False
