"""Two whole servers on one Redis: one holds a plugin, the other one forwards."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from tangram.cli.main import cli
from tangram.cluster.placement import HELD_LEASE
from tangram.compat.names import answer_imports
from tangram.http.forward.forwarder import LAST_RETRY
from tangram.http.forward.in_flight import InFlight
from tangram.plugins.plugin import Plugin
from tangram.routing import APIRouter, Request, StreamingResponse, WebSocket
from tangram.testing import MemoryBroker, RunningTangram, open_tangram
from tests.http.serving import open_raw

ENGINES = pytest.mark.parametrize("engine", ["native", "hypercorn"])
NAME = "placed"


def placed_plugin(node: str, released: trio.Event | None = None) -> Plugin:
    """Return a plugin whose routes name the node on which they run; one answers once it is released."""
    router = APIRouter(prefix="/placed")

    @router.get("/who/{word}")
    async def who(word: str, request: Request) -> dict[str, Any]:
        assert request.client is not None
        return {"node": node, "word": word, "client": request.client.host, "host": request.headers["host"]}

    @router.post("/upload", max_body=4_000_000)
    async def upload(request: Request) -> dict[str, Any]:
        return {"node": node, "bytes": len(await request.body())}

    @router.get("/slow")
    async def slow() -> dict[str, Any]:
        assert released is not None
        await released.wait()
        return {"node": node}

    @router.get("/stream")
    async def stream() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            for number in range(3):
                yield b"%d\n" % number
                await trio.lowlevel.checkpoint()

        return StreamingResponse(pieces(), media_type="text/plain")

    @router.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(f"{node} {await websocket.receive_text()}")

    plugin = Plugin(routers=[router], instances="one")
    plugin.name = NAME
    return plugin


def existing_plugin(node: str) -> Plugin:
    """Return a plugin for ``tangram_core``, which runs on an asyncio loop of its own."""
    answer_imports()
    core = import_module("tangram_core")
    router = APIRouter(prefix="/placed")

    @router.get("/who/{word}")
    async def who(word: str) -> dict[str, Any]:
        return {"node": node, "word": word}

    @router.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(f"{node} {await websocket.receive_text()}")

    plugin: Plugin = core.Plugin(routers=[router])
    plugin.name = NAME
    return plugin


def blueprint_plugin(node: str) -> Plugin:
    """Return a plugin with a blueprint of Quart."""
    from quart import Blueprint, websocket

    blueprint = Blueprint("placed", __name__, url_prefix="/placed")

    @blueprint.get("/who/<word>")
    async def who(word: str) -> dict[str, Any]:
        return {"node": node, "word": word}

    @blueprint.websocket("/echo")
    async def echo() -> None:
        await websocket.send(" ".join([node, str(await websocket.receive())]))

    plugin = Plugin(blueprints=[blueprint], instances="one")
    plugin.name = NAME
    return plugin


@asynccontextmanager
async def open_node(
    broker: MemoryBroker, node: str, make: Callable[[str], Plugin], **server: Any
) -> AsyncIterator[RunningTangram]:
    config = {
        "core": {"redis_url": f"redis://127.0.0.1:{broker._port}"},
        "cluster": {"node": node},
        "channel": {"jwt_secret": "the same secret on every node of this cluster"},
        "server": {"port": 0, **server},
    }

    def place(running: RunningTangram) -> None:
        running.planned = True

    # The census of one server would count the other one.
    async with open_tangram([make(node)], config, on_server=place, checks=()) as running:
        yield running


@asynccontextmanager
async def two_servers(
    make: Callable[[str], Plugin] = placed_plugin, **first: Any
) -> AsyncIterator[tuple[RunningTangram, RunningTangram]]:
    """Run two nodes, of which the second one holds the plugin."""
    broker = MemoryBroker()
    async with trio.open_nursery() as nursery:
        await nursery.start(broker.run)
        # The node that starts first takes the lease.
        async with open_node(broker, "b", make) as b, open_node(broker, "a", make, **first) as a:
            tree = a.server.tree
            assert tree is not None
            assert tree.nodes is not None
            with trio.fail_after(60):
                while (holder := tree.placement.holder(NAME)) is None or holder.id != "b":
                    await tree.nodes.wait_change()
            yield a, b
        nursery.cancel_scope.cancel()


@ENGINES
async def test_a_placed_plugin_answers_from_every_node(engine: str) -> None:
    """Routes, bodies, streams and WebSockets are those of the node that holds the plugin."""
    async with two_servers(engine=engine) as (a, b):
        answer = await a.http.get("/placed/who/me", headers={"origin": a.url})
        assert answer.json() == {
            "node": "b",
            "word": "me",
            "client": "127.0.0.1",
            "host": a.url.removeprefix("http://"),
        }
        assert answer.headers["server-timing"] == 'node;desc="b"'
        assert answer.headers["access-control-allow-origin"] == a.url
        assert (await a.http.post("/placed/upload", content=b"x" * 1_000_000)).json() == {
            "node": "b",
            "bytes": 1_000_000,
        }
        assert (await a.http.get("/placed/stream")).text == "0\n1\n2\n"
        assert (await a.http.get("/placed/who/")).status_code == (
            await b.http.get("/placed/who/")
        ).status_code
        async with open_raw(a.url + "/placed/echo") as client:
            await client.send_message("hello")
            assert await client.get_message() == "b hello"
        assert [await count_answered(node) for node in (a, b)] == [4, 0]


async def count_answered(node: RunningTangram) -> int:
    """Return the requests that other nodes have answered for this one, by its metrics."""
    metrics = (await node.http.get("/-/metrics", headers=node.operator)).text
    line = 'tangram_forwarded_requests_total{result="answered"} '
    return int(float(metrics.partition(line)[2].partition("\n")[0]))


def leased_plugin(_node: str) -> Plugin:
    """Return a plugin whose handlers name the lease under which they publish."""
    router = APIRouter(prefix="/placed")

    @router.get("/lease")
    async def lease() -> dict[str, Any]:
        return {"lease": HELD_LEASE.get()}

    @router.websocket("/lease")
    async def lease_of_socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(str(HELD_LEASE.get()))

    plugin = Plugin(routers=[router], instances="one")
    plugin.name = NAME
    return plugin


async def test_handlers_publish_under_the_lease_of_their_plugin() -> None:
    """Those of routes and WebSockets, also for a request that another node has forwarded."""
    async with two_servers(leased_plugin) as (a, b):
        for node in (a, b):
            assert (await node.http.get("/placed/lease")).json() == {"lease": NAME}
            async with open_raw(node.url + "/placed/lease") as client:
                assert await client.get_message() == NAME


@pytest.mark.parametrize("make", [existing_plugin, blueprint_plugin])
async def test_other_kinds_of_plugins_answer_from_every_node(make: Callable[[str], Plugin]) -> None:
    """Existing plugins and blueprints, by HTTP and WebSockets."""
    async with two_servers(make) as (a, b):
        assert (await a.http.get("/placed/who/me")).json() == {"node": "b", "word": "me"}
        assert (await b.http.get("/placed/who/me")).json() == {"node": "b", "word": "me"}
        assert (await a.http.get("/placed/nowhere")).status_code == 404
        if make is existing_plugin:
            return  # its WebSockets need FastAPI
        async with open_raw(a.url + "/placed/echo") as client:
            await client.send_message("hello")
            assert await client.get_message() == "b hello"


async def test_a_read_of_the_operator_is_answered_by_the_node_it_names() -> None:
    """``?node=ID`` gives the answer of that node, ``?node=all`` those of all by their ids."""
    async with two_servers() as (a, b):
        own = (await b.http.get("/-/plugins", headers=b.operator)).json()
        asked = await a.http.get("/-/plugins", params={"node": "b"}, headers=a.operator)
        assert asked.json() == own
        assert asked.headers["server-timing"] == 'node;desc="b"'
        for query in ({"node": "a"}, {}):
            assert (await a.http.get("/-/plugins", params=query)).headers["server-timing"] == 'node;desc="a"'

        everything = (await a.http.get("/-/plugins", params={"node": "all"}, headers=a.operator)).json()
        assert list(everything) == ["a", "b"]
        assert everything["b"] == own
        health = (await a.http.get("/-/healthz", params={"node": "all"})).json()
        assert health == {"a": {"status": "ok"}, "b": {"status": "ok"}}

        unknown = await a.http.get("/-/plugins", params={"node": "c"})
        assert (unknown.status_code, "'c'" in unknown.text) == (404, True)


async def test_the_token_is_checked_on_the_first_node_alone() -> None:
    """The operator's tokens differ: that of the asked node counts, and no node learns another one's."""
    async with two_servers() as (a, b):
        query = {"node": "b"}
        assert a.operator != b.operator
        assert (await a.http.get("/-/topics", params=query, headers=a.operator)).status_code == 200
        assert (await a.http.get("/-/topics", params=query)).status_code == 401
        assert (await a.http.get("/-/topics", params=query, headers=b.operator)).status_code == 401
        public = (await a.http.get("/-/plugins", params=query)).json()
        assert "last_crash" not in public[0]
        all_topics = (await a.http.get("/-/topics", params={"node": "all"}, headers=a.operator)).json()
        assert all_topics == {"a": [], "b": []}
        refused = (await a.http.get("/-/topics", params={"node": "all"})).json()
        assert [set(one) for one in refused.values()] == [{"detail"}, {"detail"}]


async def restarts_of(server: RunningTangram) -> int:
    """Return how often the plugin was started again on a node."""
    listed = (await server.http.get("/-/plugins", headers=server.operator)).json()
    return int(next(one["incarnation"] for one in listed if one["name"] == NAME)) - 1


async def test_a_restart_reaches_the_node_that_runs_the_plugin() -> None:
    """Without a name the holder restarts it; a named node, or all, restart their own; the token is needed."""
    path = f"/-/plugins/{NAME}/restart"
    async with two_servers() as (a, b):
        answer = await a.http.post(path, headers=a.operator)
        assert (answer.status_code, answer.headers["server-timing"]) == (200, 'node;desc="b"')
        assert (await restarts_of(a), await restarts_of(b)) == (0, 1)
        answer = await b.http.post(path, params={"node": "a"}, headers=b.operator)
        assert answer.json() == {"status": "restarted", "plugin": NAME}
        assert (await restarts_of(a), await restarts_of(b)) == (1, 1)
        answer = await a.http.post(path, params={"node": "all"}, headers=a.operator)
        assert {node: one["status"] for node, one in answer.json().items()} == {
            "a": "restarted",
            "b": "restarted",
        }
        assert (await restarts_of(a), await restarts_of(b)) == (2, 2)

        assert (await a.http.post(path)).status_code == 401
        assert (await a.http.post(path, params={"node": "c"}, headers=a.operator)).status_code == 404
        assert (await restarts_of(a), await restarts_of(b)) == (2, 2)


async def test_a_stream_of_another_node_is_followed() -> None:
    """``/-/tail?node=ID`` is that node's stream; of all nodes there is none, and the others answer."""
    async with two_servers() as (a, b):
        authorization = a.operator["authorization"].encode()
        stream = await trio.open_tcp_stream("127.0.0.1", int(a.url.rpartition(":")[2]))
        async with stream:
            await stream.send_all(
                b"GET /-/tail?node=b&topic=t HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: %b\r\n\r\n"
                % authorization
            )
            received = b""
            with trio.fail_after(60):
                while b"\r\n\r\n" not in received:
                    received += bytes(await stream.receive_some(65536))
                message = {"topic": "t", "event": "e", "payload": {"n": 1}}
                await b.http.post("/-/publish", json=message, headers=b.operator)
                while b'"n":1' not in received:
                    received += bytes(await stream.receive_some(65536))


