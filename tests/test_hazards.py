"""The page about hazards is right, and guards that no behaviour shows are in place."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "tangram"
PAGE = (ROOT / "docs" / "hazards.md").read_text()
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
}


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| hazard")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_row_names_tests_that_exist() -> None:
    """Each hazard and pitfall names at least one test, and each named test exists."""
    hazards = [row[0] for row in rows() if re.fullmatch(r"D\d+", row[0])]
    held = [set(re.findall(r"`(test_\w+)`", row[-1])) for row in rows() if row[0] != "#"]

    assert hazards == [f"D{number}" for number in range(1, len(hazards) + 1)]
    assert len(hazards) >= 20
    assert len(held) > 25
    assert all(held)
    assert set().union(*held) <= TESTS, set().union(*held) - TESTS


def test_every_place_is_there() -> None:
    """The files that the page names exist."""
    places = {
        place for row in rows() if row[0].startswith("D") for place in re.findall(r"`([\w/]+\.py)`", row[3])
    }

    assert len(places) > 15
    assert not [place for place in places if not (SOURCE / place).exists()]


def parsed() -> Iterator[tuple[Path, ast.Module, list[str]]]:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        yield path, ast.parse(text), text.splitlines()


@pytest.mark.slow
def test_nothing_runs_in_tasks_that_quart_keeps() -> None:
    """No module uses Quart's background tasks, its serving hooks or ASGI's lifespan."""
    kept = {"add_background_task", "before_serving", "after_serving", "while_serving", "startup", "shutdown"}
    used = [
        f"{path.name}:{node.lineno}"
        for path, tree, _ in parsed()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in kept and ast.unparse(node) not in SOCKETS_OWN
    ]
    sent = [
        path.name
        for path, tree, _ in parsed()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and str(node.value).startswith(("lifespan.startup", "lifespan.shutdown"))
    ]

    assert used == []
    assert [name for name in sent if name not in ANSWERS_ONLY] == []


SOCKETS_OWN = {
    "copy.shutdown",
    "client.shutdown",
    "self.sock.shutdown",
    "self._socket.shutdown",
    "stream.socket.shutdown",
    "super().shutdown",
}
"""A socket's half-close is another shutdown."""
ANSWERS_ONLY = {"asgi.py", "site.py"}
"""The site answers an outer server that speaks lifespan; it does nothing in it."""


def test_hypercorn_is_pinned() -> None:
    """The version is pinned, because the classes that we subclass are not public."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert [one for one in project["dependencies"] if one.startswith("hypercorn")] == ["hypercorn==0.18.*"]


BOUNDED = re.compile(r"deadline|bounded|has an end|time|Trio cannot", re.IGNORECASE)


@pytest.mark.slow
def test_every_shield_has_an_end() -> None:
    """A shield has a deadline, or the lines around it name its bound."""
    found = []
    for path, tree, lines in parsed():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not any(one.arg == "shield" for one in node.keywords):
                continue
            name = ast.unparse(node.func)
            around = "\n".join(lines[max(0, node.lineno - 6) : node.lineno + 3])
            if not name.endswith(("move_on_after", "fail_after")) and not BOUNDED.search(around):
                found.append(f"{path.name}:{node.lineno}")

    assert found == []


@pytest.mark.parametrize("name", ["supervision.md", "hazards.md"])
def test_pages_are_not_empty(name: str) -> None:
    """Pages that tests read from exist."""
    assert (ROOT / "docs" / name).stat().st_size > 1000
