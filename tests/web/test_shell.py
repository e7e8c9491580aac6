from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from tangram.web import shell
from tangram.web.shell import shell_folder


class FakeFile:
    def __init__(self, root: Path, relative: str) -> None:
        self.path = root / relative
        self.name = self.path.name
        self.parts = Path(relative).parts
        self.parent = Path(relative).parent

    def locate(self) -> Path:
        return self.path


class FakeWheel:
    def __init__(self, root: Path, *relative: str) -> None:
        self.files = [FakeFile(root, one) for one in relative]


def test_the_built_in_page_is_the_default() -> None:
    """Nothing configured: our own page."""
    assert shell_folder(None) is None


def test_a_folder_without_index_falls_back_to_the_built_in_page(tmp_path: Path) -> None:
    """A folder without index.html cannot be a page."""
    assert shell_folder(str(tmp_path)) is None
    (tmp_path / "index.html").write_text("x")
    found = shell_folder(str(tmp_path))
    assert found is not None
    assert found.root == tmp_path


def test_the_installed_shell_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the pages in the wheel the one beside core.js is the shell."""
    for name in ["index.html", "pkg/ui/index.html", "pkg/ui/core.js"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    wheel = FakeWheel(tmp_path, "index.html", "pkg/ui/index.html", "pkg/ui/core.js")
    monkeypatch.setattr(shell, "distribution", lambda name: wheel)

    found = shell_folder("tangram_core")
    assert found is not None
    assert found.root == tmp_path / "pkg" / "ui"


def test_without_the_wheel_the_built_in_page_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell is asked for and not installed: told, and our page is shown."""

    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(shell, "distribution", missing)
    assert shell_folder("tangram_core") is None
