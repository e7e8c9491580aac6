"""A mistake of the operator is told in a line, without frames of tangram."""

from __future__ import annotations

from tangram.errors import BrokerStartError
from tangram.supervision.records import crash_of


def test_a_mistake_of_the_operator_has_no_frames() -> None:
    """The frames would be those of the server itself, which has no fault there."""
    try:
        raise BrokerStartError("no broker to run")
    except BrokerStartError as error:
        mistake = crash_of("broker", error, at=0.0, incarnation=1)
    try:
        raise ValueError("a bug")
    except ValueError as error:
        bug = crash_of("broker", error, at=0.0, incarnation=1)

    assert (mistake.traceback, mistake.where) == ((), "")
    assert bug.traceback
