"""Requests that another node answers, over both engines."""

from __future__ import annotations

import json

import pytest
import trio
import trio.testing

from tangram.asgi import Message, Receive, Scope, Send, send_json
from tangram.http.forward.exchange import REPLAY_BYTES
from tangram.http.forward.pool import NodeConnection
from tests.http.forward.two_nodes import PLUGIN, Node, echo, two_nodes
from tests.http.harness import Answer

ENGINES = pytest.mark.parametrize("engine", ["native", "hypercorn"])


@ENGINES
async def test_the_holder_sees_the_clients_own_request(engine: str) -> None:
    """Method, path, query, fields, client, scheme and body are those of the client."""
    async with two_nodes(echo, engine=engine) as nodes, await nodes.connect() as client:
        address = client.stream.socket.getsockname()
        answer = await client.post(
            "/a%20b?c=d%26e", b"hello", ("cookie", "k=v"), ("x-twice", "1"), ("x-twice", "2")
        )

        seen = answer.json()
        assert answer.status == 200
        assert (seen["method"], seen["path"], seen["query"]) == ("POST", "/a b", "c=d%26e")
        assert seen["client"] == list(address[:2])
        assert (seen["scheme"], seen["version"], seen["body"]) == ("http", "1.1", "hello")
        fields = seen["headers"]
        assert ["host", "test"] in fields
        assert ["cookie", "k=v"] in fields
        assert [value for name, value in fields if name == "x-twice"] == ["1", "2"]
        assert [value for name, value in fields if name == "content-length"] == ["5"]
        assert not [name for name, _ in fields if name.startswith("tangram-")]


@ENGINES
async def test_the_answer_names_its_node_and_the_connection_is_kept(engine: str) -> None:
    """``Server-Timing`` names the holder; the second request uses the same connection to it."""
    async with two_nodes(echo, engine=engine) as nodes, await nodes.connect() as client:
        for _ in range(3):
            answer = await client.get("/")
            assert answer.headers["server-timing"] == 'node;desc="holder"'
            assert answer.keep

        assert nodes.forwarder.pool.opened == 1


@ENGINES
@pytest.mark.parametrize("size", [0, 1, REPLAY_BYTES, REPLAY_BYTES + 1, 1_000_000])
async def test_bodies_of_any_size_arrive_whole(engine: str, size: int) -> None:
    """Small bodies are kept, large ones flow through; the holder gets each byte once."""
    async with two_nodes(echo, engine=engine, max_body=0) as nodes, await nodes.connect() as client:
        answer = await client.post("/", b"x" * size)
        assert answer.json()["length"] == size


@ENGINES
async def test_a_body_in_chunks_arrives_in_chunks(engine: str) -> None:
    """The length of a chunked body is not known before its end, on neither side."""
    async with two_nodes(echo, engine=engine) as nodes, await nodes.connect() as client:
        await client.send(b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await client.send(b"4\r\ndefg\r\n0\r\n\r\n")

        seen = (await client.answer_to("POST")).json()
        assert seen["body"] == "abcdefg"
        assert ["transfer-encoding", "chunked"] in seen["headers"]


@ENGINES
async def test_a_client_that_asks_first_sends_nothing_to_a_refusing_application(engine: str) -> None:
    """``100 Continue`` comes from the application of the holder, when it begins to read."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/no":
            await send_json(scope, send, 403, {})
        else:
            await echo(scope, receive, send)

    head = b"POST %b HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
    async with two_nodes(app, engine=engine) as nodes:
        async with await nodes.connect() as client:
            await client.send(head % b"/no")
            assert (await client.answer_to("POST")).status == 403
        async with await nodes.connect() as client:
            await client.send(head % b"/yes")
            assert (await client.stream.receive_some(12)).startswith(b"HTTP/1.1 100")
            await client.send(b"hello")
            while b'"body":"hello"' not in (data := bytes(await client.stream.receive_some(65536))):
                assert data


@ENGINES
async def test_head_and_answers_without_a_body(engine: str) -> None:
    """HEAD has the fields of GET; 204 and 304 have no body, and the connection goes on."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        status = int(scope["path"][1:])
        await send_json(scope, send, status, {"a": 1}, headers=[(b"etag", b'"x"')])

    async with two_nodes(app, engine=engine) as nodes, await nodes.connect() as client:
        head = await client.get("/200", method="HEAD")
        assert (head.status, head.headers["content-length"], head.body) == (200, "7", b"")
        for status in (204, 304):
            answer = await client.get(f"/{status}")
            assert (answer.status, answer.body, answer.headers["etag"]) == (status, b"", '"x"')
        assert (await client.get("/200")).json() == {"a": 1}
        assert nodes.forwarder.pool.opened == 1


@ENGINES
async def test_a_stream_arrives_piece_by_piece(engine: str) -> None:
    """A piece reaches the client before the application makes the next one."""
    wake = trio.Event()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/event-stream")],
            }
        )
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await wake.wait()
        await send({"type": "http.response.body", "body": b"data: 2\n\n", "more_body": False})

    async with two_nodes(app, engine=engine) as nodes, await nodes.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        got = b""
        with trio.fail_after(10):
            while b"data: 1" not in got:
                got += bytes(await client.stream.receive_some(65536))
            wake.set()
            while b"data: 2" not in got:
                got += bytes(await client.stream.receive_some(65536))


