"""A worker's connection to its parent."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

import structlog
import trio

from tangram.broker.shared import SharedBroker
from tangram.workers.handover import decode_lines, encode_line

__all__ = ["ParentLink", "Stoppable"]

log = structlog.get_logger("tangram.workers")

_CHUNK: Final = 65536


class Stoppable(Protocol):
    """The server of the worker."""

    def stop(self, *, replaced: bool = False) -> None:
        """Begin the stop."""


class ParentLink:
    """Obeys the parent, and reports to it.

    Args:
        connection: the worker's end of the socket pair.
        received: bytes that were received behind the parameters.
        broker: follows the parent's broker.
    """

    def __init__(self, connection: socket.socket, received: bytes, broker: SharedBroker) -> None:
        self._connection = connection
        self._received = received
        self._broker = broker

    async def run(self, server: Stoppable, beat: float | None) -> None:
        """Obey the parent until it closes the connection, or until cancelled.

        Args:
            server: stopped when the parent asks for it, or has ended.
            beat: seconds between two signs of life; None for none.
        """
        self._connection.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(self._connection))
        async with trio.open_nursery() as nursery:
            if beat is not None:
                nursery.start_soon(self._send_beats, beat)
            with suppress(trio.BrokenResourceError):
                await self._obey(stream, server)
            # The guard of this process kills it, too; this is for one that was started without a guard.
            log.warning("parent process has ended")
            server.stop()
            nursery.cancel_scope.cancel()

    async def _obey(self, stream: trio.SocketStream, server: Stoppable) -> None:
        pending = self._received
        while True:
            messages, pending = decode_lines(pending)
            for message in messages:
                self._handle(message, server)
            data = await stream.receive_some(_CHUNK)
            if not data:
                return
            pending += data

    def _handle(self, message: Mapping[str, Any], server: Stoppable) -> None:
        if "broker" in message:
            self._broker.announce(message["broker"])
        if message.get("replaced"):
            log.info("worker is replaced and stops")
            server.stop(replaced=True)

    async def _send_beats(self, beat: float) -> None:
        while True:
            self.report({"beat": True})
            await trio.sleep(beat)

    def report(self, values: Mapping[str, Any]) -> None:
        """Send one message at once, in the middle of any code; it is lost if the parent has ended.

        The parent reads all the time, and messages are small: there is always room for one.
        """
        with suppress(OSError):
            self._connection.send(encode_line(values))
