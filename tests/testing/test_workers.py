"""Calls in processes of their own answer, or are ended."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import pytest

from tangram.testing.checks.census import start_time
from tangram.testing.run.workers import in_processes

pytestmark = pytest.mark.slow


def noted(folder: Path, seconds: float) -> int:
    """Return the id of the process after some seconds, and write it into the folder."""
    (folder / str(os.getpid())).touch()
    time.sleep(seconds)
    return os.getpid()


def never(_folder: Path) -> int:
    raise LookupError("by itself")


def test_each_call_has_a_process_of_its_own(tmp_path: Path) -> None:
    """The values come in order, and no process is left."""
    values = in_processes([partial(noted, tmp_path, 0), partial(noted, tmp_path, 0)])

    assert sorted(map(str, values)) == sorted(one.name for one in tmp_path.iterdir())
    assert not any(start_time(pid) for pid in values)


def test_a_call_without_an_answer_is_killed(tmp_path: Path) -> None:
    """The wait has a deadline, after which all processes are killed."""
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 1\.5 s"):
        in_processes([partial(noted, tmp_path, 600), partial(noted, tmp_path, 0)], within=1.5)

    assert time.monotonic() - began < 60
    assert not any(start_time(int(one.name)) for one in tmp_path.iterdir())


def test_an_error_counts_more_than_the_deadline_of_others(tmp_path: Path) -> None:
    """The exception of one call is raised where others had to be killed."""
    with pytest.raises(LookupError, match="by itself"):  # the deadline leaves a slow machine time to start it
        in_processes([partial(noted, tmp_path, 600), partial(never, tmp_path)], within=8)
