"""Commands that plugins make with Typer, which the published server depends on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.downstream.prepare import ROOT, python_of

MODULE = """
import tangram_core

def make():
    import typer
    app = typer.Typer(name="history")

    @app.command()
    def hello(number: int = 1):
        print("hello", number)
        raise typer.Exit(3)

    return app

plugin = tangram_core.Plugin(get_typer=make)
"""


def test_a_typer_application_is_a_command(tmp_path: Path) -> None:
    """``python -m tangram NAME ...`` runs a plugin's application with its own exit status."""
    (tmp_path / "past.py").write_text(MODULE)
    metadata = tmp_path / "tangram_past-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tangram-past\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[tangram_core.plugins]\ntangram_past = past:plugin\n")
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{tmp_path}",
    }
    command = [str(python_of("full")), "-m", "tangram", "history", "hello", "--number", "4"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout) == (3, "hello 4\n"), done.stderr
