"""HTTP behaviour that both engines share."""

from __future__ import annotations

from typing import Any

import h11
import pytest
import trio
import trio.testing
from trio.testing import MockClock as Clock

from tests.http.harness import hello, serving


async def test_answers_a_request(engine: str, clock: Clock) -> None:
    """A GET reaches the application, and the answer comes back."""
    async with serving(engine, hello) as server, await server.connect() as client:
        answer = await client.get("/a%20b/c?x=1&y=%20", ("x-thing", "Value"))

    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert "date" in answer.headers
    assert "server" not in answer.headers
    told = answer.json()
    assert (told["method"], told["path"], told["raw_path"]) == ("GET", "/a b/c", "/a%20b/c")
    assert told["query"] == "x=1&y=%20"
    assert told["scheme"] == "http"
    assert ["x-thing", "Value"] in told["headers"]
    assert told["client"][0] == "127.0.0.1"


async def test_keeps_the_connection(engine: str, clock: Clock) -> None:
    """Three requests, one with a body, use one connection."""
    async with serving(engine, hello) as server, await server.connect() as client:
        first = await client.get("/1")
        second = await client.post("/2", b"some body")
        third = await client.get("/3")

        assert server.engine.statistics().accepted == 1
    assert [first.json()["path"], second.json()["path"], third.json()["path"]] == ["/1", "/2", "/3"]
    assert second.json()["body"] == "some body"


async def test_upgrade_with_an_extra_byte_costs_one_connection(engine: str, clock: Clock) -> None:
    """A byte behind a WebSocket upgrade disturbs no other connection."""
    async with serving(engine, websocket_or_hello) as server:
        async with await server.connect() as client:
            await client.send(UPGRADE + b"x")
            await client.stream.receive_some(65536)
            await client.send(b"y")
        async with await server.connect() as client:
            assert (await client.get("/")).status == 200
        await server.wait_closed()


@pytest.mark.parametrize("tail", [b"x", b"\x81\x85\x00\x00\x00\x00hello", b"GET / HTTP/1.1\r\n\r\n"])
@pytest.mark.parametrize("delay", [0.0, 0.2])
@pytest.mark.parametrize("answer", ["accept", "close", "nothing", "listen"])
async def test_bytes_behind_an_upgrade(
    engine: str, tail: bytes, delay: float, answer: str, clock: Clock
) -> None:
    """Bytes behind an upgrade leave nothing behind, for each answer of the application."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await hello(scope, receive, send)
            return
        await receive()
        await trio.sleep(delay)
        if answer == "accept":
            await send({"type": "websocket.accept"})
            while (await receive())["type"] != "websocket.disconnect":
                pass
        elif answer == "close":
            await send({"type": "websocket.close"})
        elif answer == "listen":
            assert (await receive())["type"] == "websocket.disconnect"

    async with serving(engine, app) as server:
        client = await server.connect()
        await client.send(UPGRADE + tail)
        await trio.sleep(0.5)
        await trio.aclose_forcefully(client.stream)
        async with await server.connect() as other:
            assert (await other.get("/")).status == 200
        await server.wait_closed()

        # Only an application that neither accepts nor refuses counts as failed.
        assert server.engine.statistics().failed == 0


UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def websocket_or_hello(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
    else:
        await hello(scope, receive, send)


async def endless(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})


async def test_client_that_never_reads_is_closed(engine: str, clock: Clock) -> None:
    """A client that does not read for the write timeout loses its connection."""
    async with serving(engine, endless, write_timeout=10.0) as server, await server.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        await trio.sleep(9.9)
        assert server.engine.statistics().stalled == 0
        # More than 0.1 s: whenever the kernel finds room for a few bytes, the write timeout begins again.
        await trio.sleep(30)
        await server.wait_closed(1)

        assert server.engine.statistics().stalled == 1


async def test_stop_ends_within_grace_though_a_client_does_not_read(engine: str, clock: Clock) -> None:
    """A stop takes the grace and no longer when a client does not read."""
    async with serving(engine, endless, grace=2.0, write_timeout=100.0) as server:
        client = await server.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        await server.wait_requests()
        took = await server.stop()

        assert 1.9 < took < 2.5
        assert server.engine.statistics().forced == 1
        assert server.engine.statistics().connections == 0
        await trio.aclose_forcefully(client.stream)


async def test_stop_lets_a_request_finish(engine: str, clock: Clock) -> None:
    """A request from before the stop gets its answer, and then the connection ends."""

    async def slow(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await trio.sleep(1)
        await hello(scope, receive, send)

    async with serving(engine, slow) as server, await server.connect() as client:
        answers = []

        async def ask() -> None:
            answers.append(await client.get("/slow"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await server.wait_requests()
            took = await server.stop()

        assert answers[0].status == 200
        assert not answers[0].keep
        assert took < 1.5


async def test_stop_closes_idle_connections_at_once(engine: str, clock: Clock) -> None:
    """A connection between two requests does not delay a stop."""
    async with serving(engine, hello) as server, await server.connect() as client:
        await client.get("/")
        took = await server.stop()

        assert took < 0.5
        assert await client.rest() == b""


async def test_application_error_is_500(engine: str, clock: Clock) -> None:
    """An application that raises answers 500, and the server goes on."""

    async def broken(scope: dict[str, Any], receive: Any, send: Any) -> None:
        raise RuntimeError("boom")

    async with serving(engine, broken) as server:
        async with await server.connect() as client:
            assert (await client.get("/")).status == 500
        async with await server.connect() as client:
            assert (await client.get("/")).status == 500

        assert server.engine.statistics().failed == 2


async def test_head_has_no_body(engine: str, clock: Clock) -> None:
    """HEAD gets the headers of GET with its length, and no body; the connection goes on."""
    async with serving(engine, hello) as server, await server.connect() as client:
        head = await client.get("/", method="HEAD")
        get = await client.get("/")

    assert head.body == b""
    assert int(head.headers["content-length"]) > 0
    assert get.status == 200


@pytest.mark.parametrize("status", [204, 304])
async def test_status_without_a_body(engine: str, status: int, clock: Clock) -> None:
    """204 and 304 carry no body, and the next request on the connection is read."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"etag", b'"x"')]})
        await send({"type": "http.response.body", "body": b""})

    async with serving(engine, app) as server, await server.connect() as client:
        first = await client.get("/")
        second = await client.get("/")

    assert [first.status, second.status] == [status, status]
    assert first.body == b""


