"""A scripted Redis on a real socket."""

import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import hiredis
import trio

Answer = Callable[[list[bytes]], bytes | None]


CERT = Path(__file__).parents[1] / "http" / "tls" / "cert.pem"
"""A self-signed certificate for localhost and 127.0.0.1."""


def server_context(*, of_clients: bool = False) -> ssl.SSLContext:
    """Return a TLS context with ``CERT``; ``of_clients`` requires the same from clients."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERT, CERT.with_name("key.pem"))
    if of_clients:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(CERT)
    return context


def healthy(words: list[bytes]) -> bytes | None:
    if words[0] == b"INFO":
        text = b"# Server\r\nserver_name:valkey\r\nvalkey_version:9.9\r\nprocess_id:1\r\n"
        return b"$%d\r\n%s\r\n" % (len(text), text)
    return b"+PONG\r\n" if words[0] == b"PING" else b"+OK\r\n"


class FakeRedis:
    """A server that answers each command with ``answer(words)``.

    None closes the connection, empty bytes send nothing. With ``tls`` it uses TLS and ``CERT``.
    """

    def __init__(self, answer: Answer = healthy, *, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.tls = tls
        self.commands: list[list[bytes]] = []
        self.connections = trio.CancelScope()

    async def run(
        self, port: int = 0, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
            task_status.started(listeners[0].socket.getsockname()[1])
            await trio.serve_listeners(self._serve, listeners, handler_nursery=nursery)

    async def _serve(self, socket: trio.SocketStream) -> None:
        reader = hiredis.Reader()
        stream = socket if self.tls is None else trio.SSLStream(socket, self.tls, server_side=True)
        # A client may close before it has read the answer, which is a reset.
        with suppress(trio.BrokenResourceError):
            async with stream:
                await self._talk(stream, reader)

    async def _talk(self, stream: trio.abc.Stream, reader: hiredis.Reader) -> None:
        while data := await stream.receive_some():
            reader.feed(bytes(data))
            while (words := reader.gets()) is not False:
                self.commands.append(words)
                answer = self.answer(words)
                if answer is None:
                    return
                if answer:
                    await stream.send_all(answer)
