"""The examples of docs/compat.md run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tangram.testing import open_tangram

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "compat.md").read_text()
PROGRAM, BEFORE, AFTER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("source", [BEFORE, AFTER], ids=["before", "after"])
async def test_the_migrated_plugin_behaves_as_before(source: str, module: Callable[..., Any]) -> None:
    """The migrated plugin answers and publishes as it did before."""
    plugin = module("greeter", source).plugin
    async with open_tangram([plugin]) as tangram:
        tree = tangram.server.tree
        assert tree is not None
        assert tree.incarnation.bus is not None
        async with tree.incarnation.bus.subscribe("to:system:greeting") as messages:
            answer = await tangram.http.get("/greeter/hello")
            message = await anext(messages)

        assert answer.json() == {"hello": "world"}
        assert message.payload == b'{"hello": "world"}'
        assert plugin.island is (source is BEFORE)


def test_the_program_runs(tmp_path: Path) -> None:
    """The program of the page starts a server, uses it, and ends."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "b'hello'" in done.stdout
