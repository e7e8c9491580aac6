"""The command ``plugin-test`` on projects with good and with faulty plugins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tangram.cli import kit, plugintest
from tangram.errors import OperatorError
from tests.cli.test_plugins import run
from tests.compat.guide import write_project

pytestmark = pytest.mark.slow

HEAD = """
import threading
import tangram as tg
import trio

router = tg.APIRouter(prefix="/mine")
plugin = tg.Plugin(routers=[router])
"""

GOOD = """
@router.get("/")
async def mine() -> dict[str, str]:
    return {"hello": "world"}
"""

LEAVES_A_THREAD = """
@plugin.register_service()
async def leave(state: tg.BackendState) -> None:
    threading.Thread(target=threading.Event().wait, name="a ghost").start()
    await trio.sleep_forever()
"""

DOES_NOT_START = """
@plugin.register_service()
async def fail(state: tg.BackendState) -> None:
    raise ValueError("no such file")
"""

FAILS_TO_ANSWER = """
@router.get("/")
async def mine() -> dict[str, str]:
    raise KeyError("of the route")
"""


def write(folder: Path, **plugins: str) -> Path:
    """Write a project with these plugins, each a module."""
    points = "".join(f'{name} = "{name}_of_test:plugin"\n' for name in plugins)
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "mine"\nversion = "1"\n[project.entry-points."tangram.plugins"]\n{points}'
    )
    for name, source in plugins.items():
        (folder / f"{name}_of_test.py").write_text(HEAD + source)
    return folder


def test_a_project_of_an_existing_plugin_is_tested(tmp_path: Path) -> None:
    """A project that is not installed runs with the old imports.

    A plugin that cannot be loaded is reported in one line.
    """
    project = write_project("endpoint", tmp_path / "project")
    good = run(tmp_path, "plugin-test", str(project))
    (project / "src" / "my_plugin" / "__init__.py").write_text("import nothing_of_the_kind\n")
    bad = run(tmp_path, "plugin-test", str(project))

    assert (good.returncode, good.stdout.splitlines()[-1:]) == (0, ["all is well"]), good.stderr
    assert bad.returncode == 1
    assert "nothing_of_the_kind" in bad.stderr.splitlines()[-1]


def test_a_missing_httpx_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without httpx, which is an extra, the message says how to install it."""
    monkeypatch.setattr(kit, "find_spec", lambda _name: None)

    with pytest.raises(OperatorError, match=r"needs httpx, .* pip install 'tangram-trio\[http\]'"):
        kit.require_httpx()


def test_each_good_plugin_gives_one_line(tmp_path: Path) -> None:
    """Each is tested alone and all in one server; the server's log is not shown."""
    done = run(tmp_path, "plugin-test", str(write(tmp_path, one=GOOD, two=GOOD.replace("mine", "two"))))
    words = [line.split()[:2] for line in done.stdout.splitlines()]

    assert (done.returncode, done.stderr) == (0, "")
    assert words == [
        ["loaded", "one"],
        ["loaded", "two"],
        ["good", "one:"],
        ["good", "two:"],
        ["good", "all"],
        ["all", "is"],
    ]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (LEAVES_A_THREAD, ["nothing_left_alive:", "a ghost"]),
        (DOES_NOT_START, ["the plugin does not start: ValueError: no such file", "in fail\n"]),
        (FAILS_TO_ANSWER, ["GET /mine/ was answered 500", 'raise KeyError("of the route")']),
    ],
    ids=["thread", "start", "route"],
)
def test_a_faulty_plugin_is_reported_without_a_traceback_of_tangram(
    tmp_path: Path, source: str, told: list[str]
) -> None:
    """The next plugin is tested, the status is 1, and a leftover thread does not hang it."""
    done = run(tmp_path, "plugin-test", str(write(tmp_path, bad=source, good=GOOD)))
    lines = done.stdout.splitlines()

    assert (done.returncode, done.stderr) == (1, "")
    assert all(one in done.stdout for one in told), done.stdout
    assert lines[2:3] == ["bad      bad:"]
    assert lines[-1] == "bad: not good"
    assert any(line.startswith("good     good:") for line in lines)
    assert "Traceback" not in done.stdout


def test_a_stall_of_the_machine_hides_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    """The first record with a traceback is shown, not that of a loop that stood still before it."""
    records: list[dict[str, Any]] = [
        {"event": "event loop blocked", "seconds": 2.0},
        {"event": "handler failed", "exception": "KeyError: 1"},
    ]
    plugintest._print_failure("bad", AssertionError("GET /mine/ was answered 500"), records)
    plugintest._print_failure("bad", AssertionError("GET /mine/ was answered 500"), records[:1])
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]

    assert ["the", "log:", "handler", "failed"] in shown
    assert ["KeyError:", "1"] in shown
    assert shown[-1] == ["the", "log:", "event", "loop", "blocked"]
