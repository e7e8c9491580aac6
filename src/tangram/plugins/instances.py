"""On how many nodes a plugin runs: its author's declaration, and the operator's setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from tangram.errors import Fault, PluginConfigError, PluginError

__all__ = ["INSTANCES", "Instances", "check_instances", "has_setting", "split_instances"]

Instances: TypeAlias = Literal["each", "one"]
INSTANCES: Final[tuple[Instances, ...]] = ("each", "one")
"""The values of ``instances``: on every node, or on one node at a time."""


def check_instances(value: object) -> None:
    """Refuse a value that an author has declared and that is none of `INSTANCES`.

    Raises:
        PluginError: it is none of them.
    """
    if value not in INSTANCES:
        raise PluginError(f"instances={value!r} is not one of {', '.join(map(repr, INSTANCES))}")


def has_setting(config_class: type[Any] | None, name: str) -> bool:
    """Return whether a plugin's configuration has a field of that name."""
    names: set[str] = set()
    for cls in getattr(config_class, "__mro__", ()):
        names.update(vars(cls).get("__annotations__", ()))
    return name in names


def split_instances(
    config_class: type[Any] | None, raw: Mapping[str, Any], *, key: str
) -> tuple[Mapping[str, Any], Instances | None]:
    """Separate ``instances`` from ``[plugins.KEY]``, unless it is the plugin's own setting.

    Returns:
        The table without it, and the value if it is set.

    Raises:
        PluginConfigError: the value is none of `INSTANCES`.
    """
    if "instances" not in raw or has_setting(config_class, "instances"):
        return raw, None
    value = raw["instances"]
    if value not in INSTANCES:
        expected = " or ".join(map(repr, INSTANCES))
        fault = Fault(f"expected {expected}, got {value!r}", f"plugins.{key}.instances", "value")
        raise PluginConfigError([fault], plugin=key)
    return {name: setting for name, setting in raw.items() if name != "instances"}, value
