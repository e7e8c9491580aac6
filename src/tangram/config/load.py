"""Read the configuration from file and environment into the model; list every fault."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import attrs

from tangram.config import checks
from tangram.config.model import Config, MapStyle
from tangram.config.names import nearest, normalise
from tangram.config.structure import structure_table
from tangram.errors import ConfigError, Fault

__all__ = ["LoadedConfig", "current_folder", "find_config_file", "load_config", "load_tables"]

_PREFIX: Final = "TANGRAM_"
_POSITION: Final = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_TABLES: Final[Mapping[str, type]] = {
    field.name: field.type
    for field in attrs.fields(Config)
    if isinstance(field.type, type) and attrs.has(field.type)
}
"""The tables of the server by name, each with its class; the plugins' tables are not among them."""


class LoadedConfig(NamedTuple):
    """A valid configuration, and warnings about it."""

    config: Config
    warnings: tuple[str, ...]


class _Setting(NamedTuple):
    """One environment variable that names a setting."""

    variable: str
    path: tuple[str, ...]
    text: str


def current_folder() -> Path:
    """Return the current folder.

    Raises:
        ConfigError: the folder was removed after the process was started in it.
    """
    try:
        return Path.cwd()
    except OSError:
        what = "the current folder was removed: start in a folder that exists"
        raise ConfigError([Fault(what, ".", "missing_folder")]) from None


