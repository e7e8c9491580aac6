"""Two distributions have a script called ``tangram``; both orders of installation."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.downstream.prepare import HOME, python_of

ORDERS = ("ours-first", "ours-last")


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize("order", ORDERS)
def test_python_m_tangram_is_always_ours(order: str) -> None:
    """``python -m tangram`` and ``tangram-trio`` are this server in either order."""
    assert run(python_of(order), "-m", "tangram", "--version").startswith("tangram, version 0.")
    assert run(HOME / order / "bin" / "tangram-trio", "--version").startswith("tangram, version 0.")


def test_the_last_installed_distribution_has_the_script() -> None:
    """``tangram`` is the script of the distribution that was installed last."""
    ours = (HOME / "ours-last" / "bin" / "tangram").read_text()
    theirs = (HOME / "ours-first" / "bin" / "tangram").read_text()

    assert "tangram.cli.main" in ours
    assert "tangram.cli.main" not in theirs
    assert run(HOME / "ours-last" / "bin" / "tangram", "--version").startswith("tangram, version 0.")
