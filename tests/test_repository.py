"""Facts about the tree that are easy to lose: sizes, left-overs, pages without their subject."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tangram.cli.main import cli

ROOT = Path(__file__).parents[1]


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the project is not known")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]


def sources() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py"]


def test_no_file_is_longer_than_500_lines() -> None:
    """A file that outgrows a reader is cut in two."""
    assert not [path for path in sources() if len(path.read_text().splitlines()) > 500]


def test_what_trio_keeps_to_itself_is_reached_for_in_three_places() -> None:
    """Each is named in docs/architecture.md; a fourth one would have to be argued for there."""
    private = re.compile(r"trio\._core|_cancel_status|_next_send|_ALLOW_DETERMINISTIC_SCHEDULING")
    package = ROOT / "src" / "tangram"
    found = {
        str(path.relative_to(package)) for path in package.rglob("*.py") if private.search(path.read_text())
    }

    assert found == {"testing/run/virtual_clock.py", "testing/run/force_stop.py", "testing/faults/steps.py"}


@pytest.mark.slow
def test_no_function_is_longer_than_60_lines() -> None:
    """A function fits on a screen."""
    found = [
        f"{path.name}:{node.name}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno > 60
    ]
    assert not found


def test_nothing_is_left_to_do() -> None:
    """What is not done is said in the docs, not in the code."""
    mark = re.compile(r"#.*\b(" + "TO" + "DO|FIX" + r"ME)\b")
    assert not [path for path in sources() if mark.search(path.read_text())]


def test_no_path_of_a_machine() -> None:
    """Nothing speaks of the machine that it was written on."""
    mark = re.compile(r"(?<![\w.$~}])/(?:work|farm|home/\w+|root)/")
    texts = [path for path in tracked() if path.suffix in {".py", ".md", ".toml", ".js", ".css", ".html", ""}]
    assert not [path for path in texts if mark.search(path.read_text(errors="ignore"))]


def test_every_command_has_a_heading() -> None:
    """A command that is not described does not exist for who runs a server."""
    pages = "\n".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    headings = set(re.findall(r"^#+ `tangram ([\w-]+)", pages, re.MULTILINE))
    assert set(cli.commands) <= headings


def test_links_of_the_pages_lead_somewhere() -> None:
    """A relative link in a page names a file that exists."""
    broken = []
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")  # noqa: PERF401 - two loops read better
    assert not broken
