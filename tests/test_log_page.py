"""The page about the log lists every event that the server writes, with its level, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tangram.supervision import event_logging

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "log.md").read_text()
LEVELS: Final = ("debug", "info", "warning", "error", "critical", "exception")
LIMITED: Final = ("log_client", "_log", "_log_client", "_warn_of_bound")
"""Methods that log their first argument at level warning, once in a while."""
NOT_SERVING: Final = ("testing", "chaos")
"""Rooms whose records appear in tests alone."""


def texts(node: ast.expr) -> Iterator[str]:
    """Yield the constant texts that an expression may be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)


def written() -> dict[str, set[str]]:
    """Return the events of the source, each with its levels."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "src" / "tangram").rglob("*.py"):
        if path.relative_to(ROOT / "src" / "tangram").parts[0] in NOT_SERVING:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            target = node.func.value
            if node.func.attr in LIMITED:
                for text in texts(node.args[0]):
                    found.setdefault(text, set()).add("warning")
            elif node.func.attr in LEVELS and isinstance(target, ast.Name) and target.id == "log":
                level = "error" if node.func.attr == "exception" else node.func.attr
                for text in texts(node.args[0]):
                    found.setdefault(text, set()).add(level)
    for level, text in event_logging._LINES.values():
        found.setdefault(text, set()).add(level)
    return found


def listed() -> dict[str, set[str]]:
    """Return the events of the page, each with its levels."""
    rows = re.findall(r"^\| `([^`]+)` \| ([a-z, ]+) \| .+ \|$", PAGE, re.MULTILINE)
    assert len({name for name, _ in rows}) == len(rows)
    return {name: set(levels.split(", ")) for name, levels in rows}


def test_every_event_has_its_row() -> None:
    """Events are searched for by their text, so the page has each of them as it is written."""
    source, page = written(), listed()

    assert sorted(source.keys() - page.keys()) == []
    assert {name: levels for name, levels in source.items() if page[name] != levels} == {}


def test_every_row_is_an_event() -> None:
    """An event that is gone leaves the page as well; those that are not constant are named here."""
    computed = {
        "child is left stopped: it did not start",
        "supervisor gives up to the one above it",
        "supervisor that gave up cannot end: a child goes on although it was cancelled",
        "child ended with an error while it was being stopped",
        "last exit",
    }

    assert listed().keys() - written().keys() <= computed


def test_events_are_short_and_in_lower_case() -> None:
    """An event is a fixed text; the values are fields."""
    odd = [text for text in written() if len(text) > 90 or text[0].isupper() or text.endswith(".")]

    assert odd == []
