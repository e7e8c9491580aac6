"""The plugins that README and guide show are run as they are printed."""

from __future__ import annotations

import re

from tests.e2e.harness import Home, open_server, write_plugin
from tests.e2e.prepare import ROOT


def printed(document: str) -> str:
    """The first plugin of a document."""
    found = re.search(r"```python\n(# src/my_plugin.*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert found is not None
    return found.group(1)


async def test_the_first_plugin_of_the_readme(home: Home) -> None:
    """It answers its route, stays up, and has fewer than 20 lines."""
    source = printed("README.md")
    write_plugin(home.site, "my_plugin", source)
    async with open_server(home, "my_plugin") as server:
        answer = await server.get("/my-plugin/greet/ann", params={"times": 2})
        shown = await server.child("incarnation", "plugin:my_plugin")

        assert answer == {"message": "hello ann hello ann"}
        assert shown["state"] == "running"
        assert len(source.splitlines()) < 20


async def test_the_plugin_of_getting_started(home: Home) -> None:
    """It answers good and bad requests as the page says, and its services run."""
    write_plugin(home.site, "my_plugin", printed("docs/getting-started.md"))
    async with open_server(home, "my_plugin") as server:
        good = await server.request("POST", "/my-plugin/greet", json={"name": "ann", "times": 2})
        bad = await server.request("POST", "/my-plugin/greet", json={"times": "x"})
        shown = await server.child("incarnation", "plugin:my_plugin")
        (services,) = shown["nested"]

        assert good.json() == {"said": 2}
        assert bad.status_code == 422
        assert len(bad.json()["detail"]) == 2
        assert {child["name"]: child["state"] for child in services["children"]} == {
            "clock": "running",
            "listen": "running",
        }
