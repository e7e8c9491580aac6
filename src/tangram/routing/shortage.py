"""The answers that exceptions stand for, a shortage of the process among them."""

from __future__ import annotations

import time
from typing import Final

from tangram.descriptors import exhaustion_note, is_exhaustion
from tangram.errors import BadRequest, Refused
from tangram.log_limit import LogLimit
from tangram.routing.exceptions import HTTPException, detail_of

__all__ = ["refusal_of", "unavailable"]

_log_limit: Final = LogLimit()
"""A shortage fails many requests, and the log must not grow with them."""


def unavailable(error: BaseException) -> HTTPException:
    """Return a 503 for an error that is no fault of the request, and log it once a minute."""
    if _log_limit.allows("shortage", "", time.monotonic()):
        # Imported here: structlog takes longer to import than the rest of the room.
        import structlog

        structlog.get_logger("tangram.routing").error(
            "requests fail for lack of a resource", cause=repr(error), note=exhaustion_note(error) or None
        )
    return HTTPException(503, "the server is short of resources, try again soon", {"retry-after": "5"})


def refusal_of(cause: BaseException) -> HTTPException | None:
    """Return the answer that an exception stands for, or None for an unexpected exception."""
    if isinstance(cause, HTTPException):
        return cause
    if isinstance(cause, BadRequest):
        return HTTPException(422, detail_of(cause))
    if isinstance(cause, Refused):
        return HTTPException(403, cause.reason)
    return unavailable(cause) if is_exhaustion(cause) else None
