"""Bounds of both engines, and clients and applications that fail half-way."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing
from quart import request
from quart_trio import QuartTrio
from structlog.testing import capture_logs
from trio.testing import MockClock as Clock

from tangram.http.listeners import close_listeners, open_listeners
from tests.http.harness import hello, serving


async def test_declared_body_over_the_bound(engine: str, clock: Clock) -> None:
    """A body declared larger than max_body is refused with 413 before the application runs."""
    async with serving(engine, hello, max_body=1000) as server, await server.connect() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1001\r\n\r\n")
        answer = await client.answer_to("POST")

        assert answer.status == 413
        assert server.engine.statistics().rejected == 1


async def test_chunked_body_over_the_bound(engine: str, clock: Clock) -> None:
    """A body in chunks is refused with 413 when it outgrows max_body."""
    async with serving(engine, hello, max_body=1000) as server, await server.connect() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            await client.send(b"190\r\n" + b"x" * 400 + b"\r\n")
        answer = await client.answer_to("POST")

        assert answer.status == 413


async def test_each_request_has_a_body_limit_of_its_own(engine: str, clock: Clock) -> None:
    """``body_limit`` sets the limit of a request, above or below ``max_body``."""

    def limit(scope: dict[str, Any]) -> int:
        return 4000 if scope["path"] == "/large" else 10

    async with serving(engine, hello, max_body=1000, body_limit=limit) as server:
        async with await server.connect() as client:
            assert (await client.post("/large", b"y" * 4000)).status == 200
        for path, length in (("/large", 4001), ("/small", 11)):
            async with await server.connect() as client:
                head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n"
                await client.send(head.encode())
                assert (await client.answer_to("POST")).status == 413


async def test_refusal_reaches_a_client_that_is_still_sending(engine: str, clock: Clock) -> None:
    """A body over the bound is answered, and no reset drops the answer."""
    async with serving(engine, hello, max_body=1000) as server, await server.connect() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 800000\r\n\r\n")
        for _ in range(80):
            await client.send(b"x" * 10_000)
            await trio.sleep(0.001)
        answer = await client.answer_to("POST")

    assert answer.status == 413


async def test_body_within_the_bound(engine: str, clock: Clock) -> None:
    """A body of exactly max_body bytes is read."""
    async with serving(engine, hello, max_body=100_000) as server, await server.connect() as client:
        answer = await client.post("/", b"y" * 100_000)

    assert len(answer.json()["body"]) == 100_000


async def test_head_over_the_bound(engine: str, clock: Clock) -> None:
    """A head larger than max_header_bytes is refused with 431, and the connection closed."""
    async with serving(engine, hello, max_header_bytes=2000) as server, await server.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: test\r\nX: " + b"x" * 3000)
        answer = await client.rest()

    assert answer.startswith(b"HTTP/1.1 431")


async def test_one_byte_a_second_costs_its_own_connection(engine: str, clock: Clock) -> None:
    """A head that comes one byte a second is cut after header_timeout.

    Other clients are answered.
    """
    async with serving(engine, hello, header_timeout=10.0) as server, await server.connect() as client:
        began = trio.current_time()
        with suppress(trio.BrokenResourceError):
            for byte in b"GET / HTTP/1.1\r\nHost: test\r\nX-Padding: 123456789\r\n\r\n":
                await client.send(bytes([byte]))
                await trio.sleep(1)
                if not server.engine.statistics().connections:
                    break
        took = trio.current_time() - began
        async with await server.connect() as other:
            assert (await other.get("/")).status == 200

    assert 10 <= took <= 12


@pytest.mark.slow
@pytest.mark.parametrize(
    "begin", [b"Content-Length: 10\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n5\r\nha"]
)
async def test_body_that_stops_half_way(engine: str, begin: bytes, clock: Clock) -> None:
    """A body that stops ends its connection after idle_timeout.

    The application gets a disconnect.
    """
    heard: list[str] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        while not heard or heard[-1] != "http.disconnect":
            heard.append((await receive())["type"])

    async with serving(engine, app, idle_timeout=20.0) as server, await server.connect() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: test\r\n" + begin)
        began = trio.current_time()
        assert await client.rest(100) == b""
        assert 20 <= trio.current_time() - began < 23
        await server.wait_closed()

        assert server.engine.statistics().failed == 0
    assert heard[-1] == "http.disconnect"


@pytest.mark.slow
async def test_idle_connection_is_closed(engine: str, clock: Clock) -> None:
    """A connection between requests is closed after idle_timeout."""
    async with serving(engine, hello, idle_timeout=20.0) as server, await server.connect() as client:
        await client.get("/")
        began = trio.current_time()
        assert await client.rest(100) == b""

    assert 20 <= trio.current_time() - began < 22


async def test_connections_over_the_bound(engine: str, clock: Clock) -> None:
    """A connection over the bound gets 503; when one ends, the next is served."""
    async with serving(engine, hello, max_connections=2) as server:
        first, second = await server.connect(), await server.connect()
        assert (await first.get("/")).status == 200
        assert (await second.get("/")).status == 200
        async with await server.connect() as third:
            assert (await third.rest()).startswith(b"HTTP/1.1 503")
        await trio.aclose_forcefully(first.stream)
        await trio.testing.wait_all_tasks_blocked(0.02)
        async with await server.connect() as fourth:
            assert (await fourth.get("/")).status == 200

        assert server.engine.statistics().refused == 1
        await trio.aclose_forcefully(second.stream)


async def test_connections_of_one_address_over_the_bound(engine: str, clock: Clock) -> None:
    """A connection over the bound of its address gets 503."""
    async with serving(engine, hello, max_connections_per_address=1) as server:
        async with await server.connect() as first:
            assert (await first.get("/")).status == 200
            async with await server.connect() as second:
                assert (await second.rest()).startswith(b"HTTP/1.1 503")


async def test_a_proxy_may_have_any_number_of_connections(engine: str, clock: Clock) -> None:
    """The bound of one address does not apply to a trusted proxy."""
    async with serving(
        engine, hello, max_connections_per_address=1, is_proxy=lambda host: host == "127.0.0.1"
    ) as server:
        async with await server.connect() as first, await server.connect() as second:
            assert (await first.get("/")).status == 200
            assert (await second.get("/")).status == 200


async def test_the_log_names_the_address_with_the_most_connections(clock: Clock) -> None:
    """A refusal at ``max_connections`` logs the busiest address."""
    with capture_logs() as lines:
        async with serving("native", hello, max_connections=2) as server:
            async with await server.connect() as first, await server.connect() as second:
                await first.get("/")
                await second.get("/")
                async with await server.connect() as third:
                    assert (await third.rest()).startswith(b"HTTP/1.1 503")

    refused = [line for line in lines if line["event"] == "connection refused at its bound"]
    assert [(line["busiest"], line["connections_of_busiest"]) for line in refused] == [("127.0.0.1", 2)]


STAGES = [
    b"",
    b"G",
    b"GET / HTTP/1.1\r\nHost: te",
    b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf",
    b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
    b"GET / HTTP/1.1\r\nHost: test\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: test\r\n\r\nGET / HTTP/1.1\r\nHost",
]


@pytest.mark.parametrize("how", ["reset", "end"])
async def test_client_that_goes_at_any_stage(engine: str, how: str, clock: Clock) -> None:
    """A client that resets or ends its connection at any stage costs that connection only."""
    async with serving(engine, hello) as server:
        for stage in STAGES:
            client = await server.connect()
            await client.send(stage)
            if how == "reset":
                client.reset()
            await trio.aclose_forcefully(client.stream)
        async with await server.connect() as client:
            assert (await client.get("/")).status == 200
        await server.wait_closed()

        assert server.engine.statistics().crashed == 0


async def test_application_that_fails_half_way(engine: str, clock: Clock) -> None:
    """An exception half-way ends the connection, so that the answer is seen as incomplete."""

    async def broken(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        raise RuntimeError("boom")

    async with serving(engine, broken) as server, await server.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        answer = await client.rest()

    assert b"part" in answer
    assert not answer.endswith(b"0\r\n\r\n")


async def test_application_that_answers_nothing(engine: str, clock: Clock) -> None:
    """An application that returns without an answer is a 500."""

    async def silent(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()

    async with serving(engine, silent) as server, await server.connect() as client:
        assert (await client.get("/")).status == 500


async def test_stop_during_a_request_that_never_ends(engine: str, clock: Clock) -> None:
    """An application that does not end is cancelled at the end of the grace."""

    async def forever(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await trio.sleep_forever()

    async with serving(engine, forever, grace=2.0) as server, await server.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        await server.wait_requests()

        assert 1.9 < await server.stop() < 2.5


async def test_connection_from_the_moment_of_the_stop_is_served(engine: str, clock: Clock) -> None:
    """A client that connected just before a stop is answered, not cut."""
    async with serving(engine, hello) as server:
        clients = [await server.connect() for _ in range(3)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.stop)
            await trio.sleep(0.02)
            answers = [await client.get("/") for client in clients]
        for client in clients:
            await trio.aclose_forcefully(client.stream)

    assert [(answer.status, answer.keep) for answer in answers] == [(200, False)] * 3


async def test_restart_refuses_no_client(engine: str, clock: Clock) -> None:
    """A client that connects between two engines is answered by the next one."""
    held = open_listeners("127.0.0.1", 0)
    async with serving(engine, hello, held=held) as server, await server.connect() as client:
        assert (await client.get("/")).status == 200
        await server.stop()
        between = await server.connect()
    async with serving(engine, hello, held=held):
        assert (await between.get("/")).status == 200
        await trio.aclose_forcefully(between.stream)
    close_listeners(held)


async def test_the_last_engine_answers_the_queue_and_then_refuses(engine: str, clock: Clock) -> None:
    """Connections that the kernel has taken are answered at the end of the server; later ones are refused."""
    held = open_listeners("127.0.0.1", 0)
    async with serving(engine, hello, held=held, takes_waiting=lambda: True) as server:
        await trio.testing.wait_all_tasks_blocked()
        # No checkpoint from here to the cancel: the engine does not see these clients before its stop.
        waiting = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
        close_listeners(held)
        for one in waiting:
            one.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        await server.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))
    answers = []
    for one in waiting:
        with one:
            one.settimeout(5)
            answers.append(one.recv(65536).partition(b"\r\n")[0])

    assert {answer.split()[1] for answer in answers} == {b"200"}


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_stop_in_the_moment_of_a_start_is_no_crash(
    engine: str, clock: Clock, *, replaced: bool
) -> None:
    """An engine whose sockets the root has closed accepts nothing, also where another process goes on."""
    held = open_listeners("127.0.0.1", 0)
    close_listeners(held)
    async with serving(engine, hello, held=held, takes_waiting=lambda: not replaced):
        await trio.testing.wait_all_tasks_blocked()


async def test_access_log(engine: str, clock: Clock) -> None:
    """The access log has a line with method, path, status and client, and without the query."""
    with capture_logs() as lines:
        async with serving(engine, hello, access_log=True) as server, await server.connect() as client:
            await client.get("/seen?secret=1")

    line = next(line for line in lines if line["event"] == "request")
    assert (line["method"], line["path"], line["status"], line["client"]) == (
        "GET",
        "/seen",
        200,
        "127.0.0.1",
    )
    assert line["version"] == "1.1"
    assert "secret" not in str(line)


def quart_app() -> Any:
    app = QuartTrio(__name__)

    @app.get("/page")
    async def page() -> str:
        return "a page"

    @app.post("/upload")
    async def upload() -> str:
        return str(len(await request.get_data()))

    @app.get("/stream")
    async def stream() -> Any:
        async def pieces() -> Any:
            for number in range(3):
                await trio.sleep(0.1)
                yield b"%d" % number

        return pieces()

    return app


async def test_quart_keeps_the_connection(engine: str, clock: Clock) -> None:
    """A Quart application's connection is kept, and obeys Connection: close.

    A stop is quick.
    """
    async with serving(engine, cast("Any", quart_app())) as server:
        async with await server.connect() as client:
            page = await client.get("/page")
            upload = await client.post("/upload", b"x" * 200_000)
            stream = await client.get("/stream")
            last = await client.get("/page", ("connection", "close"))

            assert [page.body, upload.body, stream.body, last.body] == [
                b"a page",
                b"200000",
                b"012",
                b"a page",
            ]
            assert [page.keep, upload.keep, stream.keep, last.keep] == [True, True, True, False]
            assert await client.rest(1.0) == b""
        async with await server.connect() as client:
            await client.get("/page")
            assert await server.stop() < 0.5


async def test_quart_connection_times_out_when_idle(engine: str, clock: Clock) -> None:
    """A connection behind a Quart application is closed after idle_timeout."""
    async with (
        serving(engine, cast("Any", quart_app()), idle_timeout=5.0) as server,
        await server.connect() as client,
    ):
        await client.get("/page")
        began = trio.current_time()
        await client.rest()

    assert 5 <= trio.current_time() - began < 7


@pytest.mark.parametrize(
    "sent",
    [
        b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf",
        b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ],
)
async def test_a_body_cut_by_a_half_close_is_400(engine: str, sent: bytes, clock: Clock) -> None:
    """A client that closes its side within its body can still read the answer: 400."""
    got: list[str] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        while (message := await receive()).get("more_body"):
            pass
        got.append(message["type"])

    async with serving(engine, app) as server, await server.connect() as client:
        await client.send(sent)
        stream = client.stream
        assert isinstance(stream, trio.SocketStream)
        await stream.send_eof()
        answer = await client.rest()
        await server.wait_closed()

        assert answer.startswith(b"HTTP/1.1 400")
        assert got == ["http.disconnect"]
        assert server.engine.statistics().failed == 0


async def brief(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize("engine", ["native", "hypercorn"])
async def test_a_unix_socket_is_served(engine: str, clock: Clock, tmp_path: Path) -> None:
    """Requests over a Unix socket are answered; its clients count as one local proxy."""
    held = open_listeners(f"unix:{tmp_path}/t.sock", 0)
    try:
        async with serving(engine, brief, held=held, max_connections_per_address=1) as server:
            async with AsyncExitStack() as stack:
                for _ in range(2):
                    stream = await trio.open_unix_socket(tmp_path / "t.sock")
                    await stack.enter_async_context(stream)
                    await stream.send_all(b"GET /x HTTP/1.1\r\nhost: localhost\r\n\r\n")
                    with trio.fail_after(5):
                        assert bytes(await stream.receive_some(4096)).startswith(b"HTTP/1.1 200")
            assert server.engine.statistics().crashed == 0
    finally:
        close_listeners(held)
