"""docs/console.md describes every page of the console."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "src" / "tangram" / "console" / "pages"


def test_every_page_has_a_heading() -> None:
    """The title of each page is a heading, and each heading of the section is a page."""
    titles = {
        title
        for module in PAGES.glob("*.js")
        for title in re.findall(r'^export const title = "(.+)";$', module.read_text(), re.MULTILINE)
    }
    section = (ROOT / "docs" / "console.md").read_text().partition("\n## Pages\n")[2].partition("\n## ")[0]
    headings = set(re.findall(r"^### (.+)$", section, re.MULTILINE))

    assert len(titles) >= 6
    assert headings == titles | {"Pages of plugins"}
