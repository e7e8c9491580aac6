"""The examples of the plugin guide, word for word, in fresh environments."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.compat.guide import EXAMPLES
from tests.downstream.harness import Environment
from tests.downstream.prepare import python_of
from tests.e2e.harness import open_server, wait_until


def has(environment: str, module: str) -> bool:
    command = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
    return subprocess.run([python_of(environment), "-c", command], check=False).returncode == 0


def test_the_environments_have_their_packages() -> None:
    """``full`` has FastAPI, pydantic and the published server; ``bare`` has none of them."""
    wanted = ("fastapi", "pydantic", "tangram_core", "httpx")

    assert [has("full", name) for name in wanted] == [True] * 4
    assert [has("bare", name) for name in wanted] == [False] * 4


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("name", ["bare", "full"])
async def test_each_example_runs(tmp_path: Path, name: str, example: str) -> None:
    """Every example of the guide starts, answers, and stops in order."""
    environment = Environment(tmp_path / "home", name=name)
    environment.install_guide(example)
    async with open_server(environment, "my_tangram_plugin") as server:
        if example == "endpoint":
            assert await server.get("/my-plugin/") == {"message": "Hello from my custom plugin!"}
            assert "/my-plugin/" in (await server.get("/openapi.json"))["paths"]
        if example == "subscriber":
            await server.child("plugin:my_plugin", "run_command_listener")

        # The service of this example publishes once and returns.
        expected = "finished" if example == "publish" else "running"

        async def has_come_to(state: str = expected) -> bool:
            (plugin,) = await server.get("/-/plugins")
            return (plugin["name"], plugin["state"]) == ("my_plugin", state)

        await wait_until(has_come_to)
        assert await server.stop() == 0
        bad = [record for record in server.records if record.get("level") in {"warning", "error"}]
        # A machine that stands still for a second blocks the loop, too.
        assert [one for one in bad if not one["event"].startswith("event loop")] == []