async def test_chunked_request(engine: str, clock: Clock) -> None:
    """A request body in chunks, with an extension and a trailer, arrives whole."""
    async with serving(engine, hello) as server, await server.connect() as client:
        await client.send(
            b"POST /x HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5;note=1\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n"
            b"GET /next HTTP/1.1\r\nHost: test\r\n\r\n"
        )
        client.http.send(h11.Request(method="POST", target="/x", headers=[("host", "x")]))
        client.http.send(h11.EndOfMessage())
        first = await client.answer()
        client.http.send(h11.Request(method="GET", target="/next", headers=[("host", "x")]))
        client.http.send(h11.EndOfMessage())
        second = await client.answer()

    assert first.json()["body"] == "hello world"
    assert second.json()["path"] == "/next"


async def test_pipelined_requests_are_answered_in_order(engine: str, clock: Clock) -> None:
    """Pipelined requests are answered one after the other, each with its own body."""
    async with serving(engine, hello) as server, await server.connect() as client:
        await client.send(
            b"".join(
                b"POST /%d HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\n%d" % (n, n) for n in range(5)
            )
        )
        answers = []
        for _ in range(5):
            client.http.send(h11.Request(method="POST", target="/", headers=[("host", "x")]))
            client.http.send(h11.EndOfMessage())
            answers.append((await client.answer()).json())

    assert [answer["path"] for answer in answers] == [f"/{n}" for n in range(5)]
    assert [answer["body"] for answer in answers] == [str(n) for n in range(5)]


async def test_expectation_is_met_when_the_body_is_asked_for(engine: str, clock: Clock) -> None:
    """A client that waits for 100 Continue gets it, and then its answer."""
    async with serving(engine, hello) as server, await server.connect() as client:
        await client.send(
            b"POST /x HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        )
        leave = await client.stream.receive_some(65536)
        await client.send(b"body")
        answer = await client.answer_to("POST")

    assert leave.startswith(b"HTTP/1.1 100")
    assert answer.json()["body"] == "body"


async def test_http_1_0_closes(engine: str, clock: Clock) -> None:
    """An HTTP/1.0 client without a Host gets its answer, and then the end of the connection."""
    async with serving(engine, hello) as server, await server.connect() as client:
        await client.send(b"GET /old HTTP/1.0\r\n\r\n")
        answer = await client.rest()

    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"version": "1.0"' in answer


async def test_http_1_0_gets_no_chunks(engine: str, clock: Clock) -> None:
    """A streamed answer to an HTTP/1.0 client ends with the connection, without chunks."""
    async with serving(engine, streaming) as server, await server.connect() as client:
        await client.send(b"GET /old HTTP/1.0\r\n\r\n")
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")

    assert b"transfer-encoding" not in head.lower()
    assert body == b"012"


async def streaming(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for number in range(3):
        await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
    await send({"type": "http.response.body"})


async def test_streamed_answer(engine: str, clock: Clock) -> None:
    """A body of unknown length arrives whole, and the connection is kept."""
    async with serving(engine, streaming) as server, await server.connect() as client:
        answer = await client.get("/")

    assert (answer.body, answer.keep) == (b"012", True)
    assert answer.headers["transfer-encoding"] == "chunked"


async def test_connection_close_is_obeyed(engine: str, clock: Clock) -> None:
    """Connection: close in a request ends the connection after the answer."""
    async with serving(engine, hello) as server, await server.connect() as client:
        answer = await client.get("/", ("connection", "close"))

        assert answer.headers["connection"] == "close"
        assert await client.rest() == b""


@pytest.mark.slow
async def test_large_answer_to_a_slow_reader(engine: str, clock: Clock) -> None:
    """A client that reads slowly but steadily gets all of a large answer."""
    body = bytes(range(256)) * 16384  # 4 MiB

    async def large(scope: dict[str, Any], receive: Any, send: Any) -> None:
        head = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})

    async with serving(engine, large, write_timeout=10.0) as server, await server.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        got = b""
        while len(got) < len(body):
            got += await client.stream.receive_some(262144)
            await trio.sleep(1)

        assert body in got
        assert server.engine.statistics().stalled == 0


