"""The author's page names every fault and every invariant."""

from __future__ import annotations

from pathlib import Path

import pytest

from tangram.testing import FAULTS, INVARIANTS

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()


@pytest.mark.parametrize("name", [*FAULTS, *INVARIANTS])
def test_each_fault_and_invariant_is_documented(name: str) -> None:
    """A fault or invariant without a word in docs/testing.md is red."""
    assert f"`{name}`" in PAGE
