"""The page about security is right: each guard names tests, and they exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
}


def guards() -> list[list[str]]:
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if len(row) == 3 and row[2] != "tests"]


def test_each_guard_names_tests_that_exist() -> None:
    """Each attack and each mistake has a guard and at least one test."""
    named = [re.findall(r"`(test_\w+)`", row[2]) for row in guards()]

    assert len(named) > 25
    assert all(named)
    assert {test for tests in named for test in tests} - TESTS == set()


def test_the_policy_and_the_page_refer_to_each_other() -> None:
    """The policy says how to report, and the page says what is in its scope."""
    policy = (ROOT / "SECURITY.md").read_text()

    assert "docs/security.md" in policy
    assert "SECURITY.md" in PAGE
    assert "docs/security.md" in (ROOT / "README.md").read_text()
