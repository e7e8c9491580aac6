"""Functions shared by the commands ``chaos`` and ``plugin-test``."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from importlib.util import find_spec
from typing import Any

import structlog

from tangram.errors import OperatorError

__all__ = ["Record", "keep_log", "require_httpx"]

Record = MutableMapping[str, Any]


def require_httpx() -> None:
    """Check that httpx is installed, which sends requests to the server under test.

    Raises:
        OperatorError: it is not installed; the message says how to install it.
    """
    if find_spec("httpx") is None:
        raise OperatorError("this needs httpx, which is not installed: pip install 'tangram-trio[http]'")


def keep_log() -> list[Record]:
    """Hide the log from now on, because its lines would mix with the command's own output.

    Returns:
        A list to which each record at level error or critical is appended.
    """
    records: list[Record] = []

    def keep(_logger: Any, method: str, event: Record) -> Record:
        if method in {"error", "critical"}:
            records.append(event)
        raise structlog.DropEvent

    structlog.configure(processors=[keep], cache_logger_on_first_use=False)
    logging.getLogger().handlers[:] = [logging.NullHandler()]
    return records
