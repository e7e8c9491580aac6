"""What a handler may raise to answer, and what a faulty request is told.

RequestError
|- HTTPException      a handler's own answer: a status, a detail, headers
|- ResponseAborted    a response broke off after its first byte: the server has to close the connection
`- BadRequest
   `- InvalidRequest  binding found faults: status 422, every one of them with its place
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tangram.errors import BadRequest, Fault, RequestError

__all__ = ["HTTPException", "InvalidRequest", "Problem", "ResponseAborted", "detail_of", "phrase_of"]

Loc = tuple[str | int, ...]


def phrase_of(status: int) -> str:
    """The reason phrase of a status: ``Not Found`` for 404."""
    from http import HTTPStatus

    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


class HTTPException(RequestError):  # the name that its users know
    """Answer this request with ``status_code`` and ``{"detail": detail}``.

    ``detail`` is anything that JSON can hold; without it the status's own phrase is sent. ``headers`` are
    added to the
    answer.
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
    """A response broke off after its head was sent; it has been logged, and only the connection is left to
    close.
    """


class Problem(NamedTuple):
    """One fault of a request, in the three words that FastAPI's users parse."""

    loc: Loc
    """``("query", "limit")``, ``("body", "items", 2, "name")``."""
    msg: str
    type: str
    """A stable word: ``missing``, ``int_parsing``, ``greater_than_equal``."""

    @property
    def path(self) -> str:
        """The place in one word: ``body.items[2].name``."""
        head, *rest = self.loc or ("request",)
        return str(head) + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)


class InvalidRequest(BadRequest):
    """Parameters or body do not fit the route. ``problems`` and ``faults`` hold all that was found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__([Fault(problem.msg, problem.path, problem.type) for problem in self.problems])


def detail_of(error: BadRequest) -> Sequence[Mapping[str, object]]:
    """The ``detail`` list of the answer to ``error``."""
    if isinstance(error, InvalidRequest):
        return [problem._asdict() for problem in error.problems]
    return [{"loc": _split(fault.path), "msg": fault.what, "type": fault.kind} for fault in error.faults]


def _split(path: str) -> list[str | int]:
    words = path.replace("[", ".").replace("]", "").split(".")
    return [int(word) if word.isdecimal() else word for word in words if word]
