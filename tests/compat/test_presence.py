"""Existing plugins read the members of topics on their own loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import trio

from tangram.compat.plugin import Plugin
from tangram.compat.state import BackendState
from tangram.testing import open_broker, open_tangram

pytestmark = pytest.mark.slow


def watching(seen: dict[str, Any]) -> Plugin:
    """Return a plugin that reads the members of a topic again and again."""
    plugin = Plugin()
    plugin.name = "watching"

    @plugin.register_service()
    async def watch(state: BackendState) -> None:
        try:
            await state.presence("quiet")
        except LookupError as error:
            seen["refused"] = str(error)
        seen["hidden"] = [hasattr(state, name) for name in ("history", "position", "subscribe")]
        state.history = "an attribute of the plugin"
        seen["own"] = state.history
        while True:
            seen["members"] = await state.presence("map")
            await asyncio.sleep(0.01)

    return plugin


@pytest.mark.parametrize("clustered", [False, True])
async def test_an_existing_plugin_reads_presence_on_asyncio(*, clustered: bool) -> None:
    """The members are those that browsers see, whether the node or Redis has them."""
    seen: dict[str, Any] = {}
    with open_broker() as broker:
        config = {
            "channel": {"presence": [{"topics": "quiet", "mode": "none"}]},
            **({"core": {"redis_url": broker.url}} if clustered else {}),
        }
        async with open_tangram([watching(seen)], config) as tangram:
            tree = tangram.server.tree
            assert tree is not None
            assert (tree.nodes is not None) is clustered
            token = (await tangram.http.post("/token", json={"channel": "map", "id": "ann"})).json()["token"]
            async with tangram.open_socket() as socket:
                channel = await socket.join("map", token=token)
                with trio.fail_after(60):
                    await channel.wait_presence(lambda ids: "ann" in ids)
                    while not seen.get("members"):
                        await tangram.http.get("/-/healthz")
                assert seen["members"] == {"ann": {"metas": channel.presence["ann"]}}
            with trio.fail_after(60):
                while seen["members"]:
                    await tangram.http.get("/-/healthz")
    assert "no presence" in seen["refused"]
    assert seen["hidden"] == [False] * 3
    assert seen["own"] == "an attribute of the plugin"
