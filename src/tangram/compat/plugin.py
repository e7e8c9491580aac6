"""The class ``Plugin`` of existing plugins, with asyncio, FastAPI and pydantic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from tangram import defaults
from tangram.errors import Fault, PluginConfigError
from tangram.plugins.instances import Instances, has_setting, split_instances
from tangram.plugins.plugin import Plugin as NativePlugin
from tangram.plugins.plugin import ServiceFunction
from tangram.plugins.service import RESTART_TYPES, RestartType

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from tangram.compat.state import BackendState

__all__ = ["Plugin"]

F = TypeVar("F", bound=ServiceFunction)


class Plugin(NativePlugin):
    """A plugin written for ``tangram_core``: its code runs on an asyncio loop of its own.

    A plain mutable object, compared and hashed by identity.
    """

    island: ClassVar[bool] = True

    def __init__(  # noqa: PLR0917 - as published
        self,
        frontend_path: str | None = None,
        routers: Iterable[Any] = (),
        config_class: type[Any] | None = None,
        frontend_config_class: type[Any] | None = None,
        into_frontend_config_function: Callable[[Any], Any] | None = None,
        lifespan: Callable[[BackendState], AbstractAsyncContextManager[None]] | None = None,
        get_typer: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__(
            frontend_path=frontend_path,
            routers=list(routers),
            config_class=config_class,
            frontend_config_class=frontend_config_class,
            into_frontend_config_function=into_frontend_config_function,
            lifespan=lifespan,  # type: ignore[arg-type]  # it gets its own island's view of the state
            get_typer=get_typer,
        )
        self._adapters: dict[type[Any], TypeAdapter[Any]] = {}

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
        """Return a decorator that registers a service, which runs as long as the plugin does.

        It is called with parentheses: ``@plugin.register_service()``.
        """
        declare = super().register_service

        def register(function: F) -> F:
            wanted = name or str(getattr(function, "__name__", "service"))
            # The published server lets two services have one name.
            taken = {service.name for service in self.services}
            unique = next(
                one for one in (wanted, *(f"{wanted}_{n}" for n in range(2, 1000))) if one not in taken
            )
            return declare(
                priority,
                restart=restart,
                name=unique,
                start_timeout=start_timeout,
                stop_timeout=stop_timeout,
                instances=instances,
            )(function)

        if callable(priority):
            return declare(priority)  # raises the error about the missing parentheses

        return register

    def adapter(self) -> TypeAdapter[Any] | None:
        """Return pydantic's adapter of the ``config_class``."""
        return self._adapter(self.config_class)

    def frontend_adapter(self) -> TypeAdapter[Any] | None:
        """Return pydantic's adapter of the ``frontend_config_class``."""
        return self._adapter(self.frontend_config_class)

    def _adapter(self, cls: type[Any] | None) -> TypeAdapter[Any] | None:
        if cls is None:
            return None
        if cls not in self._adapters:
            from pydantic import TypeAdapter

            self._adapters[cls] = TypeAdapter(cls)
        return self._adapters[cls]

    # -- configuration: by pydantic where it is installed ----------------------------------------------------

    def split_config(
        self, raw: Mapping[str, Any], *, key: str
    ) -> tuple[Mapping[str, Any], RestartType | None]:
        """Separate ``restart`` and ``instances`` from ``[plugins.KEY]``.

        Returns:
            The table without them, unless they are the plugin's own settings, and the restart type of all
            services, if it is set.

        Raises:
            PluginConfigError: The value is no restart type.
        """
        raw, _ = split_instances(self.config_class, raw, key=key)
        if "restart" not in raw or has_setting(self.config_class, "restart"):
            return raw, None
        restart = raw["restart"]
        if restart not in RESTART_TYPES:
            expected = ", ".join(map(repr, RESTART_TYPES))
            fault = Fault(f"expected one of {expected}, got {restart!r}", f"plugins.{key}.restart", "value")
            raise PluginConfigError([fault], plugin=key)
        return {name: value for name, value in raw.items() if name != "restart"}, restart

    def structure_config(self, raw: Mapping[str, Any], *, key: str) -> Any:
        raw, _ = self.split_config(raw, key=key)
        if not _has_pydantic():
            return super().structure_config(raw, key=key)
        adapter = self.adapter()
        if adapter is None:
            return dict(raw)
        from pydantic import ValidationError

        try:
            return adapter.validate_python(dict(raw))
        except ValidationError as error:
            faults = [
                Fault(
                    _lower(problem["msg"]),
                    ".".join(map(str, ("plugins", key, *problem["loc"]))),
                    problem["type"],
                )
                for problem in error.errors(include_url=False)
            ]
            raise PluginConfigError(faults, plugin=key) from error

    def frontend_entry(self, shown: Any) -> dict[str, Any]:
        if not _has_pydantic():
            return super().frontend_entry(shown)
        from tangram.compat.configuration import to_frontend_manifest

        adapter = self.frontend_adapter()
        return {} if adapter is None else to_frontend_manifest(adapter, shown)

    def frontend_problems(self, values: Mapping[str, Any]) -> dict[str, str]:
        if not _has_pydantic():
            return super().frontend_problems(values)
        adapter = self.frontend_adapter()
        if adapter is None:
            return {}
        from pydantic import ValidationError

        try:
            adapter.validate_python(dict(values))
        except ValidationError as error:
            return {
                ".".join(map(str, problem["loc"])): problem["msg"]
                for problem in error.errors(include_url=False)
            }
        return {}


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _has_pydantic() -> bool:
    from importlib.util import find_spec

    return find_spec("pydantic") is not None
