"""The answer to requests that fail because the process is short of a resource."""

from __future__ import annotations

import time
from typing import Final

from tangram.descriptors import exhaustion_note
from tangram.routing.exceptions import HTTPException

__all__ = ["unavailable"]

LOG_INTERVAL: Final = 60.0
"""Seconds between two log records: a shortage fails many requests, and the log must not grow with them."""


class _LogTimes:
    last = float("-inf")


def unavailable(error: BaseException) -> HTTPException:
    """Return a 503 for an error that is no fault of the request, and log it once a minute."""
    now = time.monotonic()
    if now - _LogTimes.last >= LOG_INTERVAL:
        _LogTimes.last = now
        # Imported here: structlog takes longer to import than the rest of the room.
        import structlog

        structlog.get_logger("tangram.routing").error(
            "requests fail for lack of a resource", cause=repr(error), note=exhaustion_note(error) or None
        )
    return HTTPException(503, "the server is short of resources, try again soon", {"retry-after": "5"})
