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
    """Withdraw the answered imports for the test, and answer them again afterwards."""
    names.withdraw_imports()
    yield
    names.withdraw_imports()
    names.answer_imports()


def test_the_published_name_means_tangrams_modules() -> None:
    """``tangram_core`` and its four submodules are tangram's."""
    core = import_module("tangram_core")

    assert core.__name__ == "tangram.compat.core"
    assert core.__all__ == ["BackendState", "Config", "InjectBackendState", "Plugin", "Runtime"]
    assert all(hasattr(core, name) for name in (*core.__all__, "config", "backend", "plugin"))
    assert import_module("tangram_core.redis").Subscriber.__name__ == "Subscriber"
    assert import_module("tangram_core.config") is core.config


def test_a_missing_submodule_is_an_error() -> None:
    """A missing submodule is an error, and is not found in the published package."""
    with pytest.raises(ModuleNotFoundError, match=r"tangram_core\._core"):
        import_module("tangram_core._core")


def test_an_installed_package_is_not_used(
    forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installed package of the same name, even if imported already, is not used."""
    package = tmp_path / "tangram_core"
    package.mkdir()
    (package / "__init__.py").write_text("published = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert import_module("tangram_core").published
    names.answer_imports()

    assert not hasattr(import_module("tangram_core"), "published")
    assert names.is_answered("tangram_core.config")


def test_fastapi_is_answered_only_where_it_is_not_installed() -> None:
    """``fastapi`` means FastAPI where it is installed, and tangram's router where it is not."""
    fastapi = import_module("fastapi")

    assert names.is_answered("fastapi") is not names.has_fastapi()
    assert fastapi.__name__ == ("fastapi" if names.has_fastapi() else "tangram.compat.bare")
    assert import_module("fastapi.responses").JSONResponse


@pytest.mark.slow
def test_a_native_server_does_not_import_it() -> None:
    """A server without such plugins imports neither this package nor its dependencies."""
    heavy = ("tangram.compat", "trio_asyncio", "fastapi", "pydantic", "redis.asyncio")
    code = f"import tangram.app, tangram.web.site, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