@ENGINES
async def test_a_client_that_leaves_ends_the_request_at_the_holder(engine: str) -> None:
    """The application of the holder learns that the client has gone."""
    gone = trio.Event()
    started = trio.Event()

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begin", "more_body": True})
        started.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async with two_nodes(app, engine=engine) as nodes:
        async with await nodes.connect() as client:
            await client.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
            with trio.fail_after(10):
                await started.wait()
        with trio.fail_after(10):
            await gone.wait()


async def test_a_client_that_leaves_in_its_body_ends_the_request_at_the_holder() -> None:
    """An upload that breaks off is an upload that breaks off at the holder, too."""
    ends: list[str] = []
    ended = trio.Event()

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        while (message := await receive())["type"] == "http.request":
            assert message["more_body"]
        ends.append(message["type"])
        ended.set()

    async with two_nodes(app, max_body=0) as nodes:
        async with await nodes.connect() as client:
            await client.send(
                b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 300_000
            )
            await nodes.holder.wait_requests(2)
        with trio.fail_after(10):
            await ended.wait()

    assert ends == ["http.disconnect"]


@pytest.mark.slow
async def test_a_slow_client_slows_the_application_of_the_holder_down() -> None:
    """The application waits in ``send`` once the buffers between it and the client are full."""
    sent = 0

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(2000):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            sent += 1

    async with two_nodes(app) as nodes:
        async with await nodes.connect() as client:
            await client.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
            before = -1
            with trio.fail_after(20):
                while before != sent or not sent:
                    before = sent
                    await trio.sleep(0.2)
            assert sent < 1000
        await nodes.front.wait_closed()


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("POST", 502)])
async def test_a_request_whose_holder_dies_is_repeated_if_that_is_harmless(method: str, status: int) -> None:
    """The application had begun: an idempotent request goes to the next holder, another one gets 502."""
    calls: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        calls.append(scope["method"])
        if len(calls) == 1:
            for connection in list(nodes.holder.engine.connections):
                connection.abort()
            return
        await echo(scope, receive, send)

    async with two_nodes(app) as nodes, await nodes.connect() as client:
        answer = await (client.get("/") if method == "GET" else client.post("/", b"once"))
        assert answer.status == status
        assert nodes.forwarder.results == {"answered" if status == 200 else "failed": 1}

    assert calls == [method] * (2 if method == "GET" else 1)


async def test_a_post_on_a_connection_that_died_idle_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder had closed it and its application has not seen the request: no client notices."""
    calls: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        calls.append(scope["method"])
        await echo(scope, receive, send)

    async with two_nodes(app) as nodes, await nodes.connect() as client:
        assert (await client.get("/")).status == 200
        pool = nodes.forwarder.pool
        # The holder closes after the look and before the write: the look does not see it.
        monkeypatch.setattr(NodeConnection, "is_fresh", lambda _: True)
        for connection in list(nodes.holder.engine.connections):
            connection.abort()
        await nodes.holder.running.wait_closed()
        answer = await client.post("/", b"once")

        assert answer.status == 200
        assert calls == ["GET", "POST"]
        assert pool.opened == 2


async def test_an_idle_connection_that_died_is_not_used() -> None:
    """One system call shows that the other side has closed."""
    async with two_nodes(echo) as nodes, await nodes.connect() as client:
        assert (await client.get("/")).status == 200
        for connection in list(nodes.holder.engine.connections):
            connection.abort()
        await nodes.holder.running.wait_closed()

        assert (await client.post("/", b"x")).status == 200
        assert nodes.forwarder.pool.opened == 2


async def test_a_broken_answer_breaks_off_at_the_client() -> None:
    """A client must not take half of an answer for a whole one."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        for connection in list(nodes.holder.engine.connections):
            connection.abort()

    async with two_nodes(app) as nodes, await nodes.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        data = await client.rest()

    assert b"half" in data
    assert not data.endswith(b"0\r\n\r\n")


