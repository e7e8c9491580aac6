"""Text follows ``docs/style.md``, as far as counting can tell."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Final

import pytest

from tests.prose import (
    Passage,
    comments_of,
    docstrings_of,
    long_summaries,
    page_of,
    pages_in,
    python_files,
    tally,
)
from tests.test_repository import ROOT

FREE_RELATIVES: Final = 1.0
"""Free relatives allowed in 1,000 words. Trio's sources have 0.2, uvicorn's none."""

HEADLESS: Final = 0.5
"""Headless ``who`` and ``nobody`` allowed in 1,000 words."""

SUBJECT: Final = 72
"""Characters of a commit's subject."""

STYLE_BEGAN: Final = "Say how text is written, and count the patterns that the page avoids"
"""The commit after which subjects are counted."""

FOLDERS: Final = ("src", "tests", "examples", "benchmarks")

PUBLISHED: Final = frozenset(
    {
        "APIRouter",
        "AdaptiveTheme",
        "BackendState",
        "CacheConfig",
        "CacheEntry",
        "ChannelConfig",
        "Config",
        "CoreConfig",
        "FrontendChannelConfig",
        "FrontendConfig",
        "FrontendCoreConfig",
        "FrontendMutable",
        "MapConfig",
        "Plugin",
        "ServerConfig",
        "Subscriber",
        "ThemeDefinition",
    }
)
"""Names that ``tangram_core`` publishes, and ``compat`` therefore has as well."""


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("read", [docstrings_of, comments_of], ids=["docstrings", "comments"])
def test_sentences_have_subjects(folder: str, read: type) -> None:
    """Free relatives and headless pronouns are rare in docstrings and comments."""
    found = tally(passage for path in python_files(ROOT / folder) for passage in read(path))

    assert found.words > 0
    assert found.free_relative_rate <= FREE_RELATIVES, "\n".join(found.free_relatives)
    assert found.headless_rate <= HEADLESS, "\n".join(found.headless)


def test_pages_have_subjects() -> None:
    """No page has either pattern, except the one that quotes them."""
    folders = (ROOT / name for name in ("docs", "deploy", "examples", "js"))
    pages = [*ROOT.glob("*.md"), *(page for folder in folders for page in pages_in(folder))]
    found = tally(page_of(page) for page in pages if page.name != "style.md")

    assert found.words > 50_000
    assert found.free_relatives + found.headless == []


@pytest.mark.slow
def test_a_docstring_begins_with_one_sentence_on_one_line() -> None:
    """The first line of each docstring in the sources is a sentence of at most 88 characters."""
    assert [line for path in python_files(ROOT / "src") for line in long_summaries(path)] == []


@pytest.mark.slow
def test_names_of_tests_have_subjects() -> None:
    """No test is named after a free relative or a headless pronoun."""
    odd = re.compile(r"def (test_\w*_(?:what|whatever|who|whoever|nobody|somebody|everybody)(?:_\w+)?)\(")
    found = [
        f"{path.name}: {name}"
        for path in python_files(ROOT / "tests")
        for name in odd.findall(path.read_text())
    ]

    assert found == []


@pytest.mark.slow
def test_a_class_name_has_one_meaning() -> None:
    """No two public classes share a name, except for those that ``tangram_core`` publishes."""
    homes: dict[str, set[str]] = defaultdict(set)
    for path in python_files(ROOT / "src"):
        for name in re.findall(r"^class ([A-Z]\w*)", path.read_text(), re.MULTILINE):
            homes[name].add(str(path.relative_to(ROOT)))

    assert {name: places for name, places in homes.items() if len(places) > 1 and name not in PUBLISHED} == {}


def test_subjects_of_commits_are_short() -> None:
    """Subjects of new commits have at most 72 characters."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there are no commits to look at")
    log = subprocess.run(
        ["git", "log", "--no-merges", "--format=%s"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    new = log[: log.index(STYLE_BEGAN)] if STYLE_BEGAN in log else []

    assert [subject for subject in new if len(subject) > SUBJECT] == []


def test_a_free_relative_and_a_headless_pronoun_are_counted() -> None:
    """The counter finds both patterns, and leaves questions and quoted code alone."""
    text = "What is published goes out. Nobody hears. The client who asks? ``what is`` What is it?"
    found = tally(iter([Passage(Path("x.py"), 1, text)]))

    assert len(found.free_relatives) == 1
    assert len(found.headless) == 1


def test_which_without_a_noun_before_it_is_counted() -> None:
    """``which`` behind a verb is a free relative; behind a noun, and in a question, it is none."""
    text = (
        "It says which one runs, and which of them waits. The time at which it ends, which is late. "
        "Tell which one?"
    )
    found = tally(iter([Passage(Path("x.py"), 1, text)]))

    assert len(found.free_relatives) == 2


def test_code_and_targets_of_links_are_no_text_of_a_page(tmp_path: Path) -> None:
    """Text of a page is counted with its line; code, HTML and addresses are not."""
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n```py\nwhat = who\n```\n`whatever` [a link](other.md#what-is-it) <img alt='what'>\n\n"
        "| who is there | what happens |\n"
    )
    found = tally(iter([page_of(page)]))

    assert [place.split(": ")[0] for place in found.free_relatives] == [f"{page}:8"]
    assert [place.split(": ")[0] for place in found.headless] == [f"{page}:8"]
