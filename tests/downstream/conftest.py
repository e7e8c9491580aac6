"""Tests against published packages, in environments that ``make test-downstream`` makes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.downstream.harness import Environment
from tests.downstream.prepare import is_prepared
from tests.e2e.browser import Browser, open_browser

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slow)
            if not is_prepared():
                item.add_marker(pytest.mark.skip(reason="its environments are made by make test-downstream"))


@pytest.fixture
def full(tmp_path: Path) -> Environment:
    """Return a user's machine with the published plugins."""
    return Environment(tmp_path / "home", name="full")


@pytest.fixture
def bare(tmp_path: Path) -> Environment:
    """Return a user's machine without FastAPI."""
    return Environment(tmp_path / "home", name="bare")


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    async with open_browser(tmp_path / "profile") as browser:
        yield browser
