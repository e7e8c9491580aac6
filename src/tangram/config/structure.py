"""Turn the values of TOML into objects, through cattrs; list every fault and hide secrets.

The server's own tables are read strictly: a setting has one type, and only an integer may stand for a
float. A plugin's table is read as leniently as the published server reads it (``"3"`` is a valid integer),
because existing plugins depend on that.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast, get_args, get_origin

import attrs

from tangram.config import model
from tangram.config.names import nearest
from tangram.errors import ConfigError, Fault, PluginConfigError
from tangram.redis_url import redact_text, redact_url

if TYPE_CHECKING:
    from cattrs import BaseConverter

__all__ = ["structure_plugin_config", "structure_table", "unknown_plugin_keys"]

T = TypeVar("T")

_SHOWN: Final = 80
"""Characters of a value that a fault shows: enough for an address or a path, but not for a certificate."""
_SECRET_NAME: Final = re.compile(r"secret|token|passw|api_?key|credential|private|dsn", re.IGNORECASE)
_KINDS: Final[tuple[tuple[type | tuple[type, ...], str], ...]] = (
    (bool, "a boolean"),
    (int, "an integer"),
    (float, "a float"),
    (str, "a string"),
    (Mapping, "a table"),
    ((list, tuple), "an array"),
)


class _WrongError(ValueError):
    """A value of the wrong kind; the message names the expectation, ``kind`` is for programs."""

    def __init__(self, expected: str, kind: str = "type_error") -> None:
        self.kind = kind
        super().__init__(f"expected {expected}")


class _FoundError(ValueError):
    """Faults inside one value, with paths relative to it."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__(f"{len(self.faults)} faults")


def _kind(value: object) -> str:
    return next((name for types, name in _KINDS if isinstance(value, types)), f"a {type(value).__name__}")


