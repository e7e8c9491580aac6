"""Records of the log of a server under test, by structlog and the standard library.

A record of an exception also has its text as it would be printed, in ``traceback``: text that a test
looks for may stand only there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import structlog

from tangram.redis_url import parse_redis_url

if TYPE_CHECKING:
    from tangram.app.tree import Tree

__all__ = ["LogRecords", "quiet", "record_logs", "secrets_of", "server_log"]

LogRecords = list[dict[str, Any]]


class _Tap:
    """A structlog processor before all others that keeps a copy of each event.

    It also formats tracebacks plainly: structlog's format for terminals prints the variables of every
    frame, which takes seconds.

    Structlog's format for terminals prints the variables of every frame, which takes seconds.
    """

    def __init__(self, records: LogRecords) -> None:
        self._records = records

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        record = {"level": method, **event}
        self._records.append(record)
        if not event.get("exc_info"):
            return event
        plain: Any = structlog.processors.format_exc_info(logger, method, event)
        # Not "exception", structlog's key: events use that word for the name of a class.
        record["traceback"] = plain.get("exception")
        return plain  # type: ignore[no-any-return]  # a mapping, as structlog's own return


_PLAIN: Final = logging.Formatter()


class _Handler(logging.Handler):
    def __init__(self, records: LogRecords) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        told: dict[str, Any] = {
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            "error": error,
        }
        if record.exc_info and error is not None:
            told["traceback"] = _PLAIN.formatException(record.exc_info)
        self._records.append(told)


@contextmanager
def record_logs() -> Iterator[LogRecords]:
    """Record the log of this block.

    This works where loggers are not cached, which is structlog's default.
    """
    records: LogRecords = []
    tap, handler = _Tap(records), _Handler(records)
    processors = structlog.get_config()["processors"]
    # The list itself is changed: loggers that are bound already share it.
    processors.insert(0, tap)
    logging.getLogger().addHandler(handler)
    try:
        yield records
    finally:
        logging.getLogger().removeHandler(handler)
        if tap in processors:  # a test may have restored an older list
            processors.remove(tap)


@contextmanager
def quiet() -> Iterator[None]:
    """Print nothing of this block, because hundreds of runs log crashes.

    Everything is recorded all the same, and the rest of the caller's configuration stays.
    """
    processors = structlog.get_config()["processors"]
    processors.insert(0, _drop)
    try:
        yield
    finally:
        if _drop in processors:  # a test may have restored an older list
            processors.remove(_drop)


@contextmanager
def server_log(*, printed: bool) -> Iterator[None]:
    """Print the log of this block, or only record it."""
    if printed:
        yield
    else:
        with quiet():
            yield


def _drop(_logger: Any, _method: str, _event: Any) -> Any:
    raise structlog.DropEvent


def secrets_of(tree: Tree | None) -> set[str]:
    """Return the values that a server must not log.

    These are its secrets as they are now, and its broker's password.
    """
    if tree is None:
        return set()
    found = {tree.secrets.jwt, tree.secrets.operator}
    urls = {tree.url, tree.broker.server_url if tree.broker is not None else ""}
    for url in filter(None, urls):
        if password := parse_redis_url(url).password:
            found |= {password, quote(password, safe="")}
    return found
