"""``chaos`` on the command line: mistakes, and what is told where there is no terminal."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "tangram", "chaos"]


def chaos(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a folder with a configuration of one plugin."""
    (folder / "tangram.toml").write_text('[core]\nplugins = ["tangram_example_publish"]\n')
    command = [*COMMAND, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--duration", "0"], "0 is not a duration; expected seconds above 0 @ --duration"),
        (["--duration", "-2"], "-2 is not a duration"),
        (["--duration", "nan"], "nan is not a duration"),
        (["--seed", "seven"], "'seven' is not a valid integer"),
        (["--config", "nowhere.toml"], "cannot be read: no such file or directory"),
        (["--report", "tangram.toml/told"], "cannot write into 'tangram.toml': "),
        (["--report", "taken"], "cannot write 'taken.html'; choose another name @ --report"),
        (["--report", ""], "'.' is no name; expected one like 'tangram-chaos' @ --report"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(tmp_path: Path, arguments: list[str], told: str) -> None:
    """In a line, without a traceback, with status 2; nothing was struck and nothing is written."""
    (tmp_path / "taken.html").mkdir()
    done = chaos(tmp_path, *arguments)

    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.glob("*.json"))


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """As those of a configuration file are."""
    done = chaos(
        tmp_path, "--duration", "0", "--faults", "nothing,crash_web", "--report", "tangram.toml/told"
    )

    assert [re.findall("@ (--[a-z]+)$", line) for line in done.stderr.splitlines()[1:]] == [
        ["--faults"],
        ["--duration"],
        ["--report"],
    ]


def test_without_a_terminal_there_is_a_line_for_each_fault(tmp_path: Path) -> None:
    """When it is healed, so that a log shows how far it is; the verdict stands last."""
    done = chaos(tmp_path, "--duration", "1", "--faults", "crash_web,crash_plugin")
    lines = done.stderr.splitlines()

    assert done.returncode == 0, done.stderr
    assert len(lines) >= 2
    assert all(re.fullmatch(r" +\d+\.\d s  crash_(web|plugin) +up after \d+ ms", line) for line in lines)
    assert done.stdout.startswith(f"{len(lines)} faults, seed 0: held; see ")
