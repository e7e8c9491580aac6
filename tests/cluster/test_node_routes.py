"""The operator's routes about nodes, on servers with one broker."""

from __future__ import annotations

import pytest
import trio

import tangram
from tangram.testing import RunningTangram, open_broker, open_tangram

HEADERS = {"authorization": "Bearer 0123456789abcdef"}


def placed() -> tangram.Plugin:
    """Return a plugin that runs on one node, and says which."""
    router = tangram.APIRouter(prefix="/globe")
    plugin = tangram.Plugin(routers=[router], instances="one")
    plugin.name = "globe"

    @plugin.register_service()
    async def turn(state: tangram.BackendState) -> None:
        await state.publish("to:globe:turn", "1")
        await trio.sleep_forever()

    return plugin


def settings(url: str, node: str) -> dict[str, dict[str, str]]:
    secrets = {"operator_token": HEADERS["authorization"].removeprefix("Bearer ")}
    return {
        "core": {"redis_url": url},
        "server": secrets,
        "cluster": {"node": node},
        "channel": {"jwt_secret": "0123456789abcdef0123456789abcdef"},
    }


async def state_of(server: RunningTangram) -> str:
    answer = await server.http.get("/-/plugins", headers=HEADERS)
    return str(answer.json()[0]["state"])


async def nodes_in_console(server: RunningTangram) -> list[tuple[str, bool, list[str]]]:
    """Return id, whether it is the server itself, and held plugins of each row of the console."""
    assert server.server.tree is not None
    view = server.server.tree.console
    assert view is not None
    nodes = server.server.tree.nodes
    assert nodes is not None
    with trio.fail_after(60):
        while [one["plugins"] for one in view.tree_view()["nodes"]] != [["globe"], []]:
            await nodes.wait_change()
    return [(one["id"], one["me"], one["plugins"]) for one in view.tree_view()["nodes"]]


@pytest.mark.slow
async def test_a_plugin_moves_between_two_servers_by_request() -> None:
    """Either node may be asked; both list the same holder, and the other node shows the plugin on standby."""
    with open_broker() as broker:
        async with (
            open_tangram([placed()], settings(broker.url, "a"), checks=()) as first,
            open_tangram([placed()], settings(broker.url, "b"), checks=()) as second,
        ):
            assert [await state_of(first), await state_of(second)] == ["running", "standby"]
            assert (await second.http.get("/-/readyz")).status_code == 200
            tree = (await second.http.get("/-/supervision", headers=HEADERS)).text
            assert '"state":"standby"' in tree.replace(" ", "")
            assert (await first.http.get("/-/nodes")).status_code in {200, 401}
            for to, origin in (("b", "a"), ("a", "b")):
                answer = await second.http.post("/-/plugins/Globe/move", headers=HEADERS, params={"to": to})
                assert answer.json() == {"plugin": "globe", "from": origin, "to": to}
            assert [await state_of(first), await state_of(second)] == ["running", "standby"]
            assert await nodes_in_console(second) == [("a", False, ["globe"]), ("b", True, [])]
            listed = (await second.http.get("/-/nodes", headers=HEADERS)).json()
            assert [(one["id"], one["me"]) for one in listed] == [("a", False), ("b", True)]
            missing = await first.http.post("/-/plugins/nothing/move", headers=HEADERS)
            assert missing.status_code == 404
            nowhere = await first.http.post("/-/plugins/globe/move", headers=HEADERS, params={"to": "c"})
            assert nowhere.status_code == 409
            assert "nodes that wait for it: b" in nowhere.text
            assert (await first.http.post("/-/plugins/globe/move")).status_code == 401


async def test_a_server_alone_has_no_nodes(autojump_clock: object) -> None:
    """The list is empty, no plugin can move, and a placed plugin runs as any other."""
    async with open_tangram([placed()], {"server": settings("", "a")["server"]}, fakes=True) as server:
        assert (await server.http.get("/-/nodes", headers=HEADERS)).json() == []
        assert (await server.http.post("/-/plugins/globe/move", headers=HEADERS)).status_code == 404
        assert await state_of(server) == "running"
        assert server.server.tree is not None
        assert server.server.tree.nodes is None
