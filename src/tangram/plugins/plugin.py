"""``Plugin``: what an author declares. Nothing runs here; ``host.py`` does that."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeVar

import attrs

from tangram.config.structure import structure_plugin_config
from tangram.errors import PluginError
from tangram.plugins.state import BackendState

if TYPE_CHECKING:
    from quart import Blueprint

    from tangram.routing import APIRouter

__all__ = ["RESTART_TYPES", "Authorize", "Lifespan", "Plugin", "RestartType", "Service", "ServiceFunction"]

RestartType: TypeAlias = Literal["permanent", "transient", "temporary"]
RESTART_TYPES: tuple[RestartType, ...] = ("permanent", "transient", "temporary")

ServiceFunction: TypeAlias = Callable[..., Any]
"""``async def f(state)``, ``async def f(state, *, task_status)`` or, in a thread, ``def f(state)``."""
Lifespan: TypeAlias = Callable[[BackendState], AbstractAsyncContextManager[Any]]
Authorize: TypeAlias = Callable[[str, str, Any], Awaitable[str | None] | str | None]
"""``authorize(topic, id, request)``: ``None`` allows; a string, or a raised ``Refused``, is the reason why
not.
"""

F = TypeVar("F", bound=ServiceFunction)


@attrs.frozen(eq=False)
class Service:
    """One registered service: a function and how its life is to be supervised."""

    function: ServiceFunction
    """What is called with the ``BackendState``, anew for each incarnation."""
    name: str
    """Unique within its plugin."""
    priority: int = 0
    """Services start in order of (priority, name)."""
    restart: RestartType = "transient"
    """What its end means: see ``Plugin.register_service``."""
    start_timeout: float = 30.0
    """Seconds until ``task_status.started()`` must have been called, if the function takes
    ``task_status``.
    """
    stop_timeout: float = 5.0
    """Seconds it may take to end after it was told to."""
    threaded: bool = False
    """It is a plain function and runs in a thread."""
    reports_start: bool = False
    """It takes ``task_status`` and says itself when it is up."""


def _routers(given: Iterable[APIRouter]) -> list[APIRouter]:
    return list(given)


def _blueprints(given: Iterable[Blueprint]) -> list[Blueprint]:
    return list(given)


@attrs.define(eq=False, slots=False, repr=False)
class Plugin:
    """A plugin: its services, routes, front end, and the classes that check its configuration.

    A plain mutable object, compared and hashed by identity. ``name`` and ``dist_name`` are set by the loader.
    """

    island: ClassVar[bool] = False
    """Whether its code is written for asyncio, and runs on a loop of its own."""

    frontend_path: str | None = None
    """Folder of the built front end, relative to the project (editable install) or the import package
    (wheel).
    """
    routers: list[APIRouter] = attrs.field(factory=list, converter=_routers)
    blueprints: list[Blueprint] = attrs.field(factory=list, converter=_blueprints)
    config_class: type[Any] | None = None
    """attrs class, dataclass or TypedDict that ``[plugins.NAME]`` is structured into."""
    frontend_config_class: type[Any] | None = None
    into_frontend_config_function: Callable[[Any], Any] | None = None
    """Takes the validated configuration, returns what the browser may know: a ``frontend_config_class``."""
    lifespan: Lifespan | None = None
    """Entered before the services start, left after they have stopped."""
    authorize: Authorize | None = None
    get_typer: Callable[[], Any] | None = None

    services: list[Service] = attrs.field(factory=list, init=False)
    """Sorted by (priority, name)."""
    dist_name: str = attrs.field(default="", init=False)
    """The ``Name`` of the distribution that brought it."""
    name: str = attrs.field(default="", init=False)
    """The name of its entry point: what ``/-/plugins`` and the log call it."""

    def __repr__(self) -> str:
        services = [service.name for service in self.services]
        return f"<Plugin {self.name or '(not loaded)'!r}, services {services}>"

    def structure_config(self, raw: Mapping[str, Any], *, key: str) -> Any:
        """The table ``[plugins.KEY]`` as its ``config_class``; without one, as it is.

        Raises `PluginConfigError` with all faults.
        """
        if self.config_class is None:
            return raw
        return structure_plugin_config(self.config_class, raw, plugin=key)

    def frontend_entry(self, shown: Any) -> dict[str, Any]:
        """``config`` and ``config_json_schema`` of its entry in the manifest."""
        if self.frontend_config_class is None:
            return {}
        # Written by few plugins, and only for browsers.
        from tangram.routing.schema import json_schema

        return {"config": shown, "config_json_schema": json_schema(self.frontend_config_class)}

    def frontend_problems(self, values: Mapping[str, Any]) -> dict[str, str]:
        """What is wrong with values for its ``frontend_config_class``, by place; empty where nothing is."""
        if self.frontend_config_class is None:
            return {}
        from tangram.routing.convert import problems_of, structurer

        errors: dict[str, str] = {}
        try:
            structurer(self.frontend_config_class)(values)
        except Exception as error:  # noqa: BLE001  # the author's class and validators: anything may come
            for problem in problems_of(error, ()):
                errors.setdefault(".".join(map(str, problem.loc)), problem.msg)
        return errors

    def register_service(
        self,
        priority: int = 0,
        *,
        restart: RestartType = "transient",
        name: str | None = None,
        start_timeout: float = 30.0,
        stop_timeout: float = 5.0,
    ) -> Callable[[F], F]:
        """Decorator: run the function for as long as the plugin runs. Called with parentheses.

        ``restart`` says what its end means: ``"permanent"``, any end is a crash; ``"transient"``, an
        exception is (it may simply return); ``"temporary"``, it runs once after the server's start (or a
        reload) and its end means nothing. Raises `PluginError` for a declaration that cannot work, so that it
        is seen at import.
        """
        if callable(priority):
            raise PluginError(
                "register_service must be called: write @plugin.register_service() above "
                f"{_name_of(priority)!r}, with parentheses"
            )
        if restart not in RESTART_TYPES:
            raise PluginError(f"restart={restart!r} is not one of {', '.join(map(repr, RESTART_TYPES))}")
        if start_timeout <= 0 or stop_timeout <= 0:
            raise PluginError(
                f"start_timeout={start_timeout!r} and stop_timeout={stop_timeout!r} must be seconds above 0"
            )

        def register(function: F) -> F:
            service = Service(
                function=function,
                name=name or _name_of(function),
                priority=priority,
                restart=restart,
                start_timeout=start_timeout,
                stop_timeout=stop_timeout,
                threaded=not _is_async(function),
                reports_start=_takes_task_status(function),
            )
            self._add(service)
            return function

        return register

    def _add(self, service: Service) -> None:
        if any(known.name == service.name for known in self.services):
            raise PluginError(f"service {service.name!r} is registered twice: pass name= to tell them apart")
        if service.threaded and service.reports_start:
            raise PluginError(
                f"service {service.name!r} is a plain function, which runs in a thread and cannot take "
                "task_status: write it as async def"
            )
        self.services.append(service)
        self.services.sort(key=lambda known: (known.priority, known.name))


def _name_of(function: object) -> str:
    inner = inspect.unwrap(function) if callable(function) else function
    return str(
        getattr(inner, "__name__", None) or getattr(getattr(inner, "func", None), "__name__", "service")
    )


def _is_async(function: ServiceFunction) -> bool:
    # A partial, or an object with an async __call__, is async as well.
    inner: Any = function
    while hasattr(inner, "func") and not inspect.isfunction(inner):
        inner = inner.func
    called = getattr(type(inner), "__call__", None)  # noqa: B004  # is it async, not: is it there
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(called)


def _takes_task_status(function: ServiceFunction) -> bool:
    try:
        return "task_status" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        # Builtins and the like have no signature, and no task_status.
        return False
