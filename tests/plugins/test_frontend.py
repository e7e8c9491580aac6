from __future__ import annotations

from pathlib import Path

import structlog

from tangram.plugins.frontend import resolve_frontend
from tangram.plugins.plugin import Plugin
from tests.plugins.fakes import loaded


def test_a_missing_folder_is_a_warning(tmp_path: Path) -> None:
    """The warning has the folders that were searched."""
    plugin = loaded(Plugin(frontend_path="dist"), source=tmp_path / "package", project_root=tmp_path)
    with structlog.testing.capture_logs() as logs:
        assert resolve_frontend(plugin) is None

    assert [(one["event"], one["folder"]) for one in logs] == [("plugin front end missing", "dist")]
    assert logs[0]["looked_in"] == [str(tmp_path), str(tmp_path / "package")]


def test_a_plugin_object_without_an_installation_gets_no_warning() -> None:
    """A plugin that a test gives as an object has no folder in which a front end could be."""
    with structlog.testing.capture_logs() as logs:
        assert resolve_frontend(loaded(Plugin(frontend_path="dist"))) is None

    assert logs == []
