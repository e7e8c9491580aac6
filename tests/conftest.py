"""What all of our own tests share: Ctrl-C, and at the end of a run the seconds that each part took."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest


def pytest_configure() -> None:
    """Have Ctrl-C mean what it means, also in tests that a script runs in the background: a shell lets what
    it starts there ignore it, and so would the processes that tests start and interrupt.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each folder of tests, the slowest first, and their sum; set-up and clean-up included."""
    reports = [
        one for kind in terminalreporter.stats.values() for one in kind if isinstance(one, pytest.TestReport)
    ]
    took = seconds_by_part((one.nodeid, one.duration) for one in reports)
    if len(took) > 1:
        terminalreporter.section("seconds by part")
        for line in told(took):
            terminalreporter.write_line(line)


def seconds_by_part(durations: Iterable[tuple[str, float]]) -> Counter[str]:
    """Seconds by folder under ``tests``; what lies in ``tests`` itself is one part."""
    took: Counter[str] = Counter()
    for nodeid, seconds in durations:
        folders = nodeid.partition("::")[0].split("/")[:-1]
        took["/".join(folders[:2])] += seconds  # type: ignore[assignment]  # a Counter counts seconds as well
    return took


def told(took: Counter[str]) -> Iterator[str]:
    """Lines of the table."""
    for part, seconds in [*took.most_common(), ("all", sum(took.values()))]:
        yield f"{seconds:8.1f} s  {part}"
