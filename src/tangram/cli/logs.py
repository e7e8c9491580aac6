"""The format of log records: lines for people or JSON for programs, on standard error.

1. Records of the standard library's ``logging`` (from Quart, Hypercorn or a plugin) are written the same way.
2. Records that the code of a plugin causes have its name as ``plugin``.
3. A last processor removes tokens, secrets and passwords, in case a caller forgets to.
4. The levels may change while loggers are in use: they are compared at each record.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from tangram.cli.plugin_output import find_plugin
from tangram.cli.streams import write_line
from tangram.console.records import keep
from tangram.redis_url import redact_text

__all__ = ["AccessFormat", "LogFormat", "configure_logging", "redact"]

LogFormat = Literal["console", "json"]
AccessFormat = Literal["common", "json"]

ACCESS: Final = "tangram.access"
"""The logger of the access log, whose records no level hides: ``[log] access`` turns it on and off."""

PLUGIN: Final = "plugin."
"""The prefix of a plugin's name in ``[log] levels``: everything that its code logs or prints."""

_SECRET_KEY: Final = re.compile(r"token|secret|password|authorization", re.IGNORECASE)
_JWT: Final = re.compile(r"(eyJ[\w-]+\.[\w-]+\.)[\w-]+")


def _hidden(value: object) -> object:
    """Return a value without its secrets, nested ones too, for example in logged headers."""
    if isinstance(value, str):
        return _JWT.sub(r"\1***", redact_text(value))
    if isinstance(value, dict):
        secret = {key for key in value if _SECRET_KEY.search(str(key))}
        return {key: "***" if key in secret else _hidden(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_hidden(item) for item in value) if type(value) in {list, tuple} else value
    return value


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Hide the values of secret keys, and secrets inside texts; this is a structlog processor."""
    for key, value in event.items():
        if isinstance(value, str) and _SECRET_KEY.search(key):
            event[key] = "***"
        else:
            event[key] = _hidden(value)
    return event


_LEVELS: Final = {name.lower(): number for name, number in logging.getLevelNamesMapping().items()}
_LEVELS["exception"] = logging.ERROR


class _Threshold:
    """A processor that drops records below the level in force."""

    def __init__(self) -> None:
        self.level = logging.INFO
        self.levels: Mapping[str, int] = {}
        self._known: dict[str, int | None] = {}

    def set(self, level: int, levels: Mapping[str, int]) -> None:
        """Use other levels: one for all, and those of loggers and plugins."""
        self.level, self.levels, self._known = level, levels, {}

    def of(self, name: str, plugin: str | None, default: int) -> int:
        """Return the level for a logger: its plugin's, else that of its longest known prefix."""
        found = None if plugin is None else self.levels.get(PLUGIN + plugin)
        if found is None and self.levels:
            found = self._by_name(name)
        return default if found is None else found

    def _by_name(self, name: str) -> int | None:
        if name not in self._known:
            parts = name.split(".")
            prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
            found = (self.levels[prefix] for prefix in prefixes if prefix in self.levels)
            self._known[name] = next(found, None)
        return self._known[name]

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        name = getattr(logger, "name", "")
        if name == ACCESS:
            return event
        if not name.startswith("tangram.") and (plugin := event.get("plugin") or find_plugin()):
            event["plugin"] = plugin
        if _LEVELS.get(method, logging.CRITICAL) < self.of(name, event.get("plugin"), self.level):
            raise structlog.DropEvent
        return event


_threshold = _Threshold()


class _StderrLogger:
    """A logger that writes each line to the present ``sys.stderr``, which tests may replace.

    A line that cannot be written is lost without an error, for example because the terminal was closed, the
    program behind the pipe has ended or the disk is full. A server must serve and stop without a log, too.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name

    def msg(self, message: str) -> None:
        write_line(message)

    log = debug = info = warning = warn = error = critical = exception = fatal = failure = err = msg


def _add_name(logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    name = getattr(logger, "name", "")
    if name:
        event.setdefault("logger", name)
    return event


def _add_worker(worker: str, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    # Records of the parent about a worker name it themselves.
    event.setdefault("worker", worker)
    return event


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it is closed
        return False


class _StderrHandler(logging.Handler):
    """Writes the records of the standard library's ``logging``."""

    def emit(self, record: logging.LogRecord) -> None:
        record.plugin = plugin = find_plugin()
        # Libraries log much at level debug, which is shown only where it is asked for by name.
        if record.levelno < _threshold.of(record.name, plugin, max(_threshold.level, logging.INFO)):
            return
        try:
            write_line(self.format(record))
        except Exception:  # noqa: BLE001 - a record that cannot be formatted; logging handles it
            self.handleError(record)


def _add_plugin(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    plugin = getattr(event["_record"], "plugin", None)
    if plugin is not None:
        event["plugin"] = plugin
    return event


def _common_line(event: EventDict) -> str:
    """Return a record of the access log in the Common Log Format of Apache and NCSA."""
    at = datetime.now().astimezone().strftime("%d/%b/%Y:%H:%M:%S %z")
    sent = event.get("bytes")
    # The client chose the path: a quote or a control character in it must not begin another field or line.
    target = "".join(
        character if character.isprintable() and character not in '"\\' else f"\\x{ord(character):02x}"
        for character in str(event.get("path", ""))
    )
    request = f"{event.get('method')} {target} HTTP/{event.get('version', '1.1')}"
    return f'{event.get("client") or "-"} - - [{at}] "{request}" {event.get("status") or "-"} {sent or "-"}'


def _unfold_traceback(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Print the frames of a crash below its record, one a line."""
    frames = event.get("traceback")
    if isinstance(frames, list):
        del event["traceback"]
        event["stack"] = "\n".join(f"    {frame}" for frame in frames)
    return event


def _renderer(style: LogFormat, access: AccessFormat | None, *, colours: bool) -> Processor:
    as_json = structlog.processors.JSONRenderer(default=repr)
    usual: Any = as_json if style == "json" else _console_renderer(colours)
    chosen = access or ("json" if style == "json" else "common")

    def render(logger: WrappedLogger, method: str, event: EventDict) -> str | bytes:
        if event.get("logger") != ACCESS:
            return usual(logger, method, event)  # type: ignore[no-any-return]  # a text, as any last processor
        return as_json(logger, method, event) if chosen == "json" else _common_line(event)

    return render


def _console_renderer(colours: bool) -> Processor:
    return structlog.dev.ConsoleRenderer(
        colors=colours,
        exception_formatter=structlog.dev.plain_traceback,
        sort_keys=False,
        pad_event_to=36,
    )


def configure_logging(
    level: str = "INFO",
    style: LogFormat = "console",
    *,
    levels: Mapping[str, str] = MappingProxyType({}),
    access: AccessFormat | None = None,
    worker: str | None = None,
    colours: bool | None = None,
) -> None:
    """Send every record at ``level`` or above to standard error.

    Args:
        level: a level of the standard library's ``logging``, in any case.
        style: ``"console"``, lines for people, or ``"json"``, an object a line for programs.
        levels: levels of loggers by name, which hold for the loggers below them, and of plugins, by
            ``plugin.NAME``.
        access: the format of the access log; that of ``style`` by default.
        worker: the name of this worker, which each record gets.
        colours: whether lines for people have colours; by default if standard error is a terminal.
    """
    number = _number(level)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(
            fmt="%H:%M:%S.%f" if style != "json" else "iso", utc=style == "json"
        ),
    ]
    # A traceback is formatted before secrets are hidden, because an exception's message may quote one.
    named: list[Processor] = [] if worker is None else [partial(_add_worker, worker)]
    tail: list[Processor] = [
        *named,
        structlog.processors.format_exc_info,
        redact,
        keep,
        _renderer(style, access, colours=_is_terminal() if colours is None else colours),
    ]
    if style == "console":
        tail.insert(-1, _unfold_traceback)
    _threshold.set(number, {name: _number(one) for name, one in levels.items()})
    structlog.configure(
        processors=[_threshold, *shared, _add_name, *tail],
        # Loggers are cached at their first use, and a reload may set another level: so the level is checked
        # at each record, not built into the logger.
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        logger_factory=_StderrLogger,
        cache_logger_on_first_use=True,
    )
    lowest = min([max(number, logging.INFO), *_threshold.levels.values()])
    _route_standard_logging(lowest, shared, tail)


def _number(level: str) -> int:
    """Return the number of a level, also of ``trace``, ``warn`` and ``off``."""
    others = {"TRACE": logging.DEBUG, "OFF": logging.CRITICAL + 1}
    return {**logging.getLevelNamesMapping(), **others}.get(level.upper(), logging.INFO)


def _route_standard_logging(level: int, shared: list[Processor], tail: list[Processor]) -> None:
    remove: Callable[..., EventDict] = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, _add_plugin, *shared], processors=[remove, *tail]
    )
    handler = _StderrHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
