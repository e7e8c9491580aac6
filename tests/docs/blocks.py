"""The code blocks of all pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["ROOT", "Block", "blocks", "pages"]

ROOT: Final = Path(__file__).parents[2]
_FENCE: Final = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One fenced block."""

    page: str
    """The page's path from the root of the project."""
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """The place, as a test reports it."""
        return f"{self.page}:{self.line}"


def pages() -> Iterator[Path]:
    """Yield every page of the site, and those of the project's root."""
    yield from sorted(ROOT.glob("*.md"))
    yield from sorted((ROOT / "docs").rglob("*.md"))


def blocks(language: str | None = None, page: str | None = None) -> list[Block]:
    """Return the blocks of all pages, or those in one language or on one page."""
    found = [
        Block(
            str(path.relative_to(ROOT)),
            path.read_text()[: match.start()].count("\n") + 1,
            match[2],
            "\n".join(line.removeprefix(match[1]) for line in match[3].split("\n")),
        )
        for path in pages()
        for match in _FENCE.finditer(path.read_text())
    ]
    return [one for one in found if language in {None, one.language} and page in {None, one.page}]
