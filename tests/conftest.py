"""Shared by all tests: Ctrl-C works, and a run ends with the seconds that each part took."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import pytest

from tangram.broker.embedded import find_server
from tests.e2e.prepare import find_redis


def pytest_configure() -> None:
    """Undo two habits of the environment that the processes of tests would inherit.

    A run that a script or ``nohup`` has started in the background begins with Ctrl-C and SIGHUP ignored. And
    where ``PYTHONDONTWRITEBYTECODE`` is set, each of some thousand processes would compile tangram anew, and
    pytest would rewrite the assertions of each mutant's tests: a third of the suite's time.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_runtest_setup() -> None:
    """Keep the stalls of the machine out of the logs of servers in this process, once it has loaded any."""
    module = sys.modules.get("tangram.app.server")
    if module is not None and not hasattr(module.Watchdog, "of_tests"):
        from tests.patient_watchdog import PatientWatchdog

        module.Watchdog = PatientWatchdog  # type: ignore[attr-defined]


@pytest.fixture
def modules_are_forgotten(tmp_path: Path) -> Iterator[None]:
    """Forget the modules that a test has written and imported, so that the next one may use their names."""
    yield
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="session")
def system_redis() -> Path:
    """The Redis or Valkey of the system, which has TLS; ``make test`` installs one where it can."""
    found = find_redis()
    if found is None:
        pytest.skip("no redis-server with TLS is installed, and none could be: see tests/e2e/prepare.py")
    return found


@pytest.fixture(params=["wheel", "system"])
def redis_server(request: pytest.FixtureRequest) -> Path:
    """The server that runs as the broker, and then the one of the system, which is another version."""
    if request.param == "wheel":
        return find_server()
    found: Path = request.getfixturevalue("system_redis")
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that is skipped without a reason, as inside a nursery, where the reason is lost."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and says_nothing(report.longrepr[2]):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} is skipped without a reason: skip it in a fixture or by a mark"
    return report


def says_nothing(told: str) -> bool:
    """Return whether the text of a skip is what pytest says where no reason was given."""
    return told.removeprefix("Skipped").strip(": ") in {"", "unconditional skip"}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the seconds of each folder, slowest first, with set-up and clean-up."""
    reports = [
        report
        for kind in terminalreporter.stats.values()
        for report in kind
        if isinstance(report, pytest.TestReport)
    ]
    took = seconds_by_part((report.nodeid, report.duration) for report in reports)
    if len(took) > 1:
        terminalreporter.section("seconds by part")
        for line in table_of(took):
            terminalreporter.write_line(line)


def seconds_by_part(durations: Iterable[tuple[str, float]]) -> Counter[str]:
    """Sum the seconds by folder under ``tests``; files in ``tests`` itself are one part."""
    took: Counter[str] = Counter()
    for nodeid, seconds in durations:
        folders = nodeid.partition("::")[0].split("/")[:-1]
        took["/".join(folders[:2])] += seconds  # type: ignore[assignment]  # a Counter counts seconds as well
    return took


def table_of(took: Counter[str]) -> Iterator[str]:
    """Yield the lines of the table."""
    for part, seconds in [*took.most_common(), ("all", sum(took.values()))]:
        yield f"{seconds:8.1f} s  {part}"
