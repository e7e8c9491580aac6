"""Fixtures of the configuration's tests."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make an account for which the system knows no home folder, as in a container."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
