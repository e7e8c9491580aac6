"""A pytest plugin that writes each outcome and its exception as a line of JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

OUTPUT = "TANGRAM_MUTANT_WITNESS"
"""The environment variable that names the file to write to."""

LONGEST = 2000
"""Characters kept of the text of an exception."""


def _write(line: dict[str, Any]) -> None:
    with Path(os.environ[OUTPUT]).open("a") as file:
        file.write(json.dumps(line) + "\n")


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _line(node: str, when: str, error: BaseException | None) -> dict[str, Any]:
    found = [] if error is None else list(_leaves(error))
    return {
        "node": node,
        "when": when,
        "raised": [type(one).__name__ for one in found],
        "message": "; ".join(str(one) for one in found)[:LONGEST],
    }


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None]:
    """Write a line for each test that was called, and for a failed set-up or clean-up."""
    yield
    error = None if call.excinfo is None else call.excinfo.value
    if call.when == "call" or error is not None:
        _write(_line(item.nodeid, call.when, error))


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any]:
    """Write a line for each module that could not be collected."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        line = _line(collector.nodeid, "collect", None)
        _write({**line, "raised": ["CollectError"], "message": str(report.longrepr)[-LONGEST:]})
