"""The limit on file descriptors, and the recognition of its errors."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from tangram.descriptors import connection_limit, is_exhaustion
from tangram.supervision.records import crash_of

SCRIPT = """
import resource, sys
soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from tangram.descriptors import connection_limit, raise_descriptor_limit
before = connection_limit(10_000)
raised = raise_descriptor_limit()
print(before, raised, resource.getrlimit(resource.RLIMIT_NOFILE)[0], connection_limit(10_000))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (256, 1024, "192 1024 1024 768"),
        (1024, 1024, "768 1024 1024 768"),
    ],
)
def test_the_soft_limit_is_raised_and_a_reserve_is_kept(soft: int, hard: int, expected: str) -> None:
    """The soft limit becomes the hard one, and a quarter of it is not used for connections."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(soft), str(hard)], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == expected


def test_a_configured_limit_that_fits_is_kept() -> None:
    """``max_connections`` is changed only if it does not fit."""
    assert connection_limit(3) == 3


def test_exhaustion_is_recognised_below_groups_and_causes() -> None:
    """EMFILE counts in a group and as a cause; other errors do not."""
    emfile = OSError(errno.EMFILE, "too many open files")
    dialled = OSError("all attempts to connect failed")
    dialled.__cause__ = ExceptionGroup("", [OSError(errno.ECONNREFUSED, "refused"), emfile])

    assert is_exhaustion(ExceptionGroup("", [ValueError(), emfile]))
    assert is_exhaustion(dialled)
    assert not is_exhaustion(FileNotFoundError(errno.ENOENT, "no such file"))
    assert not is_exhaustion(ValueError())


def test_the_record_of_a_crash_names_the_limit() -> None:
    """A crash for lack of descriptors names the limit of the process, in a message of one line."""
    error = OSError(errno.EMFILE, "too many open files")

    crash = crash_of("plugin:demo", ExceptionGroup("", [error]), at=0.0, incarnation=1)
    other = crash_of("plugin:demo", ValueError("no"), at=0.0, incarnation=1)

    assert "file descriptors (ulimit -n" in crash.cause
    assert other.cause == "ValueError: no"
