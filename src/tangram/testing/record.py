"""What was logged while a server was under test: every record of structlog's, and the standard library's."""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog

__all__ = ["LogRecords", "record_logs"]

LogRecords = list[dict[str, Any]]


class _Tap:
    """A processor in front of all others: keeps a copy and hands on."""

    def __init__(self, records: LogRecords) -> None:
        self._records = records

    def __call__(
        self, _logger: Any, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        self._records.append({"level": method, **event})
        return event


class _Handler(logging.Handler):
    def __init__(self, records: LogRecords) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._records.append(
            {
                "level": record.levelname.lower(),
                "event": record.getMessage(),
                "logger": record.name,
                "error": error,
            }
        )


@contextmanager
def record_logs() -> Iterator[LogRecords]:
    """The records of this block. Works where loggers are not cached, which is structlog's default."""
    records: LogRecords = []
    tap, handler = _Tap(records), _Handler(records)
    processors = structlog.get_config()["processors"]
    # The list itself is changed: loggers that are bound already share it.
    # Tracebacks as plain text: structlog's way for terminals draws every frame's variables: seconds.
    processors[:0] = [tap, structlog.processors.format_exc_info]
    logging.getLogger().addHandler(handler)
    try:
        yield records
    finally:
        logging.getLogger().removeHandler(handler)
        if tap in processors:  # else somebody has put the list back in which it was not yet
            where = processors.index(tap)
            del processors[where : where + 2]
