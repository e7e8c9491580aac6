"""The site is built without a warning, needs no other server, and leads nowhere that does not exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urldefrag

import pytest

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"


class Links(HTMLParser):
    """Collects the ids, links and loaded files of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids.add(found.get("id", ""))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in {"script", "img", "iframe"} and "src" in found:
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") in {"stylesheet", "icon", "preload"}:
            self.loaded.append(found["href"])


def read(page: Path) -> Links:
    parser = Links()
    parser.feed(page.read_text())
    return parser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Links]:
    """The pages of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    return {page.resolve(): read(page) for page in folder.rglob("*.html")}


def target_of(page: Path, link: str, site: dict[Path, Links]) -> str | None:
    """Return a fault of a local link, or ``None``."""
    path, anchor = urldefrag(unquote(link))
    target = (page.parent / path).resolve() if path else page
    if target.is_dir():
        target /= "index.html"
    if not target.exists():
        return f"{page.name}: {link}: no such file"
    if anchor and target in site and anchor not in site[target].ids:
        return f"{page.name}: {link}: no such heading"
    return None


@pytest.mark.slow
def test_every_link_leads_somewhere(site: dict[Path, Links]) -> None:
    """Each local link of each page leads to a file, and to a heading that it has."""
    local = [
        (page, link)
        for page, found in site.items()
        if page.name != "404.html"  # its links are absolute: it is served for any path
        for link in found.links
        if not re.match(r"[a-z]+:|//", link)
    ]

    assert len(local) > 500
    assert [fault for page, link in local if (fault := target_of(page, link, site))] == []


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site: dict[Path, Links]) -> None:
    """Scripts, styles and pictures are files of the site."""
    loaded = [one for found in site.values() for one in found.loaded]

    assert len(loaded) > 50
    assert [one for one in loaded if re.match(r"[a-z]+:|//", one) and not one.startswith("data:")] == []


def test_the_reference_has_all_public_names() -> None:
    """Every public name of the three packages stands on its page of the reference."""
    for module in ("tangram", "tangram.testing", "tangram.client"):
        page = (DOCS / "reference" / f"{module.rpartition('.')[2]}.md").read_text()
        listed = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)}

        assert listed == set(import_module(module).__all__) - {"__version__"}


def test_each_heading_of_troubleshooting_is_a_text_of_the_server() -> None:
    """Each quoted heading stands in the sources, so that a reader finds it by the text of the error."""
    page = (DOCS / "troubleshooting.md").read_text()
    quoted = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    sources = "".join(path.read_text() for path in (ROOT / "src" / "tangram").rglob("*.py"))

    assert len(quoted) >= 20
    assert [text for text in quoted if text not in sources] == []


def test_close_codes_and_reasons_are_on_the_page_for_browsers() -> None:
    """docs/browser.md has every close code that the server sends."""
    from tangram.channels import disconnects

    page = (DOCS / "browser.md").read_text()
    sent = [
        one
        for one in vars(disconnects).values()
        if isinstance(one, disconnects.Disconnect) and one is not disconnects.GONE
    ]

    assert len(sent) >= 9
    assert [one for one in sent if f"`{one.reason}`" not in page or f"| {one.code} |" not in page] == []


def test_every_page_is_in_the_menu() -> None:
    """mkdocs.yml lists every page of docs/."""
    menu = set(re.findall(r"^ *- ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))

    assert menu == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