def find_config_file(explicit: str | Path | None, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """Return the path of the configuration file, or None for the defaults.

    The order is ``--config``, ``TANGRAM_CONFIG``, ``./tangram.toml`` and
    ``$XDG_CONFIG_HOME/tangram/tangram.toml``. The first two need not exist; ``load_config`` then reports
    it. No file is created.

    Args:
        explicit: the value of ``--config``.
        environ: the environment.
        cwd: the current folder.
    """
    named = explicit or environ.get("TANGRAM_CONFIG")
    if named:
        return cwd / _expanded(Path(named))
    home = environ.get("XDG_CONFIG_HOME") or _expanded(Path(environ.get("HOME") or "~")) / ".config"
    candidates = (cwd / "tangram.toml", Path(home) / "tangram" / "tangram.toml")
    return next((path for path in candidates if _is_file(path)), None)


def load_config(path: Path | None, environ: Mapping[str, str], *, text: bytes | None = None) -> LoadedConfig:
    """Read the configuration from a file and the environment.

    Args:
        path: the file; None for the defaults.
        environ: the environment, whose ``TANGRAM_SECTION__KEY`` variables replace values of the file.
        text: the content of the file if it was read before.

    Raises:
        ConfigError: something is wrong; the error lists every fault.
    """
    about = f"configuration {path}" if path else "configuration from the environment"
    written = _parse(_read(path) if text is None else text, path) if path else {}
    settings = list(_settings(environ))
    for setting in settings:
        _apply(written, setting)
    try:
        return _build(written, path)
    except ConfigError as error:
        raise ConfigError([_with_origin(fault, settings) for fault in error.faults], about=about) from None


def load_tables(tables: Mapping[str, Any]) -> LoadedConfig:
    """Return the configuration that a program gives as tables of ``tangram.toml``.

    For example, ``load_tables({"core": {"plugins": ["tangram_demo"]}})``.

    Raises:
        ConfigError: something is wrong; the error lists every fault.
    """
    try:
        return _build(tables, None)
    except ConfigError as error:
        raise ConfigError(error.faults, about="configuration of the program") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        fault = Fault(f"cannot be read: {reason}", str(path), "unreadable")
        raise ConfigError([fault], about=f"configuration {path}") from None


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        fault = Fault("expected UTF-8 text", f"{path}:{line}:{column}", "toml_syntax")
    except RecursionError:
        fault = Fault("nested too deeply", str(path), "toml_syntax")
    except ValueError as error:
        fault = _syntax_fault(error, data, path)
    raise ConfigError([fault], about=f"configuration {path}")


def _syntax_fault(error: ValueError, data: bytes, path: Path) -> Fault:
    text = str(error)
    position = _POSITION.search(text)
    what = _POSITION.sub("", text)
    what = f"not valid TOML: {what[:1].lower()}{what[1:]}"
    if position is None:
        return Fault(what, str(path), "toml_syntax")
    lines = data.decode("utf-8-sig").splitlines() or [""]
    line, column = position[1] or len(lines), position[2] or len(lines[-1]) + 1
    return Fault(what, f"{path}:{line}:{column}", "toml_syntax")


# --- environment


def _settings(environ: Mapping[str, str]) -> Iterator[_Setting]:
    """Yield the ``TANGRAM_SECTION__KEY`` variables, without empty ones of compose files."""
    for variable, text in sorted(environ.items()):
        parts = variable.removeprefix(_PREFIX).lower().split("__")
        if variable.startswith(_PREFIX) and len(parts) > 1 and all(parts) and text:
            yield _Setting(variable, tuple(parts), text)


def _apply(written: dict[str, Any], setting: _Setting) -> None:
    table: Any = written
    path = _plugin_path(written, setting.path)
    for part in path[:-1]:
        table = table.setdefault(part, {}) if isinstance(table, dict) else None
    if isinstance(table, dict):  # otherwise the table itself is a fault, which is reported later
        table[path[-1]] = _value(setting)


def _plugin_path(written: Mapping[str, Any], path: tuple[str, ...]) -> tuple[str, ...]:
    """Return the path with the plugin's name as the file spells it."""
    tables = written.get("plugins")
    if path[0] != "plugins" or not isinstance(tables, Mapping):
        return path
    spelt = next((name for name in tables if normalise(name) == normalise(path[1])), path[1])
    return (path[0], spelt, *path[2:])


def _value(setting: _Setting) -> Any:
    """Return a variable's text read as a TOML literal, or the text itself.

    It is the text itself if it is not a literal, or if the setting is a string: a secret may consist of
    digits.
    """
    try:
        document = tomllib.loads(f"value = {setting.text}")
    except (ValueError, RecursionError):
        return setting.text
    value = document.get("value")
    if len(document) > 1 or (not isinstance(value, str) and _is_text(setting.path)):
        return setting.text
    return value


def _is_text(path: tuple[str, ...]) -> bool:
    cls = _TABLES.get(path[0])
    if cls is None or len(path) != 2:
        return False
    field = attrs.fields_dict(cls).get(path[1])
    return field is not None and (field.type is str or set(get_args(field.type)) == {str, type(None)})


def _with_origin(fault: Fault, settings: list[_Setting]) -> Fault:
    for setting in settings:
        path = ".".join(setting.path)
        if fault.path == path or fault.path.startswith((f"{path}.", f"{path}[")):
            return fault._replace(what=f"{fault.what} (from {setting.variable})")
    return fault


# --- the model


def _build(written: Mapping[str, Any], path: Path | None) -> LoadedConfig:
    faults, sections = list[Fault](), dict[str, Any]()
    for name, cls in _TABLES.items():
        try:
            sections[name] = structure_table(cls, written.get(name, {}), path=name)
        except ConfigError as error:
            faults += error.faults
    plugins = _plugins(written.get("plugins", {}), faults)
    # A table with faults is replaced by its defaults, so that the checks between tables run as well.
    config = Config(plugins=plugins, source=path, **sections)
    failed = {fault.path.partition(".")[0] for fault in faults}
    faults += [fault for fault in checks.cross_faults(config) if fault.path.partition(".")[0] not in failed]
    config = _anchored(config, path.parent if path else current_folder(), faults)
    if faults:
        raise ConfigError(faults)
    return LoadedConfig(config, (*_unknown_tables(written), *checks.cross_warnings(config, written)))


def _plugins(tables: object, faults: list[Fault]) -> dict[str, dict[str, Any]]:
    if not isinstance(tables, dict):
        faults.append(
            Fault("expected a table for each plugin, as in [plugins.weather]", "plugins", "type_error")
        )
        return {}
    found, spelt = dict[str, dict[str, Any]](), dict[str, str]()
    for name, table in tables.items():
        key = normalise(name)
        if not isinstance(table, dict):
            faults.append(Fault(f"expected a table, as in [plugins.{name}]", f"plugins.{name}", "type_error"))
        elif key in spelt:
            faults.append(Fault(f"the same plugin as {spelt[key]!r}: expected one table", f"plugins.{name}"))
        else:
            found[key], spelt[key] = table, name
    return found


def _unknown_tables(written: Mapping[str, Any]) -> Iterator[str]:
    known = (*_TABLES, "plugins")
    for name in written:
        if name not in known:
            guess = nearest(name, known)
            yield f"unknown table [{name}] is ignored" + (f": did you mean [{guess}]?" if guess else "")


def _anchored(config: Config, base: Path, faults: list[Fault]) -> Config:
    """Return the configuration with absolute paths, checked files and local map styles."""
    server, broker = config.server, config.broker
    server = attrs.evolve(
        server,
        access_log=server.access_log or config.log.access,
        tls_cert=_file(server.tls_cert, base, "server.tls_cert", faults),
        tls_key=_file(server.tls_key, base, "server.tls_key", faults),
        state_dir=_absolute(server.state_dir, base),
        frontend=_frontend(server.frontend, base, faults),
    )
    entries = tuple(
        attrs.evolve(entry, local_path=_absolute(entry.local_path, base)) for entry in config.cache.entries
    )
    styles = [
        _local_style(style, base, f"map.styles[{i}]", faults) for i, style in enumerate(config.map.styles)
    ]
    return attrs.evolve(
        config,
        server=server,
        broker=attrs.evolve(broker, binary=_file(broker.binary, base, "broker.binary", faults)),
        cache=attrs.evolve(config.cache, entries=entries),
        map=attrs.evolve(
            config.map, style=_local_style(config.map.style, base, "map.style", faults), styles=tuple(styles)
        ),
    )


def _absolute(path: Path | None, base: Path) -> Path | None:
    return path and base.absolute() / _expanded(path)


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # '~name' of an account that does not exist: take the path as written
        return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for the system, or with a NUL in it
        return False


def _file(path: Path | None, base: Path, key: str, faults: list[Fault]) -> Path | None:
    found = _absolute(path, base)
    if found is not None and not _is_file(found):
        faults.append(Fault(f"expected a file, but there is none: {str(found)!r}", key, "missing_file"))
    return found


def _frontend(frontend: str | None, base: Path, faults: list[Fault]) -> str | None:
    if frontend is None or normalise(frontend) == "tangram_core":
        return frontend and normalise(frontend)
    folder = _absolute(Path(frontend), base)
    try:
        there = folder is not None and folder.is_dir()
    except (OSError, ValueError):
        there = False
    if not there:
        what = f"expected a folder or 'tangram_core', but there is no such folder: {str(folder)!r}"
        faults.append(Fault(what, "server.frontend", "missing_file"))
    return str(folder)


def _local_style(style: MapStyle, base: Path, key: str, faults: list[Fault]) -> MapStyle:
    """Return a style's content if it names a file; any other text is a URL, id or name."""
    if not isinstance(style, str) or style.startswith(("http://", "https://")):
        return style
    path = _absolute(Path(style), base)
    if path is None or not _is_file(path):
        if style.endswith(".json"):
            faults.append(
                Fault(f"expected a style file, but there is none: {str(path)!r}", key, "missing_file")
            )
        return style
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        faults.append(Fault(f"cannot read the style {str(path)!r} as JSON: {error}", key, "bad_style"))
        return style
    if not isinstance(content, dict):
        faults.append(
            Fault(f"expected a JSON object in {str(path)!r}, got {type(content).__name__}", key, "bad_style")
        )
        return style
    return content
