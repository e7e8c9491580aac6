"""The module ``tangram_core.backend``: injection of the state, and helpers for programs."""

from __future__ import annotations

import logging
from importlib.metadata import Distribution
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from tangram.compat.configuration import (
    Config,
    FrontendConfig,
    core_into_frontend_config,
    parse_frontend_config,
    to_frontend_manifest,
)
from tangram.compat.names import has_fastapi
from tangram.compat.state import STATE, BackendState

if TYPE_CHECKING:
    from tangram.compat.plugin import Plugin

__all__ = [
    "DEFAULT_THEMES",  # noqa: F822 - found when it is asked for
    "BackendState",
    "Config",
    "FrontendConfig",
    "InjectBackendState",
    "core_into_frontend_config",
    "default_cache_dir",
    "get_distribution_path",
    "get_log_config_dict",
    "get_state",
    "load_enabled_plugins",
    "parse_frontend_config",
    "resolve_frontend",
    "to_frontend_manifest",
]

if TYPE_CHECKING or has_fastapi():
    # Not as a name of this module: routes are bound by resolving the annotation of ``request``.
    from fastapi import Depends
    from fastapi.requests import HTTPConnection as _Connection

    def get_state(request: _Connection) -> BackendState:
        """Return the state of the route's plugin: the dependency of `InjectBackendState`."""
        return cast("BackendState", getattr(request.app.state, STATE))

    InjectBackendState = Annotated[BackendState, Depends(get_state)]
else:
    # Our own routes inject by type.
    InjectBackendState = BackendState

    def get_state(state: BackendState) -> BackendState:
        """Return the state: the dependency for ``Depends(get_state)``."""
        return state


# FastAPI and tangram.routing look up these names when they bind the parameters of ``get_state``.
get_state.__annotations__ = {
    name: {"BackendState": BackendState, "_Connection": globals().get("_Connection")}.get(kind, kind)
    for name, kind in get_state.__annotations__.items()
}


def __getattr__(name: str) -> Any:
    if name == "DEFAULT_THEMES":
        from tangram.compat.configuration import default_themes

        return default_themes()
    raise AttributeError(f"module 'tangram_core.backend' has no attribute {name!r}")


def default_cache_dir() -> Path:
    """Return the folder in which fetched files are kept."""
    import os

    from tangram.config import cache_dir

    return cache_dir(os.environ)


def get_distribution_path(dist: Distribution | str) -> Path:
    """Return the project's root of an editable install, else the folder of the import package."""
    import importlib.metadata

    from tangram.compat.installed import distribution_path

    return distribution_path(importlib.metadata.distribution(dist) if isinstance(dist, str) else dist)


def resolve_frontend(plugin: Plugin) -> Path | None:
    """Return the folder of a plugin's front end, or ``None`` where there is none."""
    from tangram.compat.installed import frontend_of

    return frontend_of(plugin)


def load_enabled_plugins(config: Config) -> list[Plugin]:
    """Import the configured plugins; log and leave out those that cannot be loaded."""
    from tangram.compat.installed import load_enabled

    return load_enabled(config.core.plugins)


def get_log_config_dict(config: Config) -> dict[str, Any]:
    """Return a dictionary for ``logging.config.dictConfig`` that logs to standard error."""
    level = logging.getLevelNamesMapping().get(config.core.log_level.upper(), logging.INFO)
    handler: dict[str, Any] = {"class": "logging.StreamHandler", "stream": "ext://sys.stderr"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"default": handler},
        "root": {"handlers": ["default"], "level": level},
    }
