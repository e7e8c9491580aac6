"""The numbered messages that channel clients receive, and the announced gaps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from tangram.channels.frames import SocketMessage
from tangram.client import Channel

__all__ = ["KeptLog", "KeptMessage", "MessageLog", "rank_messages"]


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
        if (number := _number_of(message)) is not None:
            self.messages.append((number, self._announced))
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


class KeptMessage(NamedTuple):
    """A numbered message of a topic with a history, as a client that recovers received it."""

    number: int
    """Its number, or its rank among the numbers that Redis took."""
    join: int
    """The number of the join behind which it came."""
    told: int
    """How many joins until then had said that messages were missed."""


class KeptLog:
    """Records the messages of a topic with a history, for ``nothing_missed``.

    One log may follow several channels, one after another, of which each begins at the last one's position.
    """

    def __init__(self) -> None:
        self.messages: list[tuple[int, int]] = []
        """Number of each message, and the join behind which it came."""
        self.recovered = 0
        """How many joins missed nothing."""
        self.told = 0
        """How many joins with a position said that messages were missed."""
        self.position = ""
        """The last position that the client has seen."""
        self._outcomes: dict[int, bool] = {}
        """Whether each join that was answered missed nothing."""
        self._joins = 0

    def follow(self, channel: Channel) -> None:
        """Record a channel that has just joined from ``position``."""
        take, join_once = channel.take, channel.join_once
        self._joins += 1
        self._note_joined(channel, self._joins)
        for event in channel._events:  # noqa: SLF001 - the messages that came in one read with the reply
            if event.name == "n":
                self.messages.append((event.payload["n"], self._joins))

        def record(message: SocketMessage) -> None:
            take(message)
            if (number := _number_of(message)) is not None:
                self.messages.append((number, self._joins))
            self.position = channel.position or self.position

        async def join() -> None:
            # The first messages may arrive in one read with the reply, before the task that joins runs
            # again. So they are counted for the join that was sent, and its reply is noted later.
            self._joins += 1
            number = self._joins
            await join_once()
            self._note_joined(channel, number)

        channel.take = record  # type: ignore[method-assign]
        channel.join_once = join  # type: ignore[method-assign]

    def _note_joined(self, channel: Channel, number: int) -> None:
        self.position = channel.position or self.position
        self._outcomes[number] = bool(channel.recovered)
        self.recovered += bool(channel.recovered)
        self.told += channel.reason is not None

    def evidence(self, sent: Iterable[int]) -> Sequence[KeptMessage]:
        """Return the messages with their ranks; see ``rank_messages``."""
        # A connection may end between the messages of a join and the task that would read the reply.
        joins = self._outcomes.keys() | {join for _, join in self.messages}
        gaps = [join for join in joins if not self._outcomes.get(join, False)]
        return [
            KeptMessage(rank, join, sum(gap <= join for gap in gaps))
            for rank, join in rank_messages(self.messages, sent)
        ]


def _number_of(message: SocketMessage) -> int | None:
    """Return the number of a message: ``n`` of its payload; None for other messages."""
    if message.event != "n" or message.binary:
        return None
    payload = msgspec.json.decode(message.payload)
    number = payload.get("n") if isinstance(payload, dict) else None
    return number if isinstance(number, int) else None