@pytest.mark.slow
async def test_a_node_that_does_not_answer_is_told_in_its_place() -> None:
    """The other nodes' answers are there after two seconds."""
    async with two_servers() as (a, b):
        query = {"node": "all", "topic": "t"}
        answer = (await a.http.get("/-/tail", params=query, headers=a.operator)).json()
        assert [set(one) for one in answer.values()] == [{"error"}, {"error"}]
        assert "name one node" in answer["b"]["error"]

        assert b.server.tree is not None
        for held in b.server.tree.internal:
            held.listener.shutdown(2)
        assert a.server.tree is not None
        assert a.server.tree.incarnation.site is not None
        a.server.tree.incarnation.site._parts.elsewhere.pool.drop("b")  # type: ignore[union-attr]
        answer = (await a.http.get("/-/healthz", params={"node": "all"})).json()
        assert answer["a"] == {"status": "ok"}
        assert "cannot be reached" in answer["b"]["error"]


async def test_the_command_shows_the_status_of_other_nodes(tmp_path: Path) -> None:
    """``tangram status --node`` prints one node, or each with its name, and its own URL."""
    (tmp_path / "tangram.toml").write_text(f"[server]\nstate_dir = '{tmp_path}'\n")
    async with two_servers() as (a, b):
        environ = {
            "TANGRAM_CONFIG": str(tmp_path / "tangram.toml"),
            "TANGRAM_URL": a.url,
            "TANGRAM_OPERATOR_TOKEN": a.operator["authorization"].removeprefix("Bearer "),
        }

        async def status(node: str) -> tuple[int, list[dict[str, Any]]]:
            def invoke() -> Any:
                return CliRunner(env=environ).invoke(cli, ["status", "--node", node])

            result = await trio.to_thread.run_sync(invoke)
            return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]

        code, rows = await status("all")
        assert (code, [row["node"] for row in rows if row["kind"] == "node"]) == (0, ["a", "b"])
        assert [row["url"] for row in rows if row["kind"] == "server"] == [a.url, b.url]
        code, rows = await status("b")
        assert (code, rows[0]["kind"], rows[0]["status"]) == (0, "server", "ready")
        assert rows[0]["url"] == b.url
        del environ["TANGRAM_OPERATOR_TOKEN"]
        code, rows = await status("all")
        assert [row["url"] for row in rows if row["kind"] == "server"] == ["", ""]
        assert (await status("c"))[0] != 0


