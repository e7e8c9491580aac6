"""A hook of MkDocs: pages that stand in the project's root are pages of the site as well."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = {
    "README.md": "index.md",
    "CHANGES.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "THIRD_PARTY.md": "licences.md",
}
INCLUDED: Final = re.compile(r"^<!-- include (\w+\.md) -->$", re.MULTILINE)
LINK: Final = re.compile(r"\]\((?:\.\./)?(?:docs/)?([A-Za-z_-]+\.md)(#[\w-]+)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return a page with the included files, whose links lead to pages of the site."""
    if "/" in page.file.src_uri:  # pages of a folder link to pages of the site as they are
        return markdown
    whole = INCLUDED.sub(lambda found: (ROOT / found[1]).read_text(), markdown)
    return LINK.sub(lambda found: f"]({PAGES.get(found[1], found[1])}{found[2] or ''})", whole)
