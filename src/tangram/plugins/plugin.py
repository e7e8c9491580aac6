"""Declare a plugin: its services, routes, front end and configuration classes.

This file declares only. ``host.py`` runs plugins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import attrs

from tangram import defaults
from tangram.config.structure import structure_plugin_config
from tangram.declared.channel import DeclaredChannel, PluginLink, declare_channel
from tangram.errors import PluginError
from tangram.plugins.instances import Instances, check_instances, split_instances
from tangram.plugins.service import (
    RESTART_TYPES,
    RestartType,
    Service,
    ServiceFunction,
    is_async,
    name_of,
    takes_task_status,
)
from tangram.plugins.state import BackendState

if TYPE_CHECKING:
    from quart import Blueprint

    from tangram.history import History
    from tangram.routing import APIRouter

__all__ = ["RESTART_TYPES", "Authorize", "Lifespan", "Plugin", "RestartType", "Service", "ServiceFunction"]

Lifespan: TypeAlias = Callable[[BackendState], AbstractAsyncContextManager[Any]]
Authorize: TypeAlias = Callable[[str, str, Any], Awaitable[str | None] | str | None]
"""``authorize(topic, id, request)`` returns None to allow a join, or the reason of a refusal.

It may also raise ``Refused``.
"""

F = TypeVar("F", bound=ServiceFunction)


def _routers(given: Iterable[APIRouter]) -> list[APIRouter]:
    return list(given)


def _blueprints(given: Iterable[Blueprint]) -> list[Blueprint]:
    return list(given)


@attrs.define(eq=False, slots=False, repr=False)
class Plugin:
    """A plugin as its author declares it.

    The object is mutable, and is compared and hashed by identity. The loader sets ``name`` and ``dist_name``.

    Example::

        plugin = Plugin(routers=[router])

        @plugin.register_service()
        async def measure(state: BackendState) -> None: ...
    """

    island: ClassVar[bool] = False
    """Its code is written for asyncio and runs on an asyncio loop of its own."""

    frontend_path: str | None = None
    """The folder of the built front end.

    It is relative to the project's root in an editable install, and to the import package in a wheel.
    """
    routers: list[APIRouter] = attrs.field(factory=list, converter=_routers)
    blueprints: list[Blueprint] = attrs.field(factory=list, converter=_blueprints)
    config_class: type[Any] | None = None
    """The attrs class, dataclass or TypedDict that ``[plugins.NAME]`` is structured into."""
    frontend_config_class: type[Any] | None = None
    """The attrs class of the values that the browser receives and the settings page edits."""
    into_frontend_config_function: Callable[[Any], Any] | None = None
    """Takes the validated configuration and returns a ``frontend_config_class``."""
    lifespan: Lifespan | None = None
    """Entered before the services start, left after they have stopped."""
    authorize: Authorize | Mapping[str, Authorize] | None = None
    """Decides which clients may join a topic: a function for all topics, or functions by pattern.

    ``{"secret": check, "secret:*": check}`` guards ``secret`` and all topics below it. If several patterns
    match a topic, all of their functions are asked. A topic that no pattern matches may be joined.
    """
    history: Mapping[str, History] = attrs.field(factory=dict, kw_only=True)
    """Topics whose messages are kept, by pattern: ``{"flights:*": History(size=200)}``.

    The operator's ``[[channel.history]]`` comes first.
    """
    get_typer: Callable[[], Any] | None = None
    """Returns the plugin's command-line application."""
    console: str | None = None
    """A page for the operator in the menu of the console: a folder, or the path of a route.

    A folder is relative as that of ``frontend_path``, has an ``index.html``, and is served to operators who
    are logged in. A path begins with a slash, as in ``/my-plugin/status``; its route decides about access.
    """

    instances: Instances | None = attrs.field(default=None, kw_only=True)
    """On how many nodes of a cluster the plugin runs: ``"each"`` (the default) or ``"one"`` at a time.

    With ``"one"`` its services, its lifespan and its routes are on that node; the others forward requests to
    it.
    The operator's ``[plugins.NAME] instances`` comes first.
    """

    services: list[Service] = attrs.field(factory=list, init=False)
    """Sorted by (priority, name)."""
    channels: list[DeclaredChannel] = attrs.field(factory=list, init=False)
    """The channels that ``channel`` has declared."""
    link: PluginLink = attrs.field(factory=PluginLink, init=False)
    """Connects the declared channels with the server that runs the plugin."""
    dist_name: str = attrs.field(default="", init=False)
    """The ``Name`` of the distribution that installed the plugin."""
    name: str = attrs.field(default="", init=False)
    """The name of its entry point, as ``/-/plugins`` and the log show it."""

    def __attrs_post_init__(self) -> None:
        if self.instances is not None:
            check_instances(self.instances)

    def __repr__(self) -> str:
        services = [service.name for service in self.services]
        return f"<Plugin {self.name or '(not loaded)'!r}, services {services}>"

    def channel(self, topic: str, *, description: str = "") -> DeclaredChannel:
        """Declare the topics of one form, for typed messages and for pushes with checked payloads.

        Example::

            flights = plugin.channel("flights:{area}")
            position = flights.sends("position", Position)

        Args:
            topic: the name; ``{area}`` stands for any text without a colon.
            description: for the documentation.

        Raises:
            PluginError: the name is malformed, or declared already.
        """
        made = declare_channel(topic, self.link, description)
        if any(known.template == made.template for known in self.channels):
            raise PluginError(f"the channel {topic!r} is declared already")
        self.channels.append(made)
        return made

    def structure_config(self, raw: Mapping[str, Any], *, key: str) -> Any:
        """Return ``[plugins.KEY]`` structured into ``config_class``, or unchanged without one.

        Raises:
            PluginConfigError: the table does not fit the class; it lists every fault.
        """
        raw, _ = split_instances(self.config_class, raw, key=key)
        if self.config_class is None:
            return raw
        return structure_plugin_config(self.config_class, raw, plugin=key)

    def instances_with(self, raw: Mapping[str, Any], *, key: str) -> Instances:
        """Return on how many nodes the plugin runs with the table ``[plugins.KEY]``.

        Raises:
            PluginConfigError: the table has a wrong value.
        """
        _, wanted = split_instances(self.config_class, raw, key=key)
        return wanted or self.instances or ("one" if self.island else "each")

    def frontend_entry(self, shown: Any) -> dict[str, Any]:
        """Return ``config`` and ``config_json_schema`` of the plugin's entry in the manifest.

        Args:
            shown: the configuration that the browser may read.
        """
        if self.frontend_config_class is None:
            return {}
        # Imported here: few plugins declare a frontend_config_class.
        from tangram.routing.schema import json_schema

        return {"config": shown, "config_json_schema": json_schema(self.frontend_config_class)}

    def frontend_problems(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Check ``values`` against ``frontend_config_class``; return the faults by place."""
        if self.frontend_config_class is None:
            return {}
        from tangram.routing.convert import problems_of, structurer

        errors: dict[str, str] = {}
        try:
            structurer(self.frontend_config_class)(values)
        except Exception as error:  # noqa: BLE001 - the author's class and its validators may raise anything
            for problem in problems_of(error, ()):
                errors.setdefault(".".join(map(str, problem.loc)), problem.msg)
        return errors

    def register_service(
        self,
        priority: int = 0,
        *,
        restart: RestartType = "transient",
        name: str | None = None,
        start_timeout: float = defaults.START_TIMEOUT,
        stop_timeout: float = defaults.STOP_TIMEOUT,
        instances: Instances = "each",
    ) -> Callable[[F], F]:
        """Decorate a function to run as a service for as long as the plugin runs.

        The decorator is called with parentheses: ``@plugin.register_service()``.

        Args:
            priority: services with lower numbers start first; equal numbers start in order of their names.
            restart: which end of the function is a crash of the plugin. ``"permanent"``: any end.
                ``"transient"``: an exception; the function may return. ``"temporary"``: none; the function
                runs once after the start of the server, or after a reload.
            name: unique in the plugin; the name of the function by default.
            start_timeout: seconds until the function must call ``task_status.started()``, if it takes
                ``task_status``.
            stop_timeout: seconds that the function may take to end after it was cancelled.
            instances: on how many nodes of a cluster the function runs: ``"each"`` node of the plugin, or
                ``"one"`` of them at a time. On the others the service waits.

        Raises:
            PluginError: the declaration cannot work. It is raised when the plugin is imported.
        """
        if callable(priority):
            raise PluginError(
                "register_service must be called: write @plugin.register_service() above "
                f"{name_of(priority)!r}, with parentheses"
            )
        if restart not in RESTART_TYPES:
            raise PluginError(f"restart={restart!r} is not one of {', '.join(map(repr, RESTART_TYPES))}")
        check_instances(instances)
        if start_timeout <= 0 or stop_timeout <= 0:
            raise PluginError(
                f"start_timeout={start_timeout!r} and stop_timeout={stop_timeout!r} must be seconds above 0"
            )

        def register(function: F) -> F:
            service = Service(
                function=function,
                name=name or name_of(function),
                priority=priority,
                restart=restart,
                start_timeout=start_timeout,
                stop_timeout=stop_timeout,
                threaded=not is_async(function),
                reports_start=takes_task_status(function),
                instances=instances,
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
