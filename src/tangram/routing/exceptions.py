"""Exceptions that answer a request.

RequestError
|- WebSocketDisconnect  the client of a WebSocket has gone
|- HTTPException      a handler raises it to answer with a status, a detail and headers
|- ResponseAborted    a response failed after its first byte: the engine has to close the connection
`- BadRequest
   `- InvalidRequest  parameters or body do not fit: status 422, each fault with its place
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tangram.errors import BadRequest, Fault, RequestError

__all__ = [
    "HTTPException",
    "InvalidRequest",
    "Problem",
    "ResponseAborted",
    "WebSocketDisconnect",
    "detail_of",
    "phrase_of",
]

Loc = tuple[str | int, ...]


def phrase_of(status: int) -> str:
    """Return the reason phrase of a status, for example ``Not Found`` for 404."""
    from http import HTTPStatus

    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


class HTTPException(RequestError):
    """Answer the request with ``status_code`` and ``{"detail": detail}``.

    Args:
        status_code: the status of the answer.
        detail: any value that JSON can represent; the reason phrase of the status by default.
        headers: added to the answer.
    """

    def __init__(
        self, status_code: int, detail: object = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status_code = status_code
        self.detail = phrase_of(status_code) if detail is None else detail
        self.headers = headers
        super().__init__(status_code, self.detail)

    def __str__(self) -> str:
        return f"{self.status_code}: {self.detail}"


class ResponseAborted(RequestError):
    """A response failed after its head was sent.

    The failure has been logged. The engine closes the connection.
    """


class WebSocketDisconnect(RequestError):
    """The client of a WebSocket has closed the connection, or has gone.

    Args:
        code: the close code; 1006 without a close frame.
        reason: the reason in the close frame.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        self.code = code
        self.reason = reason
        super().__init__(code, reason)


class Problem(NamedTuple):
    """One fault of a request, with the keys that FastAPI uses."""

    loc: Loc
    """The place, for example ``("query", "limit")`` or ``("body", "items", 2, "name")``."""
    msg: str
    """The expected value, for people."""
    type: str
    """A stable word for programs, for example ``missing``, ``int_parsing``, ``greater_than_equal``."""

    @property
    def path(self) -> str:
        """The place as one word, for example ``body.items[2].name``."""
        head, *rest = self.loc or ("request",)
        return str(head) + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)


class InvalidRequest(BadRequest):
    """Parameters or body do not fit the route; ``problems`` lists every fault."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__([Fault(problem.msg, problem.path, problem.type) for problem in self.problems])


def detail_of(error: BadRequest) -> Sequence[Mapping[str, object]]:
    """Return the ``detail`` of the answer to ``error``: a list with each fault."""
    if isinstance(error, InvalidRequest):
        return [problem._asdict() for problem in error.problems]
    return [{"loc": _split(fault.path), "msg": fault.what, "type": fault.kind} for fault in error.faults]


def _split(path: str) -> list[str | int]:
    words = path.replace("[", ".").replace("]", "").split(".")
    return [int(word) if word.isdecimal() else word for word in words if word]
