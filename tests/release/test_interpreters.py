"""The tools that look for interpreters, and the wheel's contents."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.release import dist, interpreters


def script(path: Path, version: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)


def test_each_version_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of PATH wins, pyenv is searched after it, old and broken interpreters are left out."""
    script(tmp_path / "bin" / "python3.98", "3 98")
    script(tmp_path / "other" / "python3.98", "3 98")
    script(tmp_path / "bin" / "python3.9", "3 9")
    (tmp_path / "bin" / "python3.97").write_text("not a program")
    script(tmp_path / "pyenv" / "versions" / "3.99.1" / "bin" / "python3.99", "3 99")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{tmp_path / 'other'}:/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))

    found = interpreters.find()

    assert found[3, 98] == tmp_path / "bin" / "python3.98"
    assert found[3, 99] == tmp_path / "pyenv" / "versions" / "3.99.1" / "bin" / "python3.99"
    assert found[sys.version_info[0], sys.version_info[1]] == Path(sys.executable)
    assert not {(3, 9), (3, 97)} & set(found)


def test_files_that_do_not_belong_into_a_wheel_are_found() -> None:
    """Only the package and its metadata belong into the wheel."""
    good = ["tangram/__init__.py", "tangram_trio-0.1.0.dist-info/METADATA"]

    assert dist.strangers(good) == []
    assert dist.strangers([*good, "tests/x.py", "tangram/__pycache__/a.pyc"]) == [
        "tests/x.py",
        "tangram/__pycache__/a.pyc",
    ]
