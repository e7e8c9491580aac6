"""Compare the OpenAPI document with the behaviour of a whole server, by schemathesis."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tangram.testing import open_tangram
from tests.openapi import every_type


@pytest.mark.slow
async def test_the_document_and_the_behaviour_agree(tmp_path: Path) -> None:
    """schemathesis finds no difference over the server, the demo, the examples and every type."""
    from tangram_example_endpoint import plugin as endpoint

    from tangram_demo import plugin as demo

    plugins = [demo, endpoint, every_type.plugin]
    async with open_tangram(plugins, fakes=True) as running:
        # Unknown headers are always allowed.
        (tmp_path / "schemathesis.toml").write_text("[generation]\nallow-extra-parameters = false\n")
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"{running.url}/openapi.json",
            "--phases", "examples,coverage,fuzzing", "--max-examples", "5", "--seed", "1", "--no-shrink",
            "--continue-on-failure", "--checks", "all", "--warnings", "off",
        ]  # fmt: skip
        done = await trio.run_process(
            command, capture_stdout=True, stderr=subprocess.STDOUT, check=False, cwd=tmp_path
        )

    told = done.stdout.decode()
    assert done.returncode == 0, told
    generated = re.search(r"(\d+) generated", told)
    assert generated is not None
    assert int(generated[1]) > 1_500
