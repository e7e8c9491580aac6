"""The numbered messages that a channel client gets, and where it was told that some may be missing."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tangram.channels.frames import ERROR, SocketMessage
from tangram.client import Channel

__all__ = ["MessageLog", "rank_messages"]


def rank_messages(messages: Iterable[tuple[int, int]], sent: Iterable[int]) -> list[tuple[int, int]]:
    """Messages with their places in place of their numbers: one that Redis did not surely take (it is not in
    ``sent``) may be missing, and may be there.
    """
    heard = list(messages)
    place = {number: at for at, number in enumerate(sorted({*sent, *(one for one, _ in heard)}))}
    return [(place[number], announced) for number, announced in heard]


class MessageLog:
    """Listens to a channel from now on, for the invariant ``messages_in_order``.

    Told at the client's own door and not by who iterates over the channel: whoever reads later cannot tell a
    message from before an announcement from one after it.
    """

    def __init__(self, channel: Channel, *, base: int = 0) -> None:
        self.messages: list[tuple[int, int]] = []
        """The number (``n`` of its payload) of each message, and how many gaps had been announced by then:
        each join is one, and so is each ``phx_error``, after which messages go on until the next join."""
        self._channel = channel
        self._announced = base
        self._take = channel.take
        channel.take = self._hear  # type: ignore[method-assign]

    def _hear(self, message: SocketMessage) -> None:
        if message.event == ERROR:
            self._announced += 1
        elif message.event == "n" and not message.binary:
            payload = msgspec.json.decode(message.payload)
            if isinstance(payload, dict) and isinstance(payload.get("n"), int):
                self.messages.append((payload["n"], self._announced + self._channel.joins))
        self._take(message)
