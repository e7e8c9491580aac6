"""What the commands of the testing kit share."""

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
    """See that the client is there with which a server under test is asked.

    Raises:
        OperatorError: it is not; the message says how to get it.
    """
    if find_spec("httpx") is None:
        raise OperatorError("this needs httpx, which is not installed: pip install 'tangram-trio[http]'")


def keep_log() -> list[Record]:
    """Nothing of the log is shown from now on, for it would stand between the lines of the command; what is
    an error is kept.
    """
    records: list[Record] = []

    def keep(_logger: Any, method: str, event: Record) -> Record:
        if method in {"error", "critical"}:
            records.append(event)
        raise structlog.DropEvent

    structlog.configure(processors=[keep], cache_logger_on_first_use=False)
    logging.getLogger().handlers[:] = [logging.NullHandler()]
    return records
