"""The command ``chaos``: mistakes on the command line, and its output without a terminal."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tangram.chaos import campaign
from tangram.cli import chaos as command
from tangram.config import Config
from tangram.testing import RunningTangram, open_tangram

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "tangram", "chaos"]


def chaos(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder with a configuration of one plugin."""
    (folder / "tangram.toml").write_text('[core]\nplugins = ["tangram_example_publish"]\n')
    command = [*COMMAND, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, check=False)


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
def test_a_mistake_is_reported_before_the_campaign(tmp_path: Path, arguments: list[str], told: str) -> None:
    """One line without a traceback, status 2; no fault was injected and no file written."""
    (tmp_path / "taken.html").mkdir()
    done = chaos(tmp_path, *arguments)

    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.glob("*.json"))


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    """Every mistake on the command line is reported, as for a configuration file."""
    done = chaos(
        tmp_path, "--duration", "0", "--faults", "nothing,crash_web", "--report", "tangram.toml/told"
    )

    assert [re.findall("@ (--[a-z]+)$", line) for line in done.stderr.splitlines()[1:]] == [
        ["--faults"],
        ["--duration"],
        ["--report"],
    ]


def test_a_configuration_with_a_byte_order_mark_is_read_as_by_serve(tmp_path: Path) -> None:
    """A byte order mark, which some editors write, is skipped, and faults behind it are found."""
    (tmp_path / "marked.toml").write_text('[core]\nplugins = ["tangram_example_publish"]\n', "utf-8-sig")
    done = chaos(tmp_path, "--config", "marked.toml", "--only", "nowhere")

    assert done.returncode == 2
    assert "no plugin 'nowhere' runs" in done.stderr


def test_without_a_terminal_there_is_a_line_for_each_fault(tmp_path: Path) -> None:
    """Each healed fault gives a line, so that a log shows the progress; the verdict is last."""
    done = chaos(tmp_path, "--duration", "5", "--faults", "crash_web,crash_plugin")
    lines = done.stderr.splitlines()

    assert done.returncode == 0, done.stderr
    assert len(lines) >= 2
    assert all(re.fullmatch(r" +\d+\.\d s  crash_(web|plugin) +up after \d+ ms", line) for line in lines)
    assert done.stdout.startswith(f"{len(lines)} faults, seed 0: held; see ")


TLS = Path(__file__).parents[1] / "http" / "tls"

PLUGIN = "tangram_example_publish"
CONFIGURED: dict[str, tuple[str, Callable[[Config], object]]] = {
    "a longer back-off": (
        "[supervisor]\nbackoff_initial = 0.5\nstop_timeout = 4.5\n",
        lambda config: config.supervisor.stop_timeout == 4.5,
    ),
    "a folder beside the file": (
        '[server]\nfrontend = "page"\n',
        lambda config: (config.server.frontend or "").endswith("/page"),
    ),
    "a date of a plugin's": (
        f"[plugins.{PLUGIN}]\nsince = 2026-01-01\n",
        lambda config: config.plugins[PLUGIN] == {"since": date(2026, 1, 1)},
    ),
    "a certificate": (
        f"[server]\ntls_cert = '{TLS / 'cert.pem'}'\ntls_key = '{TLS / 'key.pem'}'\n",
        lambda config: config.server.effective_engine == "hypercorn",
    ),
    "the environment": ("", lambda config: config.server.max_headers == 77),
}


@pytest.mark.parametrize("what", CONFIGURED)
def test_the_configured_server_is_tested(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration that ``serve`` accepts is used, also one with a byte order mark."""
    text, wanted = CONFIGURED[what]
    file = tmp_path / "tangram.toml"
    file.write_text(f'\ufeff[core]\nplugins = ["{PLUGIN}"]\n{text}')
    (tmp_path / "page").mkdir()
    monkeypatch.setenv("TANGRAM_SERVER__MAX_HEADERS", "77")
    monkeypatch.setattr(command, "keep_log", lambda: None)  # it is for the whole process
    served: list[Config] = []

    @asynccontextmanager
    async def noted(*args: Any, **settings: Any) -> AsyncIterator[RunningTangram]:
        async with open_tangram(*args, **settings) as running:
            served.append(running.server.config)
            yield running

    monkeypatch.setattr(campaign, "open_tangram", noted)
    status = command.run_chaos(file, seed=0, duration=0.3, faults=["crash_web"], only=None, report=None)

    assert status == 0, capsys.readouterr().err
    assert wanted(served[0])
