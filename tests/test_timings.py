"""Measurements of the suite: seconds of each part, and tests that are red by chance."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tangram.testing.checks.census import start_time
from tests import conftest, flaky
from tests.conftest import seconds_by_part, table_of

pytest_plugins = ["pytester"]


def test_seconds_are_summed_by_folder() -> None:
    """A folder includes the folders below it; files directly in ``tests`` are one part."""
    took = seconds_by_part(
        [
            ("tests/bus/test_bus.py::test_a", 1.0),
            ("tests/bus/deep/test_bus.py::test_b[x/y]", 2.0),
            ("tests/test_public_api.py::test_c", 0.5),
            ("tests/web/test_site.py::TestIt::test_d", 4.0),
        ]
    )

    assert [line.split() for line in table_of(took)] == [
        ["4.0", "s", "tests/web"],
        ["3.0", "s", "tests/bus"],
        ["0.5", "s", "tests"],
        ["7.5", "s", "all"],
    ]


def test_a_skip_without_a_reason_fails(pytester: pytest.Pytester) -> None:
    """The reason may be missing in the code, or lost on the way out of a nursery."""
    pytester.makeconftest(Path(conftest.__file__).read_text())
    pytester.makepyfile(
        "import pytest\n"
        "def test_silent(): pytest.skip()\n"
        "@pytest.mark.skip\ndef test_marked(): ...\n"
        "def test_told(): pytest.skip('no proxy here')\n"
    )
    result = pytester.runpytest_inprocess("-p", "no:tangram", "-p", "no:asyncio")

    result.assert_outcomes(failed=1, errors=1, skipped=1)
    result.stdout.fnmatch_lines(["*test_silent is skipped without a reason*"])


@pytest.mark.slow
def test_a_run_is_counted_and_a_red_one_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Red tests are named with their count, output of red runs is kept, the status is 1."""
    file = tmp_path / "test_some.py"
    file.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): raise ValueError('by chance')\n"
        "@pytest.mark.slow\ndef test_slow(): raise ValueError\n"
    )
    keep = tmp_path / "kept"
    status = flaky.main(["--fast", "2", "--all", "1", "--stress", "--keep", str(keep), str(file)])
    said = capsys.readouterr().out
    good = flaky.main(["--fast", "1", "--all", "0", "--keep", str(keep), f"{file}::test_good"])

    assert status == 1
    assert "not slow: 2 of 2, 2 red" in said
    assert "   3 times red" in said
    assert said.count("test_some.py::test_slow") == 1
    assert len(list(keep.iterdir())) == 3
    assert any("by chance" in kept.read_text() for kept in keep.iterdir())
    assert good == 0


def test_a_run_that_breaks_off_is_red() -> None:
    """A run that names no test, because it was killed or could not collect, counts as red."""
    assert flaky.red_in(0, "FAILED tests/x.py::test_a") == []
    assert flaky.red_in(-9, "") == ["the run itself (status -9)"]
    assert flaky.red_in(1, "FAILED a::b - x\nERROR c::d\nFAILED a::b") == ["a::b", "c::d"]


@pytest.mark.slow
def test_a_run_that_hangs_is_red_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run past its deadline gets SIGINT, reports its position, and is killed with its group.

    The output is kept.
    """
    keep = tmp_path / "kept"
    file = tmp_path / "test_some.py"
    pids = tmp_path / "pids"
    source = (
        "import os, signal, subprocess, sys, time\n"
        "def test_hangs():\n"
        "    below = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    {hangs}\n"
        f"    with open({str(pids)!r}, 'a') as pids: print(os.getpid(), below.pid, file=pids)\n"
        "    time.sleep(600)\n"
    )
    in_time = flaky.wait
    begun = 0

    def late(process: Any, deadline: float) -> bool:
        # The deadline passes once the test hangs: before that, pytest has no position to report.
        assert deadline <= time.monotonic() + 600
        while (len(pids.read_text().split()) if pids.exists() else 0) < 2 * begun:
            assert process.poll() is None
            time.sleep(0.01)
        return in_time(process, time.monotonic())

    monkeypatch.setattr(flaky, "wait", late)
    for hangs, ask in (("pass", 60.0), ("signal.signal(signal.SIGINT, signal.SIG_IGN)", 0.5)):
        begun += 1
        monkeypatch.setattr(flaky, "ASK_SECONDS", ask)
        file.write_text(source.format(hangs=hangs))
        words = ["--fast", "1", "--all", "0", "--within", "600", "--keep", str(keep / str(begun)), str(file)]
        assert flaky.main(words) == 1
    said = capsys.readouterr().out

    assert said.count("1 times red  a run that did not end in time") == 2
    assert "KeyboardInterrupt" in (keep / "1" / "not-slow-1.txt").read_text()
    assert (keep / "2" / "not-slow-1.txt").exists()
    processes = list(map(int, pids.read_text().split()))
    assert len(processes) == 4
    deadline = time.monotonic() + 30
    while (left := list(filter(start_time, processes))) and time.monotonic() < deadline:
        time.sleep(0.01)  # a kill takes a moment
    assert not left


@pytest.mark.slow
def test_everything_has_the_part_with_fastapi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """*Everything* includes the tests that run again where FastAPI is installed."""
    compat = tmp_path / "tests" / "compat"
    compat.mkdir(parents=True)
    (compat / "test_some.py").write_text("def test_it(): pass\n")
    (tmp_path / "tests" / "test_any.py").write_text("def test_it(): pass\n")
    ran = tmp_path / "ran"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {ran}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(flaky, "ROOT", tmp_path)

    status = flaky.main(
        ["--fast", "1", "--all", "2", "--keep", str(tmp_path / "k"), "--downstream", str(python)]
    )
    said = capsys.readouterr().out.splitlines()
    commands = ran.read_text().splitlines()

    assert status == 0, said
    assert len(commands) == 2
    assert all(command.startswith("-m pytest") and command.endswith("tests/compat") for command in commands)
    assert "everything with FastAPI: 2 of 2, 0 red" in "\n".join(said)
    assert re.fullmatch(
        r"5 runs, 0 red; in the median \d+ s not slow, \d+ s everything, \d+ s everything with FastAPI; "
        r"load \d+\.\d at the begin, \d+\.\d at the end",
        said[-1],
    )


def test_make_flaky_runs_the_tests_of_make_test() -> None:
    """``make test`` and ``make flaky`` run the same folder in the Python with FastAPI."""
    makefile = (flaky.ROOT / "Makefile").read_text()

    assert f"$(DOWNSTREAM) -m pytest $(PARALLEL) {' '.join(flaky.WITH_FASTAPI)}" in makefile
    assert "-m tests.flaky --downstream $(DOWNSTREAM)" in makefile
