"""The numbered messages that a channel client receives, and the announced gaps."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tangram.channels.frames import SocketMessage
from tangram.client import Channel

__all__ = ["MessageLog", "rank_messages"]


def rank_messages(messages: Iterable[tuple[int, int]], sent: Iterable[int]) -> list[tuple[int, int]]:
    """Replace the numbers of messages by their ranks among the known ones.

    A message that Redis did not surely take (it is not in ``sent``) may be missing, and may be there:
    without it the ranks have no gap.
    """
    heard = list(messages)
    place = {number: at for at, number in enumerate(sorted({*sent, *(one for one, _ in heard)}))}
    return [(place[number], announced) for number, announced in heard]


class MessageLog:
    """Records the numbered messages of a channel, for the invariant ``messages_in_order``.

    It records them where the client receives them, and not where a test iterates over the channel: a
    later reader cannot tell whether a message came before or after an announced gap.
    """

    def __init__(self, channel: Channel, *, base: int = 0) -> None:
        self.messages: list[tuple[int, int]] = []
        """Number of each message (``n`` of its payload), and how many gaps had been announced by then.

        The loss of the connection or the membership announces a gap, and so does each later join. A
        ``phx_error`` is such a loss, although messages go on until the next join.
        """
        self._announced = base
        self._take, self._lost, self._join_once = channel.take, channel.lost, channel.join_once
        channel.take = self._record  # type: ignore[method-assign]
        channel.lost = self._note_loss  # type: ignore[method-assign]
        channel.join_once = self._note_join  # type: ignore[method-assign]

    def _record(self, message: SocketMessage) -> None:
        if message.event == "n" and not message.binary:
            payload = msgspec.json.decode(message.payload)
            if isinstance(payload, dict) and isinstance(payload.get("n"), int):
                self.messages.append((payload["n"], self._announced))
        self._take(message)

    def _note_loss(self) -> None:
        """Count the announced gap at the loss, before any message of the next membership.

        A count of joins would be late: the reply to a join and the first messages after it may arrive in one
        read, and are recorded before the task that joins runs again.
        """
        self._announced += 1
        self._lost()

    async def _note_join(self) -> None:
        """Count a join when it is sent: one that is refused ends the membership without a loss."""
        self._announced += 1
        await self._join_once()
