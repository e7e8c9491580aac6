"""The pages about supervision match the tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"
PAGE = (DOCS / "supervision.md").read_text()
CASES = (DOCS / "supervision-cases.md").read_text()
TESTS = {
    name
    for path in HERE.parent.rglob("test_*.py")
    for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
}


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("page", [PAGE, CASES], ids=["supervision.md", "supervision-cases.md"])
def test_named_tests_exist(page: str) -> None:
    """Every test that a page names exists."""
    named = set(re.findall(r"`(test_\w+)`", page))

    assert named
    assert named <= TESTS


def test_every_case_of_otp_has_a_twin_or_a_reason() -> None:
    """88 cases in order, no name twice; at most 25 without a twin, each with a reason."""
    cases = [row for row in rows(CASES) if row[0].isdigit()]
    without = [row for row in cases if "`test_" not in row[2]]

    assert [int(row[0]) for row in cases] == list(range(1, 89))
    assert len({row[1] for row in cases}) == 88
    assert len(without) <= 25
    assert all(row[2].endswith(".") for row in without)


def test_every_rule_and_strategy_has_a_row() -> None:
    """Rules 1-10 and the three strategies each name a test."""
    held = [row[0] for row in rows(PAGE) if "`test_" in row[-1]]

    assert {int(first.split()[0]) for first in held if first[0].isdigit()} == set(range(1, 11))
    assert {"`one_for_all`", "`rest_for_one`", "`one_for_one`"} <= set(held)


async def test_example_of_the_page_runs(autojump_clock: object, capsys: pytest.CaptureFixture[str]) -> None:
    """The page's example runs as the page says."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    space: dict[str, object] = {}
    exec(compile(code, "supervision.md", "exec"), space)
    await space["main"]()  # type: ignore[operator]

    log = space["log"]
    assert isinstance(log, list)
    # The sensor's first step and the heating's go on side by side once both have started.
    assert sorted(log[:2]) == ["heating on", "measured 19"]
    assert log[2:] == ["heating off", "heating on", "heating off"]
    assert "'active': 2" in capsys.readouterr().out
