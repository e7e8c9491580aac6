"""The log as it is kept for invariants, with the text of tracebacks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from tangram.testing import Evidence, InvariantBroken, check
from tangram.testing.checks.log_records import record_logs

SECRET = "operator-token-0123456789"


def structlogs(log: Callable[[Any], object]) -> None:
    log(structlog.get_logger())


def the_librarys(log: Callable[[Any], object]) -> None:
    log(logging.getLogger("somebody"))


@pytest.mark.parametrize("logged", [structlogs, the_librarys])
@pytest.mark.parametrize("handed", ["raised", "exc_info", "cause", "note", "group"])
def test_a_secret_in_the_text_of_an_exception_is_found(logged: Any, handed: str) -> None:
    """The exception, its cause, its notes and all members of a group are searched."""
    error: Exception = LookupError("harmless")
    if handed in {"raised", "exc_info"}:
        error = ValueError(f"wrong token {SECRET}")
    elif handed == "cause":
        error.__cause__ = ValueError(SECRET)
    elif handed == "note":
        error.add_note(SECRET)
    else:
        error = ExceptionGroup("two", [error, ExceptionGroup("one", [ValueError(SECRET)])])

    def log(logger: Any) -> None:
        if handed == "exc_info":
            logger.error("it failed", exc_info=error)
            return
        try:
            raise error
        except Exception:
            logger.exception("it failed")

    with record_logs() as records:
        logged(log)

    with pytest.raises(InvariantBroken, match="'it failed' holds a secret") as caught:
        check(Evidence(logs=records, secrets=[SECRET]), ["no_secret_in_logs"])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("logged", [structlogs, the_librarys])
def test_an_exception_without_a_secret_breaks_nothing(logged: Any) -> None:
    """Its text is kept; records without an exception have none."""

    def log(logger: Any) -> None:
        logger.error("no exception")
        try:
            raise ValueError("harmless")
        except ValueError:
            logger.exception("it failed")

    with record_logs() as records:
        logged(log)

    check(Evidence(logs=records, secrets=[SECRET]), ["no_secret_in_logs"])
    assert ["traceback" in record for record in records] == [False, True]
    assert records[1]["traceback"].endswith("ValueError: harmless")


def test_an_event_that_names_its_exception_keeps_that_name() -> None:
    """A field of an event with structlog's own name for the text is not lost."""
    with record_logs() as records:
        try:
            raise ValueError("harmless")
        except ValueError:
            structlog.get_logger().exception("it failed", exception="ValueError")

    assert records[0]["exception"] == "ValueError"
    assert "harmless" in records[0]["traceback"]
