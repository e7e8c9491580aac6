"""Count patterns of prose that ``docs/style.md`` asks to avoid.

``python -m tests.prose src/tangram/bus docs`` lists each place, and the rate for each 1,000 words.
"""

from __future__ import annotations

import ast
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

__all__ = [
    "Passage",
    "Tally",
    "comments_of",
    "docstrings_of",
    "long_summaries",
    "page_of",
    "pages_in",
    "tally",
]

FREE_RELATIVE: Final = re.compile(
    r"\b(?:what|whatever|which\s+of)\b(?![^.!?]*\?)(?!\s+to\b)"
    r"|\b(?:decides?|knows?|says?|tells?|told|shows?|chooses?|names?|learns?)\s+which\b(?![^.!?]*\?)",
    re.IGNORECASE,
)
"""``what`` and ``whatever`` outside of a question and of "what to do"; ``which`` as the object of a verb."""

HEADLESS: Final = re.compile(
    r"\b(?:whoever|whomever|nobody|somebody|everybody|anybody)\b"
    r"|(?:^|[.;:,(|#]\s+|\b(?:by|to|for|of|and|or|is|are|tells?|says?|as|from|with|than|but|asks?|knows?|sees?|on|names?|"
    r"told|at|in|that|all|only|where|those|decides?|learns?|shows?|proves?)\s+)who\b",
    re.IGNORECASE | re.MULTILINE,
)
"""A person or thing without a name: ``whoever``, ``nobody``, and ``who`` that follows no noun."""

CODE: Final = re.compile(r"^( *)```.*?^\1```$|<[^<>\n]+>|\]\([^)\n]*\)|`[^`\n]*`", re.MULTILINE | re.DOTALL)
"""Code, HTML and the targets of links of a page."""

SUMMARY: Final = 88
"""Characters of a docstring's first line."""


@attrs.frozen
class Passage:
    """A docstring or comment, and the line on which it begins."""

    path: Path
    line: int
    text: str


@attrs.define
class Tally:
    """Words, and the places of each pattern."""

    words: int = 0
    free_relatives: list[str] = attrs.field(factory=list)
    headless: list[str] = attrs.field(factory=list)

    @property
    def free_relative_rate(self) -> float:
        """Free relatives for each 1,000 words."""
        return 1000 * len(self.free_relatives) / max(self.words, 1)

    @property
    def headless_rate(self) -> float:
        """Headless pronouns for each 1,000 words."""
        return 1000 * len(self.headless) / max(self.words, 1)


def docstrings_of(path: Path) -> Iterator[Passage]:
    """Yield every docstring of a file, those of attributes included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield Passage(path, node.lineno, node.value.value)


def comments_of(path: Path) -> Iterator[Passage]:
    """Yield every comment line of a file, directives for tools left out."""
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            text = token.string.lstrip("# ")
            if token.type == tokenize.COMMENT and not text.startswith(("noqa", "type:", "fmt:", "pragma:")):
                yield Passage(path, token.start[0], text)


def page_of(path: Path) -> Passage:
    """Return a page of Markdown without its code and the targets of its links."""
    return Passage(path, 1, CODE.sub(lambda code: "_" + "\n" * code[0].count("\n"), path.read_text()))


def pages_in(place: Path) -> list[Path]:
    """Return the pages of Markdown at or below a place, without those of installed packages and results."""
    if place.is_file():
        return [place] if place.suffix == ".md" else []
    foreign = {"node_modules", "results", "dist", "site"}
    return [page for page in sorted(place.rglob("*.md")) if not foreign & set(page.parts)]


def tally(passages: Iterator[Passage]) -> Tally:
    """Count the words and the patterns of all passages; code in double backticks is left out."""
    found = Tally()
    for passage in passages:
        text = re.sub(r"``.*?``", "``", passage.text, flags=re.DOTALL)
        found.words += len(text.split())
        for pattern, places in ((FREE_RELATIVE, found.free_relatives), (HEADLESS, found.headless)):
            for match in pattern.finditer(text):
                line = passage.line + text.count("\n", 0, match.start())
                around = " ".join(text[max(0, match.start() - 30) : match.end() + 40].split())
                places.append(f"{passage.path}:{line}: ...{around}...")
    return found


def long_summaries(path: Path) -> Iterator[str]:
    """Yield docstrings whose first line is too long, or ends inside a sentence."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            first = text.split("\n", 1)[0]
            if len(first) > SUMMARY or (text and first[-1] not in ".:?!"):
                name = getattr(node, "name", "module")
                yield f"{path}:{getattr(node, 'lineno', 1)}: {name}: {first!r}"


def python_files(place: Path) -> list[Path]:
    """Return the Python files at or below a place."""
    if place.is_file():
        return [place] if place.suffix == ".py" else []
    return sorted(place.rglob("*.py"))


def _print(kind: str, found: Tally) -> None:
    for place in [*found.free_relatives, *found.headless]:
        sys.stdout.write(f"{place}\n")
    sys.stdout.write(
        f"{kind}: {found.words} words; free relatives {found.free_relative_rate:.1f}, "
        f"headless {found.headless_rate:.1f} in 1,000\n"
    )


def main(places: list[str]) -> None:
    """Print every place below the named files and folders."""
    files = [path for place in places for path in python_files(Path(place))]
    for path in files:
        for summary in long_summaries(path):
            sys.stdout.write(f"summary: {summary}\n")
    _print("docstrings", tally(one for path in files for one in docstrings_of(path)))
    _print("comments", tally(one for path in files for one in comments_of(path)))
    _print("pages", tally(page_of(path) for place in places for path in pages_in(Path(place))))


if __name__ == "__main__":
    main(sys.argv[1:] or ["src/tangram"])
