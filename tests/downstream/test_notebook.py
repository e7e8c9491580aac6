"""``Runtime`` in a real notebook kernel, whose loop runs before tangram is imported."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.downstream.prepare import ROOT, python_of

pytestmark = pytest.mark.slow

RUNNER = """
import json, sys
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

notebook = new_notebook(cells=[new_code_cell(source) for source in json.load(sys.stdin)])
notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python", "language": "python"}
NotebookClient(notebook, timeout=60).execute()
outputs = [it.get("text", "") for cell in notebook.cells for it in cell.outputs if it.get("name") == "stdout"]
print(json.dumps("".join(outputs)))
"""

CELLS = (
    "from tangram.compat import answer_imports; answer_imports()\nimport tangram_core",
    "from tangram_core.config import Config, ServerConfig\nconfig = Config(server=ServerConfig(port=0))",
    """
async with tangram_core.Runtime(config) as runtime:
    await runtime.state.redis_client.set("greeting", "hello")
    print("received", await runtime.state.redis_client.get("greeting"))
    answer = await runtime.state.http_client.get(runtime.state.base_url + "/-/readyz")
    print("ready", answer.status_code)
""",
    """
import threading
print("left", [it.name for it in threading.enumerate() if "tangram" in it.name.lower()])
""",
)


@pytest.mark.parametrize("first", ["", "import trio_asyncio\n"], ids=["kernel first", "trio-asyncio first"])
def test_the_runtime_runs_in_a_notebook(first: str, tmp_path: Path) -> None:
    """Cells with ``async with`` and ``await`` use the server, and leaving the block stops it.

    This works as well where trio-asyncio was imported before.
    """
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "TANGRAM_BROKER__PORT": "0",
    }
    ended = subprocess.run(
        [str(python_of("full")), "-c", RUNNER],
        input=json.dumps([first + CELLS[0], *CELLS[1:]]),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environ,
        cwd=tmp_path,
    )

    assert ended.returncode == 0, ended.stderr[-2000:]
    calls = json.loads(ended.stdout.splitlines()[-1])
    assert "received b'hello'" in calls
    assert "ready 200" in calls
    assert "left []" in calls