def _show(value: object, *, secret: bool) -> str:
    """Return the text of a value, or only its kind if it is a secret or may hold one."""
    if secret or isinstance(value, (Mapping, list, tuple)):
        return _kind(value)
    text = repr(redact_url(value)) if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def join(path: str, key: str | int) -> str:
    """Return the path of a key or index inside another path, as in ``core.plugins[1]``."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def faults_of(error: BaseException, path: str, value: object, *, secret: bool = False) -> Iterator[Fault]:
    """Yield every fault in an exception that a structuring hook raised.

    Args:
        error: the exception, for example a group.
        path: the path of the value.
        value: the value that was structured.
        secret: whether the value must not be shown.
    """
    secret = secret or bool(_SECRET_NAME.search(path.rpartition(".")[2]))
    if isinstance(error, _FoundError):
        for fault in error.faults:
            yield fault._replace(
                path=path + fault.path if fault.path.startswith("[") else join(path, fault.path)
            )
    elif isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _fault_of_part(inner, path, value, secret=secret)
    elif isinstance(error, KeyError):
        yield Fault("required, but not there", join(path, str(error.args[0])), "missing")
    else:
        kind = getattr(error, "kind", "value_error")
        yield Fault(
            f"{_expectation(error, path, secret=secret)}, got {_show(value, secret=secret)}", path, kind
        )


def _fault_of_part(error: BaseException, path: str, value: object, *, secret: bool) -> Iterator[Fault]:
    """Yield the faults of one exception of a group, at the attribute or index that it names."""
    place = _place(error)
    if place is None:
        yield from faults_of(error, path, value, secret=secret)
        return
    if isinstance(error, KeyError) and place == error.args[0]:
        yield Fault("required, but not there", join(path, place), "missing")
        return
    yield from faults_of(error, join(path, place), _at(value, place), secret=secret)


def _place(error: BaseException) -> str | int | None:
    """Return the attribute or index of an exception, from its notes or arguments."""
    from cattrs import AttributeValidationNote, IterableValidationNote

    for note in getattr(error, "__notes__", ()):
        if isinstance(note, AttributeValidationNote):
            return str(note.name)
        if isinstance(note, IterableValidationNote):
            return note.index if isinstance(note.index, int) else str(note.index)
    return error.args[1] if len(error.args) == 2 and isinstance(error.args[1], int) else None


def _at(value: object, place: str | int) -> object:
    if isinstance(value, Mapping):
        return value.get(place)
    if isinstance(place, int) and isinstance(value, Sequence) and place < len(value):
        return value[place]
    return value


def _expectation(error: BaseException, path: str, *, secret: bool) -> str:
    """Return the expectation in an exception's message.

    attrs writes ``'zoom' must be <= 24: 99``; only the middle is of use.
    """
    text = str(error.args[0]) if error.args else type(error).__name__
    name = path.rpartition(".")[2]
    of_attrs = f"'{name}' must be "
    if text.startswith(of_attrs):
        return f"expected a value {text.removeprefix(of_attrs).rpartition(':')[0]}"
    if isinstance(error, _WrongError) or text.startswith("expected "):
        return text
    # A message from elsewhere may quote the value.
    return "not a valid value" if secret else redact_text(text)


# --- the server's own tables: strict


def _strict(types: type | tuple[type, ...], expected: str, value: Any, _type: Any) -> Any:
    # A boolean is an integer to Python, but not a valid number here.
    if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
        raise _WrongError(expected)
    return value


def _strict_float(value: Any, _type: Any) -> float:
    number = float(_strict((int, float), "a number", value, _type))
    if number - number != 0:
        raise _WrongError("a finite number", "finite_number")
    return number


def _path(value: Any, _type: Any) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise _WrongError("the path of a file or folder")
    return Path(value)


def _literal(value: Any, type_: Any) -> Any:
    words = get_args(type_)
    if not isinstance(value, str) or value not in words:
        raise _WrongError(f"one of {', '.join(map(repr, words))}", "literal_error")
    return value


def _array(converter: "BaseConverter", value: Any, type_: Any) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _WrongError("an array")
    item_type = get_args(type_)[0]
    items, found = [], list[Fault]()
    for index, item in enumerate(value):
        try:
            items.append(converter.structure(item, item_type))
        except Exception as error:  # noqa: BLE001 - every exception of a hook is a fault
            found += faults_of(error, f"[{index}]", item)
    if found:
        raise _FoundError(found)
    return tuple(items)


def _flags(value: Any, _type: Any) -> dict[str, bool]:
    if not isinstance(value, Mapping):
        raise _WrongError("a table")
    found = [
        Fault(f"expected true or false, got {_show(flag, secret=False)}", key, "type_error")
        for key, flag in value.items()
        if not isinstance(flag, bool)
    ]
    if found:
        raise _FoundError(found)
    return dict(value)


def _style(value: Any, _type: Any) -> model.MapStyle:
    if not isinstance(value, (str, Mapping)) or not value:
        raise _WrongError("a style's URL, file, id or name, or a style table")
    return value


def _theme(converter: "BaseConverter", value: Any, _type: Any) -> str | model.AdaptiveTheme:
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise _WrongError("the name of a theme, or a table with light and dark")
    return converter.structure(value, model.AdaptiveTheme)


def _count(value: Any, _type: Any) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    return int(_strict(int, "an integer or 'auto'", value, int))


def _presence(converter: "BaseConverter", value: Any, _type: Any) -> bool | tuple[model.PresenceEntry, ...]:
    if isinstance(value, bool):
        return value
    if not isinstance(value, (list, tuple)):
        raise _WrongError("true, false or an array of tables")
    return _array(converter, value, tuple[model.PresenceEntry, ...])


def _section(converter: "BaseConverter", value: Any, cls: type[T]) -> T:
    """Return one of the server's tables as its class, and collect the faults of all fields."""
    if not isinstance(value, Mapping):
        raise _WrongError("a table")
    fields = {field.name: field for field in attrs.fields(cls)}  # type: ignore[arg-type]
    found = [_unknown(key, fields) for key in value if key not in fields]
    values = dict[str, Any]()
    for name, field in fields.items():
        if name not in value:
            if field.default is attrs.NOTHING:
                found.append(Fault("required, but not there", name, "missing"))
            continue
        raw = value[name]
        try:
            values[name] = _field(converter, field, raw)
        except Exception as error:  # noqa: BLE001 - every exception of a hook is a fault
            found += faults_of(error, name, raw, secret=bool(field.metadata.get("secret")))
    if found:
        raise _FoundError(found)
    return cls(**values)


def _field(converter: "BaseConverter", field: "attrs.Attribute[Any]", raw: Any) -> Any:
    if field.metadata.get("comma") and isinstance(raw, str):
        raw = [part.strip() for part in raw.split(",") if part.strip()]
    if (
        field.metadata.get("joined")
        and isinstance(raw, list)
        and raw
        and all(isinstance(part, str) for part in raw)
    ):
        raw = ", ".join(raw)
    structured = converter.structure(raw, cast("type[Any]", field.type))
    if field.validator is not None:
        field.validator(None, field, structured)
    return structured


def _unknown(key: str, known: Mapping[str, object]) -> Fault:
    guess = nearest(key, known)
    hint = f"did you mean {guess!r}?" if guess else f"known are {', '.join(known)}"
    return Fault(f"unknown key {key!r}: {hint}", key, "unknown_key")


def _is_literal(type_: Any) -> bool:
    return get_origin(type_) is Literal