async def test_a_request_waits_for_the_next_holder() -> None:
    """In a move there is no holder for a moment; the request is answered as soon as there is one."""
    async with two_nodes(echo) as nodes, await nodes.connect() as client, trio.open_nursery() as nursery:
        peer, nodes.placement.where = nodes.peer, None
        answers: list[Answer] = []

        async def post() -> None:
            answers.append(await client.post("/", b"x"))

        nursery.start_soon(post)
        await nodes.wait_asked()
        asked = nodes.placement.asked
        nodes.in_flight.notify()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not answers
        # It looks after each change, and never between two of them.
        assert nodes.placement.asked == 2 * asked
        nodes.placement.where = peer
        nodes.in_flight.notify()

    assert [answer.status for answer in answers] == [200]


async def test_a_request_is_served_here_when_the_plugin_comes_here() -> None:
    """A body that was read for the other node reaches the application of this one."""
    async with two_nodes(echo, local=echo) as nodes, await nodes.connect() as client:
        nodes.placement.where = Node("holder", "127.0.0.1:1")  # it refuses

        async def come() -> None:
            await nodes.wait_asked()
            nodes.here[0] = True
            nodes.in_flight.resume(PLUGIN)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come)
            answer = await client.post("/", b"kept")

        assert (answer.status, answer.json()["body"]) == (200, "kept")
        assert "server-timing" not in answer.headers


async def test_a_node_that_refuses_is_tried_again_without_news() -> None:
    """It may be starting; nothing is published when it can be reached."""
    async with two_nodes(echo) as nodes, await nodes.connect() as client:
        peer, nodes.placement.where = nodes.peer, Node("holder", "127.0.0.1:1")

        def reach(asked: int) -> None:
            nodes.placement.where = peer if asked > 5 else nodes.placement.where

        nodes.placement.on_asked = reach
        assert (await client.get("/")).status == 200
        assert 5 < nodes.placement.asked < 12


@pytest.mark.slow
async def test_without_a_holder_the_answer_is_503() -> None:
    """After the time for a restart the client is asked to come back."""
    async with two_nodes(echo) as nodes, await nodes.connect() as client:
        nodes.placement.where = None
        answer = await client.get("/")

        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert PLUGIN in answer.json()["detail"]
        assert nodes.forwarder.results == {"unavailable": 1}


@pytest.mark.parametrize("parts", [[b""], [b"small"], [b"x" * 70_000, b"y" * 70_000], [b"a", b"", b"b"]])
async def test_a_body_without_a_length_is_passed_on(parts: list[bytes]) -> None:
    """A request of HTTP/2 need not declare a length, and may have a body all the same."""
    events = [
        {"type": "http.request", "body": part, "more_body": number < len(parts) - 1}
        for number, part in enumerate(parts)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        if events:
            return events.pop(0)
        await trio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "2",
        "method": "POST",
        "scheme": "https",
        "path": "/up",
        "raw_path": b"/up",
        "query_string": b"",
        "headers": [(b"host", b"test"), (b"x-a", b"b ")],
        "client": ("192.0.2.1", 7),
        "server": ("192.0.2.2", 443),
    }
    async with two_nodes(echo) as nodes:
        assert await nodes.forwarder.forward(PLUGIN, scope, receive, send) is None

    seen = json.loads(b"".join(message.get("body", b"") for message in sent))
    assert seen["length"] == sum(map(len, parts))
    assert (seen["version"], seen["scheme"], seen["client"]) == ("2", "https", ["192.0.2.1", 7])
    assert ["x-a", "b"] in seen["headers"]


async def test_a_request_of_http2_that_splits_its_head_is_refused() -> None:
    """Its fields did not pass the parser for HTTP/1.1: the answer is 400, and the holder gets nothing."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "2",
        "method": "GET",
        "scheme": "https",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [(b"host", b"test"), (b"x", b"a\r\ntangram-proof: forged")],
        "client": None,
        "server": None,
    }
    async with two_nodes(echo) as nodes:
        assert await nodes.forwarder.forward(PLUGIN, scope, receive, send) is None
        assert nodes.holder.engine.statistics().requests == 1  # the greeting

    assert sent[0]["status"] == 400
