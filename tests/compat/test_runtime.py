"""The server inside programs, which run in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

PLUGIN = """
import asyncio
import tangram_core
plugin = tangram_core.Plugin()

@plugin.register_service()
async def mark(state):
    state.marked = "by the plugin"
    while not hasattr(state, "asked"):
        await asyncio.sleep(0.01)
    await state.redis_client.set("answer", str(state.asked))
    await asyncio.sleep(1000)
"""

PROGRAM = """
import asyncio, json, sys, threading
FIRST
from tangram.compat import answer_imports
answer_imports()
import tangram_core
from tangram_core.config import Config, CoreConfig, ServerConfig

async def use():
    report = {}
    config = Config(core=CoreConfig(plugins=["demo"]), server=ServerConfig(port=PORT))
    runtime = tangram_core.Runtime(config)
    try:
        runtime.state
    except RuntimeError as error:
        report["before"] = str(error)
    async with runtime as same:
        state = runtime.state
        report["same"] = same is runtime
        report["loop"] = type(asyncio.get_running_loop()).__name__
        report["ping"] = await state.redis_client.ping()
        report["ready"] = (await state.http_client.get(state.base_url + "/-/readyz")).json()["status"]
        while not hasattr(state, "marked"):
            await asyncio.sleep(0.01)
        report["marked"] = state.marked
        state.asked = 42
        while not (answer := await state.redis_client.get("answer")):
            await asyncio.sleep(0.01)
        report["answer"] = answer.decode()
        try:
            await runtime.start()
        except RuntimeError as error:
            report["twice"] = str(error)
    report["left"] = [it.name for it in threading.enumerate() if it.name == "tangram"]
    return report

async def loop():
    return type(asyncio.get_running_loop()).__name__

report = asyncio.run(use())
report["later"] = asyncio.run(loop())
print(json.dumps(report))
"""


def run(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    (folder / "demo_module.py").write_text(PLUGIN)
    metadata = folder / "demo-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[tangram_core.plugins]\ndemo = demo_module:plugin\n")
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{folder}",
    }
    return subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("first", ["", "import trio_asyncio"], ids=["asyncio first", "trio_asyncio first"])
def test_a_program_has_a_server(tmp_path: Path, first: str) -> None:
    """A program uses the state's clients on its own loop, and the plugins' attributes.

    Leaving the block stops everything, and asyncio works as before, in either order of imports.
    """
    from tangram.testing import free_port

    done = run(tmp_path, PROGRAM.replace("FIRST", first).replace("PORT", str(free_port())))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])

    assert "has not been started" in report.pop("before")
    assert "was started before" in report.pop("twice")
    # A program that imports trio-asyncio before asyncio.run gets its loop, here and later.

    loop = "SyncTrioEventLoop" if first else "_UnixSelectorEventLoop"
    assert (report.pop("loop"), report.pop("later")) == (loop, loop)
    assert report == {
        "same": True,
        "ping": True,
        "ready": "ready",
        "marked": "by the plugin",
        "answer": "42",
        "left": [],
    }


def test_a_failed_start_is_raised(tmp_path: Path) -> None:
    """An address that is in use raises an error in the program and leaves nothing running."""
    program = (
        "import asyncio, socket, threading\n"
        "from tangram.compat import answer_imports; answer_imports()\n"
        "import tangram_core\n"
        "from tangram_core.config import Config, ServerConfig\n"
        "taken = socket.create_server(('127.0.0.1', 0))\n"
        "config = Config(server=ServerConfig(port=taken.getsockname()[1]))\n"
        "async def main():\n"
        "    try:\n"
        "        await tangram_core.Runtime(config).start()\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, [t for t in threading.enumerate() if t.name == 'tangram'])\n"
        "asyncio.run(main())\n"
    )
    done = run(tmp_path, program)

    assert done.stdout.splitlines()[-1:] == ["AddressError []"], done.stderr
