"""What the tests of the configuration share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """An account of which the system knows no home folder, as in a container."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