async def move(a: RunningTangram, b: RunningTangram) -> RunningTangram:
    """Move the plugin to the node that does not hold it, and return that node."""
    for holder, other in ((a, b), (b, a)):
        tree = holder.server.tree
        assert tree is not None
        if tree.placement.is_mine(NAME):
            tree.placement.move(NAME)
            return other
    raise AssertionError("no node holds the plugin")


async def test_a_planned_move_costs_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests to both nodes are answered while the plugin moves, and news ends the wait of each."""
    wait_news = InFlight.wait_news
    ends: set[str] = set()

    async def recorded(self: InFlight, deadline: float) -> None:
        is_retry = deadline <= trio.current_time() + LAST_RETRY
        await wait_news(self, deadline)
        if not is_retry:
            ends.add("late" if trio.current_time() >= deadline else "news")

    monkeypatch.setattr(InFlight, "wait_news", recorded)
    async with two_servers() as (a, b):
        nodes: set[str] = set()
        done = False

        async def ask(running: RunningTangram, number: int) -> None:
            while not done:
                if number % 2:
                    answer = await running.http.post("/placed/upload", content=b"x" * 100)
                else:
                    answer = await running.http.get("/placed/who/me")
                assert answer.status_code == 200, answer.text
                nodes.add(answer.json()["node"])

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(ask, a, number)
                    nursery.start_soon(ask, b, number)
                for _ in range(3):
                    nodes.clear()
                    new = await move(a, b)
                    tree = new.server.tree
                    assert tree is not None
                    assert tree.nodes is not None
                    while tree.nodes.me not in nodes:  # noqa: ASYNC110 - answers have no event
                        await trio.sleep(0.01)
                done = True
    assert ends == {"news"}


async def test_a_plugin_that_restarts_wakes_the_requests_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart where it runs changes no placement, so the start itself is the news."""
    async with two_servers() as (_, b):
        tree = b.server.tree
        assert tree is not None
        host, states = tree.incarnation.hosts[NAME], []
        monkeypatch.setattr(tree.in_flight, "notify", lambda: states.append(host.running))
        await b.http.post(f"/-/plugins/{NAME}/restart", headers=b.operator)

        # At the end of the drain, and when it runs.
        assert states == [False, True]


async def test_a_request_in_hand_is_answered_before_its_plugin_moves() -> None:
    """The old node answers it, and the new node starts the plugin after that."""
    released = trio.Event()
    async with two_servers(partial(placed_plugin, released=released)) as (a, b):
        answers: list[str] = []

        async def slow() -> None:
            answers.append((await a.http.get("/placed/slow")).json()["node"])

        assert b.server.tree is not None
        in_flight = b.server.tree.in_flight
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(slow)
                while not in_flight.count(NAME):  # noqa: ASYNC110 - counts have no event
                    await trio.sleep(0.01)
                b.server.tree.placement.move(NAME)
                while in_flight.takes(NAME):  # noqa: ASYNC110 - as above
                    await trio.sleep(0.01)
                assert answers == []
                released.set()
                assert (await a.http.get("/placed/who/me")).json()["node"] == "a"

        assert answers == ["b"]