async def test_disconnect_is_reported_when_the_client_leaves(engine: str, clock: Clock) -> None:
    """receive reports the disconnect when the client leaves, and not before."""
    heard: list[tuple[str, float]] = []
    waiting = trio.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        waiting.set()
        message = await receive()
        heard.append((message["type"], trio.current_time()))

    async with serving(engine, app) as server:
        client = await server.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        await waiting.wait()
        await trio.sleep(5)
        gone = trio.current_time()
        await trio.aclose_forcefully(client.stream)
        await server.wait_closed()

    assert heard[0][0] == "http.disconnect"
    assert heard[0][1] >= gone


@pytest.mark.parametrize("ahead", [1, 5000])
async def test_disconnect_is_reported_behind_pipelined_requests(
    engine: str, ahead: int, clock: Clock
) -> None:
    """receive reports the disconnect of a client that pipelined more requests.

    The number of bytes that were read ahead does not matter.
    """
    heard: list[str] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        while not heard or heard[-1] != "http.disconnect":
            heard.append((await receive())["type"])

    async with serving(engine, app) as server:
        client = await server.connect()
        with trio.move_on_after(1):
            await client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n" * (1 + ahead))
        await server.wait_requests()
        await trio.aclose_forcefully(client.stream)
        await server.wait_closed(10)

    assert heard[-1] == "http.disconnect"


@pytest.mark.parametrize("pieces", [[b"\r\n"], [b"\r", b"\n"]])
async def test_an_empty_line_before_a_request_is_ignored(
    engine: str, pieces: list[bytes], clock: Clock
) -> None:
    """One line break before a request, also behind the body of the last one, is dropped."""
    async with serving(engine, hello) as server, await server.connect() as client:
        for piece in pieces:
            await client.send(piece)
            await trio.sleep(0.01)
        first = await client.get("/1")
        await client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody" + pieces[0])
        second = await client.answer_to("POST")
        for piece in pieces[1:]:
            await client.send(piece)
        third = await client.get("/3")

    assert (first.json()["path"], second.json()["body"], third.json()["path"]) == ("/1", "body", "/3")


async def test_two_empty_lines_before_a_request_are_400(engine: str, clock: Clock) -> None:
    """Only one empty line is ignored: a client cannot keep the connection busy with them."""
    async with serving(engine, hello) as server, await server.connect() as client:
        await client.send(b"\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("head", [b"Content-Length: 1000000", b"Transfer-Encoding: chunked"])
async def test_an_answer_before_the_body_announces_the_close(engine: str, head: bytes, clock: Clock) -> None:
    """An answer that leaves a large body unread says Connection: close."""

    async def refuse(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})

    async with serving(engine, refuse) as server, await server.connect() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: test\r\n" + head + b"\r\n\r\n")
        answer = await client.answer_to("POST")

        assert (answer.status, answer.headers["connection"]) == (401, "close")
        assert await client.rest() == b""


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 2000\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" + b"x" * 2000, 413),
        (b"GET / HTTP/1.1\r\nHost: test\r\n\r\n", 500),
    ],
)
async def test_the_engines_own_answers_have_the_sites_headers(
    engine: str, request_bytes: bytes, status: int, clock: Clock
) -> None:
    """``error_headers`` are in each answer that the engine gives, so that a page may read it."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass

    def headers(scope: dict[str, Any]) -> list[tuple[bytes, bytes]]:
        return [(b"x-path", scope["path"].encode())]

    async with serving(engine, app, max_body=1000, error_headers=headers) as server:
        async with await server.connect() as client:
            await client.send(request_bytes)
            answer = await client.answer_to("POST")

    assert (answer.status, answer.headers["x-path"], answer.headers["connection"]) == (status, "/", "close")


async def test_options_of_the_whole_server(engine: str, clock: Clock) -> None:
    """``OPTIONS *`` reaches the application with the path ``*``."""
    async with serving(engine, hello) as server, await server.connect() as client:
        await client.send(b"OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n")
        assert (await client.answer_to("OPTIONS")).json()["path"] == "*"
