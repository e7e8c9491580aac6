"""The format of log records: lines for people or JSON for programs, on standard error.

Records of the standard library's ``logging`` (from Quart, Hypercorn or a plugin) are written the same way. A
last processor removes tokens, secrets and passwords, in case a caller forgets to.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from typing import Final, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from tangram.cli.streams import write_line
from tangram.redis_url import redact_text

__all__ = ["LogFormat", "configure_logging", "redact"]

LogFormat = Literal["console", "json"]

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

    level = logging.INFO

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        if _LEVELS.get(method, logging.CRITICAL) < self.level:
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


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it is closed
        return False


class _StderrHandler(logging.Handler):
    """Writes the records of the standard library's ``logging``."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            write_line(self.format(record))
        except Exception:  # noqa: BLE001 - a record that cannot be formatted; logging handles it
            self.handleError(record)


def _unfold_traceback(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Print the frames of a crash below its record, one a line."""
    frames = event.get("traceback")
    if isinstance(frames, list):
        del event["traceback"]
        event["stack"] = "\n".join(f"    {frame}" for frame in frames)
    return event


def _renderer(style: LogFormat) -> Processor:
    if style == "json":
        return structlog.processors.JSONRenderer(default=repr)
    return structlog.dev.ConsoleRenderer(
        colors=_is_terminal(),
        exception_formatter=structlog.dev.plain_traceback,
        sort_keys=False,
        pad_event_to=36,
    )


def configure_logging(level: str = "INFO", style: LogFormat = "console") -> None:
    """Send every record at ``level`` or above to standard error.

    Args:
        level: a level of the standard library's ``logging``, in any case.
        style: ``"console"``, lines for people, or ``"json"``, an object a line for programs.
    """
    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(
            fmt="%H:%M:%S.%f" if style != "json" else "iso", utc=style == "json"
        ),
    ]
    # A traceback is formatted before secrets are hidden, because an exception's message may quote one.
    tail: list[Processor] = [structlog.processors.format_exc_info, redact, _renderer(style)]
    if style == "console":
        tail.insert(-1, _unfold_traceback)
    _threshold.level = number
    structlog.configure(
        processors=[_threshold, *shared, _add_name, *tail],
        # Loggers are cached at their first use, and a reload may set another level: so the level is checked
        # at each record, not built into the logger.
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        logger_factory=_StderrLogger,
        cache_logger_on_first_use=True,
    )
    _route_standard_logging(number, shared, tail)


def _route_standard_logging(level: int, shared: list[Processor], tail: list[Processor]) -> None:
    remove: Callable[..., EventDict] = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared], processors=[remove, *tail]
    )
    handler = _StderrHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.INFO))
