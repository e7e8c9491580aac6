"""mypy --strict and pyright accept a plugin that is right, and find each planted mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.prepare import find_node

ROOT = Path(__file__).parents[2]

RIGHT: Final = """\
from __future__ import annotations

import attrs

import tangram

plugin = tangram.Plugin()
router = tangram.APIRouter(prefix="/flights")
flights = plugin.channel("flights:{area}")


@attrs.frozen
class Position:
    lat: float


@attrs.frozen
class Select:
    icao: str


class Table:
    rows: dict[str, int]


LIMIT = tangram.StateKey[int]("limit")
position = flights.sends("position", Position)


@flights.receives("select", Select)
async def select(message: Select, sender: tangram.Sender, area: str, state: tangram.BackendState) -> Position:
    await position.publish(Position(1.0), area=area)
    state.get(Table).rows[sender.id] = state[LIMIT]
    return Position(2.0)


@flights.receives("note", Select)
def note(message: Select) -> str:
    return message.icao


@flights.authorize
def may_join(area: str) -> str | None:
    return None


@plugin.register_service()
async def serve(state: tangram.BackendState) -> None:
    async with state.subscribe("from:x:y") as messages:
        async for message in messages:
            await state.publish("to:x:y", message.text)


@router.get("/{name}")
async def show(name: str, state: tangram.BackendState) -> dict[str, str]:
    return {name: state.base_url}
"""

STATE: Final = "def a(state: tangram.BackendState) -> None:\n    "
TASK: Final = "async def a() -> None:\n    "
HANDLER: Final = "@flights.receives('a', Select)\nasync def a"
MISTAKES: Final = {
    "wrong attribute of the state": f"async {STATE}await state.publissh('to:x:y', 1)",
    "wrong type of a message": f"{TASK}await position.publish(Select('x'), area='eu')",
    "payload and handler differ": f"{HANDLER}(message: Position) -> None: ...",
    "handler without a message": f"{HANDLER}() -> None: ...",
    "missing await": f"{TASK}position.publish(Position(1.0), area='eu').position",
    "wrong return of a route": "@router.get('/b')\nasync def a() -> dict[str, int]:\n    return {'a': 'b'}",
    "wrong reply of a handler": f"{HANDLER}(message: Select) -> Position:\n    return message",
    "wrong attribute of a message": f"async {STATE}async for one in state.subscribe('x'):\n        one.txet",
    "value of a wrong type for a key": f"{STATE}state[LIMIT] = 'three'",
    "wrong attribute of an own object": f"{STATE}state.get(Table).row",
    "parameter of a wrong type": f"{TASK}await position.publish(Position(1.0), area=None)",
    "wrong attribute of the sender": (
        f"{HANDLER}(message: Select, sender: tangram.Sender) -> str:\n    return sender.name"
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the right plugin and one file for each mistake."""
    home = tmp_path_factory.mktemp("checked")
    (home / "right.py").write_text(RIGHT)
    for number, lines in enumerate(MISTAKES.values()):
        (home / f"wrong_{number}.py").write_text(f"{RIGHT}\n\n{lines}\n")
    return home


def judge(found: set[str]) -> None:
    missed = [name for number, name in enumerate(MISTAKES) if f"wrong_{number}.py" not in found]

    assert missed == []
    assert "right.py" not in found


@pytest.mark.slow
def test_mypy_finds_each_mistake(folder: Path) -> None:
    """``mypy --strict`` reports each file with a mistake, and not the one without."""
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache" / "planted")]
    done = subprocess.run(
        [*command, *sorted(path.name for path in folder.glob("*.py"))],
        cwd=folder,
        env={"MYPYPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )

    assert done.returncode == 1, done.stdout + done.stderr
    judge(set(re.findall(r"^(\w+\.py):\d+: error", done.stdout, re.MULTILINE)))


@pytest.mark.slow
def test_pyright_finds_each_mistake(folder: Path) -> None:
    """Pyright in its standard mode reports each file with a mistake, and not the one without."""
    node, packages = find_node()
    settings = {"extraPaths": [str(ROOT / "src")], "reportUnusedCoroutine": "error"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [node, str(packages / "pyright" / "index.js"), "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=240)
    report = json.loads(done.stdout)["generalDiagnostics"]

    judge({Path(one["file"]).name for one in report if one["severity"] == "error"})