def _is_array(type_: Any) -> bool:
    return get_origin(type_) is tuple


@cache
def _strict_converter() -> "BaseConverter":
    """Return the strict converter; made on first use, because importing cattrs is slow."""
    from cattrs import BaseConverter

    converter = BaseConverter(detailed_validation=True)
    hook = converter.register_structure_hook_func
    converter.register_structure_hook(str, partial(_strict, str, "a string"))
    converter.register_structure_hook(bool, partial(_strict, bool, "true or false"))
    converter.register_structure_hook(int, partial(_strict, int, "an integer"))
    converter.register_structure_hook(float, _strict_float)
    converter.register_structure_hook(Path, _path)
    hook(_is_literal, _literal)
    hook(lambda t: t == int | Literal["auto"], _count)
    hook(_is_array, partial(_array, converter))
    hook(lambda t: t == Mapping[str, bool], _flags)
    hook(lambda t: t == model.MapStyle, _style)
    hook(lambda t: t == str | model.AdaptiveTheme, partial(_theme, converter))
    hook(lambda t: t == bool | tuple[model.PresenceEntry, ...], partial(_presence, converter))
    hook(lambda t: isinstance(t, type) and attrs.has(t), partial(_section, converter))
    return converter


def structure_table(cls: type[T], raw: object, *, path: str = "") -> T:
    """Return an object of one of the model's classes, made from plain values.

    Args:
        cls: the class, for example ``ServerConfig``.
        raw: the table as TOML gives it.
        path: the path of the table in faults.

    Raises:
        ConfigError: something is wrong; the error lists every fault.
    """
    try:
        return _strict_converter().structure(raw, cls)
    except Exception as error:  # noqa: BLE001 - every exception of a hook is a fault
        raise ConfigError(list(faults_of(error, path, raw))) from None


# --- a plugin's table: lenient


def _lax_int(value: Any, _type: Any) -> int:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, (float, str)):
        try:
            number = int(value)
        except (ValueError, OverflowError):
            raise _WrongError("an integer", "int_parsing") from None
        if isinstance(value, str) or number == value:
            return number
    raise _WrongError("an integer", "int_type")


def _lax_float(value: Any, _type: Any) -> float:
    if isinstance(value, (int, float, str)):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise _WrongError("a number", "float_parsing")


_TRUTHS: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def _lax_bool(value: Any, _type: Any) -> bool:
    if isinstance(value, (bool, int, float)) and value in {0, 1}:
        return bool(value)
    if isinstance(value, str) and value.lower() in _TRUTHS:
        return _TRUTHS[value.lower()]
    raise _WrongError("true or false", "bool_parsing")


@cache
def _lax_converter() -> "BaseConverter":
    from cattrs import Converter
    from cattrs.preconf.tomllib import configure_converter

    converter = Converter(detailed_validation=True, forbid_extra_keys=False)
    configure_converter(converter)
    converter.register_structure_hook(str, partial(_strict, str, "a string"))
    converter.register_structure_hook(bool, _lax_bool)
    converter.register_structure_hook(int, _lax_int)
    converter.register_structure_hook(float, _lax_float)
    converter.register_structure_hook(Path, _path)
    return converter


def structure_plugin_config(cls: type[T], raw: Mapping[str, Any], *, plugin: str) -> T:
    """Return a plugin's table as an object of its ``config_class``.

    Keys that the class does not know are ignored; see ``unknown_plugin_keys``.

    Args:
        cls: an attrs class, a dataclass or a TypedDict.
        raw: the table.
        plugin: the plugin's name.

    Raises:
        PluginConfigError: something is wrong; the error lists every fault, also those of the class's own
            validators.
    """
    try:
        if not isinstance(raw, Mapping):
            raise _WrongError("a table")  # noqa: TRY301 - one place turns errors into faults
        return _lax_converter().structure(raw, cls)
    except Exception as error:
        faults = list(faults_of(error, f"plugins.{plugin}", raw))
        raise PluginConfigError(faults, plugin=plugin) from error


def unknown_plugin_keys(cls: type, raw: Mapping[str, Any], *, plugin: str) -> tuple[str, ...]:
    """Return a warning for each key that a plugin's configuration class ignores.

    A TypedDict has none, because it may hold more keys than it names.
    """
    from dataclasses import fields, is_dataclass

    if attrs.has(cls):
        known = {field.name: None for field in attrs.fields(cls)}
    elif is_dataclass(cls):
        known = {field.name: None for field in fields(cls)}
    else:
        return ()
    path = f"plugins.{plugin}"
    return tuple(str(_unknown(key, known)._replace(path=join(path, key))) for key in raw if key not in known)
