from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from tangram.compat import names


@pytest.fixture
def forgotten() -> Iterator[None]:
    """The imports are not answered, and are again afterwards."""
    names.withdraw_imports()
    yield
    names.withdraw_imports()
    names.answer_imports()


def test_the_old_name_means_ours() -> None:
    """``tangram_core`` and its four parts are ours, reachable as the published ones are."""
    core = import_module("tangram_core")

    assert core.__name__ == "tangram.compat.core"
    assert core.__all__ == ["BackendState", "Config", "InjectBackendState", "Plugin", "Runtime"]
    assert all(hasattr(core, name) for name in (*core.__all__, "config", "backend", "plugin"))
    assert import_module("tangram_core.redis").Subscriber.__name__ == "Subscriber"
    assert import_module("tangram_core.config") is core.config


def test_what_is_not_answered_is_said() -> None:
    """A part that we do not have is missing by name, not found in the published package by accident."""
    with pytest.raises(ModuleNotFoundError, match=r"tangram_core\._core"):
        import_module("tangram_core._core")


def test_ours_wins_over_an_installed_one(
    forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of that name on the path, imported already even, does not get in the way."""
    package = tmp_path / "tangram_core"
    package.mkdir()
    (package / "__init__.py").write_text("published = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert import_module("tangram_core").published
    names.answer_imports()

    assert not hasattr(import_module("tangram_core"), "published")
    assert names.is_answered("tangram_core.config")


def test_fastapi_is_answered_only_where_it_is_not_installed() -> None:
    """With FastAPI installed the name means FastAPI; without, our router under its names."""
    fastapi = import_module("fastapi")

    assert names.is_answered("fastapi") is not names.has_fastapi()
    assert fastapi.__name__ == ("fastapi" if names.has_fastapi() else "tangram.compat.bare")
    assert import_module("fastapi.responses").JSONResponse


@pytest.mark.slow
def test_a_native_server_does_not_pay_for_it() -> None:
    """Without such a plugin neither this room nor what it needs is imported."""
    heavy = ("tangram.compat", "trio_asyncio", "fastapi", "pydantic", "redis.asyncio")
    code = f"import tangram.app, tangram.web.site, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
