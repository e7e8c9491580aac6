"""Facts about the whole tree: sizes of files and functions, left-overs, complete pages."""

from __future__ import annotations

import ast
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

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


MAX_FILE: Final = 700
"""Lines of a file. Below that, cohesion decides: a file is not cut because it is long."""

MAX_FUNCTION: Final = 60
"""Lines of a function, from ``def`` to its end."""

USUAL_FUNCTION: Final = 30
"""Lines that nine functions in ten stay below."""


def function_lengths() -> Iterator[tuple[str, int]]:
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield (
                    f"{path.relative_to(ROOT)}:{node.lineno}:{node.name}",
                    (node.end_lineno or 0) - node.lineno + 1,
                )


def test_no_file_is_longer_than_700_lines() -> None:
    """Every file has at most 700 lines."""
    assert not [path for path in sources() if len(path.read_text().splitlines()) > MAX_FILE]


def test_private_names_of_trio_are_used_in_three_files() -> None:
    """Private names of Trio are used only in the three files that docs/architecture.md names."""
    private = re.compile(r"trio\._core|_cancel_status|_next_send|_ALLOW_DETERMINISTIC_SCHEDULING")
    package = ROOT / "src" / "tangram"
    found = {
        str(path.relative_to(package)) for path in package.rglob("*.py") if private.search(path.read_text())
    }

    assert found == {"testing/run/virtual_clock.py", "testing/run/force_stop.py", "testing/faults/steps.py"}


@pytest.mark.slow
def test_functions_are_short() -> None:
    """No function has more than 60 lines, and nine in ten have fewer than 30."""
    lengths = dict(function_lengths())
    long = [length for length in lengths.values() if length >= USUAL_FUNCTION]

    assert not [name for name, length in lengths.items() if length > MAX_FUNCTION]
    assert len(long) * 10 <= len(lengths)


def test_no_file_has_a_mark_for_unfinished_work() -> None:
    """Comments have no marks for unfinished work: the docs say which features are missing."""
    mark = re.compile(r"#.*\b(" + "TO" + "DO|FIX" + r"ME)\b")
    assert not [path for path in sources() if mark.search(path.read_text())]


def test_no_path_of_a_machine() -> None:
    """No file contains a path of a developer's machine."""
    mark = re.compile(r"(?<![\w.$~}])/(?:work|farm|home/\w+|root)/")
    texts = [path for path in tracked() if path.suffix in {".py", ".md", ".toml", ".js", ".css", ".html", ""}]
    assert not [path for path in texts if mark.search(path.read_text(errors="ignore"))]


def test_every_command_has_a_heading() -> None:
    """The pages describe every command under a heading of its own."""
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


def constants(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the constants of a module with their annotations."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign):
            names, annotation = [one.id for one in node.targets if isinstance(one, ast.Name)], ""
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names, annotation = [node.target.id], ast.unparse(node.annotation)
        else:
            continue
        yield from ((name, annotation) for name in names if re.fullmatch(r"_?[A-Z][A-Z0-9_]+", name))


def test_constants_are_final() -> None:
    """A module-level name in capitals is annotated with Final, so that no code assigns to it."""
    assert not [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources()
        if path.is_relative_to(ROOT / "src")
        for name, annotation in constants(path)
        if not re.search(r"\b(Final|TypeAlias)\b", annotation)
    ]


def comments(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        yield from (
            token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT
        )


def test_each_noqa_has_a_reason() -> None:
    """A suppressed rule is named, and the reason follows " - "."""
    good = re.compile(r"noqa: [A-Z]+\d+(, ?[A-Z]+\d+)* - \S")

    assert not [
        f"{path.relative_to(ROOT)}: {comment}"
        for path in sources()
        if "noqa" in path.read_text()
        for comment in comments(path)
        if re.search(r"#\s*noqa", comment) and not good.search(comment)
    ]


def test_works_of_others_in_the_wheel_are_listed() -> None:
    """Each shipped file with the copyright of others is named in THIRD_PARTY.md, and so is its licence."""
    page = (ROOT / "THIRD_PARTY.md").read_text()
    notice = re.compile(rb"copyright|licensed? under|@license", re.IGNORECASE)
    shipped = [path for path in tracked() if path.is_relative_to(ROOT / "src") and path.suffix != ".py"]
    foreign = {path.name for path in shipped if notice.search(path.read_bytes())}

    assert foreign == {"uplot.js", "uplot-LICENSE.txt"}
    assert [name for name in foreign if name not in page] == []
