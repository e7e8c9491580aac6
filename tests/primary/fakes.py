"""Sentinels in memory, each with its own view of the primary."""

from __future__ import annotations

import hiredis
import trio
from trio.testing import memory_stream_pair

from tangram.redis_url import Endpoint, RedisAddress


def bulks(*words: object) -> bytes:
    """Return an array of bulk strings, or of such arrays."""
    parts = []
    for word in words:
        text = word if isinstance(word, bytes) else str(word).encode()
        parts.append(text if text.startswith(b"*") else b"$%d\r\n%b\r\n" % (len(text), text))
    return b"*%d\r\n" % len(words) + b"".join(parts)


class FakeSentinels:
    """Sentinels by their address: ``connect`` opens a connection to one of them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.views: dict[Endpoint, tuple[Endpoint, int] | str | None] = {}
        """Primary and epoch that each sentinel knows, or the error that it answers; None: it hangs."""
        self.others: dict[Endpoint, list[Endpoint]] = {}
        """The sentinels that each one names."""
        self.asked: list[Endpoint] = []
        self.logins: list[list[bytes]] = []

    async def connect(self, address: RedisAddress) -> trio.abc.Stream:
        """Return a connection to a sentinel; others refuse it."""
        await trio.lowlevel.checkpoint()
        self.asked.append(address.endpoint)
        if address.endpoint not in self.views:
            raise ConnectionRefusedError(111, "Connection refused")
        ours, theirs = memory_stream_pair()
        self.nursery.start_soon(self._serve, theirs, address.endpoint)
        return ours

    async def _serve(self, stream: trio.abc.Stream, me: Endpoint) -> None:
        reader = hiredis.Reader()
        try:
            while data := await stream.receive_some(65536):
                reader.feed(bytes(data))
                while (words := reader.gets()) is not False:
                    if self.views[me] is not None:
                        await stream.send_all(self._answer(me, words))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def _answer(self, me: Endpoint, words: list[bytes]) -> bytes:
        view = self.views[me]
        assert view is not None
        if words[0] == b"AUTH":
            self.logins.append(words)
            return b"+OK\r\n"
        if isinstance(view, str):
            return f"-{view}\r\n".encode()
        (host, port), epoch = view
        if words[1] == b"GET-MASTER-ADDR-BY-NAME":
            return bulks(host, port)
        if words[1] == b"MASTER":
            return bulks("name", "m", "ip", "old", "config-epoch", epoch)
        return bulks(*(bulks("ip", host, "port", port) for host, port in self.others.get(me, [])))
