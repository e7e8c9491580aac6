"""The configuration in force: secrets starred, defaults told apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import attrs

from tangram.redis_url import redact_text

__all__ = ["HIDDEN", "settings_of", "table_of"]

HIDDEN: Final = "***"

_SECRET_KEY: Final = re.compile(
    r"token|secret|password|passwd|authorization|credential|api_?key", re.IGNORECASE
)

MAX_TEXT: Final = 400
"""Characters of a value that are shown."""


def settings_of(config: Any) -> Iterator[dict[str, Any]]:
    """Yield the server's own settings, table by table.

    Args:
        config: the configuration, of which each field with an attrs class is a table.
    """
    for table in attrs.fields(type(config)):
        value = getattr(config, table.name)
        if attrs.has(type(value)):
            yield {"table": table.name, "settings": list(_fields_of(value))}


def table_of(structured: Any, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a plugin's settings.

    Args:
        structured: the validated table: an attrs class, a dataclass or a mapping.
        given: the table as the operator wrote it; other settings are defaults.
    """
    written = {key.replace("-", "_") for key in given}
    values = structured if isinstance(structured, Mapping) else _attributes(structured)
    secret = _secret_fields(structured)
    return [
        _entry(key, value, default=key.replace("-", "_") not in written, secret=key in secret)
        for key, value in values.items()
    ]


def _fields_of(table: Any) -> Iterator[dict[str, Any]]:
    for field in attrs.fields(type(table)):
        value, default = getattr(table, field.name), field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # attrs.Factory is a class at run time
            default = default.factory()
        yield _entry(field.name, value, default=value == default, secret=bool(field.metadata.get("secret")))


def _attributes(structured: Any) -> dict[str, Any]:
    names: Iterable[str]
    if attrs.has(type(structured)):
        names = [field.name for field in attrs.fields(type(structured))]
    else:
        names = vars(structured)
    return {name: getattr(structured, name) for name in names if not name.startswith("_")}


def _secret_fields(structured: Any) -> set[str]:
    if not attrs.has(type(structured)):
        return set()
    return {one.name for one in attrs.fields(type(structured)) if one.metadata.get("secret") or not one.repr}


def _entry(key: str, value: Any, *, default: bool, secret: bool) -> dict[str, Any]:
    hidden = (secret or _SECRET_KEY.search(key)) and value not in (None, "")
    return {"key": key, "value": HIDDEN if hidden else _shown(value), "default": default}


def _shown(value: Any) -> Any:
    """Return a value as JSON can have it, without secrets at any depth."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact_text(value)[:MAX_TEXT]
    if isinstance(value, Mapping):
        return {
            str(key): HIDDEN if _SECRET_KEY.search(str(key)) and item else _shown(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_shown(item) for item in value]
    if attrs.has(type(value)):
        return _shown(_attributes(value))
    return redact_text(str(value))[:MAX_TEXT]
