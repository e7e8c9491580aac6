from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tangram.compat.names import answer_imports


@pytest.fixture(autouse=True)
def answered() -> None:
    """The old names mean ours."""
    answer_imports()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Import source text as a module of a plugin of its own: ``module("my_plugin", source)``."""
    made: list[str] = []
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, source: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(source)
        made.append(name)
        sys.modules.pop(name, None)
        return __import__(name)

    yield write
    for name in made:
        sys.modules.pop(name, None)
