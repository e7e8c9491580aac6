from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import trio

from tangram.plugins.plugin import Plugin
from tangram.plugins.state import BackendState
from tangram.routing import check_router

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


def run(example: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, str(PAGE), "exec", dont_inherit=True), names)
    return names


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
async def test_every_example_is_a_plugin_that_can_be_hosted(example: str) -> None:
    """Each example runs unchanged, and defines a plugin whose routes compile."""
    plugin = run(example)["plugin"]

    assert isinstance(plugin, Plugin)
    for router in plugin.routers:
        check_router(router, owner="example", injectable=[BackendState])
    assert any([plugin.services, plugin.routers, plugin.lifespan, plugin.authorize, plugin.frontend_path])
    await trio.lowlevel.checkpoint()


def test_there_are_examples_for_all_sections() -> None:
    """The page has an example for each feature that it explains."""
    assert len(EXAMPLES) == 8


def test_the_first_plugin_has_under_twenty_lines() -> None:
    """The first plugin has fewer than twenty lines."""
    assert len([line for line in EXAMPLES[0].splitlines() if line.strip()]) < 20
