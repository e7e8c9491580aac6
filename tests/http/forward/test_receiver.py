"""The internal listener: 403 for everything but a node of this cluster."""

from __future__ import annotations

import pytest
import trio

from tangram.asgi import Receive, Scope, Send, send_json
from tangram.http.forward.heads import Envelope, encode_envelope, encode_head, signed_text
from tangram.http.forward.pool import NodeUnreachable, Pool
from tangram.http.forward.receiver import refuse_moved
from tests.http.forward.two_nodes import SECRET, echo, two_nodes

REQUESTS = [
    b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET /-/healthz HTTP/1.1\r\nhost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc",
    b"GET / HTTP/1.1\r\nhost: a\r\ntangram-proof: a 1 b\r\ntangram-request: {}\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\ntangram-hello: a b c\r\n\r\n",
    (
        b"GET /ws HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ),
]


@pytest.mark.parametrize("request_bytes", REQUESTS)
async def test_a_request_without_the_key_gets_403_and_nothing_else(request_bytes: bytes) -> None:
    """No body, no field that says more; the application does not see it."""
    calls: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        calls.append(scope["path"])

    async with two_nodes(app) as nodes, await nodes.holder.connect() as client:
        await client.send(request_bytes)
        answer = await client.answer_to("GET")

        assert (answer.status, answer.body) == (403, b"")
        assert set(answer.headers) <= {"content-length", "date", "connection"}
    assert calls == []


async def test_a_recorded_request_is_refused() -> None:
    """A program on the network that repeats the bytes of a node gets 421 and no answer."""
    calls: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        calls.append(scope["path"])
        await send_json(scope, send, 200, {})

    async with two_nodes(app) as nodes:
        pool = nodes.forwarder.pool
        session = await pool.session(nodes.peer)
        fields = [(b"host", b"a"), encode_envelope(Envelope(node="front"))]
        signed = signed_text(b"GET", b"/once", fields)
        data = encode_head(signed, session.seal(session.next_number(), signed))
        async with await nodes.holder.connect() as client:
            await client.send(data)
            assert (await client.answer_to("GET")).status == 200
        async with await nodes.holder.connect() as client:
            await client.send(data)
            again = await client.answer_to("GET")

        assert (again.status, again.headers["tangram-refused"], again.body) == (421, "seen", b"")
    assert calls == ["/once"]


async def test_a_listener_without_the_key_gets_no_request() -> None:
    """The address of a node comes from Redis: a program that listens there must prove that it is a node."""
    async with two_nodes(echo) as nodes:
        stranger = Pool("front", "another secret")
        with pytest.raises(NodeUnreachable, match="jwt_secret"):
            await stranger.session(nodes.peer)
        stranger.close()

        pool = Pool("front", SECRET)
        with pytest.raises(NodeUnreachable):
            await pool.session(type(nodes.peer)("impostor", nodes.peer.address))
        pool.close()


async def test_a_silent_listener_costs_a_second(autojump_clock: trio.testing.MockClock) -> None:
    """The greeting has a deadline."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    pool = Pool("front", SECRET)
    with pytest.raises(NodeUnreachable, match="not answered within 1 s"):
        await pool.session(_Peer("silent", f"127.0.0.1:{port}"))
    pool.close()
    for listener in listeners:
        await listener.aclose()


class _Peer:
    def __init__(self, node: str, address: str) -> None:
        self.id = node
        self.address: str | None = address


async def test_an_application_cannot_refuse_in_the_name_of_the_listener() -> None:
    """The field of a refusal is taken from answers of plugins."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(scope, send, 200, {"a": 1}, headers=[(b"Tangram-Refused", b"moved")])

    async with two_nodes(app) as nodes, await nodes.connect() as client:
        answer = await client.get("/")
        assert (answer.status, answer.json()) == (200, {"a": 1})


async def test_a_403_of_the_application_reaches_the_client() -> None:
    """It is told from the 403 of the listener."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(scope, send, 403, {"detail": "not yours"})

    async with two_nodes(app) as nodes, await nodes.connect() as client:
        answer = await client.get("/")
        assert (answer.status, answer.json()) == (403, {"detail": "not yours"})
        assert "tangram-refused" not in answer.headers


async def test_a_forwarded_request_for_a_plugin_that_moved_goes_back() -> None:
    """The holder refuses it, and the first node finds the new holder."""
    moved = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal moved
        if not moved:
            moved = True
            await refuse_moved(scope)
            return
        await echo(scope, receive, send)

    async with two_nodes(app) as nodes, await nodes.connect() as client:
        answer = await client.post("/", b"x" * 100_000)
        assert (answer.status, answer.json()["length"]) == (200, 100_000)


async def test_a_restarted_holder_gets_another_session() -> None:
    """It does not know the old one; no client notices."""
    async with two_nodes(echo) as nodes, await nodes.connect() as client:
        assert (await client.get("/")).status == 200
        nodes.receiver._sessions._used.clear()

        assert (await client.post("/", b"x")).status == 200


async def test_the_log_of_the_holder_names_the_client() -> None:
    """The engine of the internal listener logs the address of the client, not of the first node."""
    async with two_nodes(echo) as nodes:
        envelope = Envelope(node="front", client=("192.0.2.1", 7))
        scope = {
            "type": "http",
            "headers": [(b"tangram-proof", b"x"), encode_envelope(envelope)],
            "client": ("a", 1),
        }
        assert nodes.receiver.client_of(scope)["client"] == ("192.0.2.1", 7)
        assert nodes.receiver.client_of({"headers": [], "client": ("a", 1)})["client"] == ("a", 1)
