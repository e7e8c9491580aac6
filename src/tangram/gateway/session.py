"""One connection for its transport, and the owner that it needs.

A transport feeds the frames of each read, empties the outbox, and calls ``gone`` at the end. Everything here
is synchronous except the waits for the bus and for a turn: one step handles frames of bounded cost, and the
rest of a read is handled in turns with other clients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

import trio

from tangram.channels.codec import MAX_AT_ONCE
from tangram.channels.disconnects import TOO_BIG
from tangram.channels.frames import FrameError, ReplyTo
from tangram.channels.hub import Hub
from tangram.channels.json_text import check_slices
from tangram.channels.outbox import Outbox
from tangram.channels.policy import ConnectInfo
from tangram.channels.socket import Authorize, Effect, Publish, Socket, SocketCounters
from tangram.gateway.publishing import Batch
from tangram.gateway.pushes import DeclaredPushes, SessionPushes
from tangram.gateway.settings import ChannelSettings
from tangram.pieces import Pieces, encode_slices, join_in_steps
from tangram.turns import ClientTurns, Turns

__all__ = ["Frame", "Session", "SessionOwner", "TransportSocket"]


Frame = tuple[int, bytes | str | Pieces]
"""Opcode and payload."""


class TransportSocket(Protocol):
    """A socket that can be asked for its options."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


STEP_FRAMES: Final = 300
"""Small pushes that one step handles: about a millisecond. Other frames count as several of them."""

CHEAP: Final = 255
"""Bytes of a frame that counts once; others count once more for each 256 bytes, because JSON that is made to
be slow to check takes 20 µs for so many.
"""

OTHER_COST: Final = 50
"""How often a frame counts in addition if it is no push: a join takes 0.1 ms, with its token and presence."""


class SessionOwner(Protocol):
    """The part of ``Channels`` that a session calls."""

    settings: ChannelSettings
    hub: Hub
    ended: bool
    turns: Turns
    """The turns for frames that cost more than one step."""
    declared: DeclaredPushes | None
    """The handlers of pushes; None if no plugin has declared any."""
    counters: SocketCounters

    @property
    def congested(self) -> bool: ...
    async def wait_uncongested(self) -> None: ...
    def publish_batch(self, batch: Batch) -> None: ...
    def authorize(self, session: Session, request: Authorize) -> None: ...
    def note_malformed(self, session: Session, error: FrameError) -> None: ...
    def presence_changed(self) -> None: ...
    def disconnected(self, session: Session) -> None: ...


class Session:
    """One connection, between its transport and the channels."""

    __slots__ = (
        "_cheap",
        "_checked",
        "_now",
        "_owner",
        "_small",
        "_unfinished",
        "began",
        "conn",
        "info",
        "last_seen",
        "outbox",
        "pushes",
        "socket",
        "transport",
        "turns",
        "user_token",
    )

    def __init__(
        self, owner: SessionOwner, conn: str, info: ConnectInfo, user_token: str | None, outbox: Outbox
    ) -> None:
        self._owner = owner
        self.conn = conn
        self.info = info
        self.user_token = user_token
        self.outbox = outbox
        self.turns: ClientTurns = owner.turns.client(lambda: info.address)
        """The turns of this client."""
        self._now = trio.lowlevel.current_clock().current_time
        self.began = self.last_seen = self._now()
        self.transport: TransportSocket | None = None
        """The TCP socket under the connection, if there is one: it knows the round-trip time."""
        self.pushes: SessionPushes | None = None
        """The pushes that wait for handlers, once there was one."""
        self._unfinished: Sequence[Frame] = ()
        self._checked: Callable[[], Sequence[Effect]] | None = None
        """Handles the first unfinished frame, if it is large and ``prepare`` has checked it."""
        settings = owner.settings
        self._small = min(settings.max_unjoined, settings.max_message)
        self._cheap = min(CHEAP, self._small)
        self.socket = Socket(
            conn,
            owner.hub,
            outbox,
            max_joins=settings.max_joins,
            push_replies=settings.push_replies,
            counters=owner.counters,
        )

    def feed(self, frames: Sequence[Frame]) -> None:
        """Handle the frames of one read; no bytes of a client raise here.

        If this leaves the session ``unfinished``, the transport must call ``prepare`` and ``resume``, or
        ``finish``, before it feeds more.

        Args:
            frames: pairs of opcode and payload; the payload of a text frame may be bytes or str, and that of
                a large frame may be in pieces.
        """
        now = self.last_seen = self._now()
        owner, outbox, machine = self._owner, self.outbox, self.socket
        push, replying, decode = machine.push, machine.push_replies, outbox.serializer.decode
        cheap, declared = self._cheap, owner.declared
        batch = Batch(machine)
        limit = STEP_FRAMES
        try:
            for at, (opcode, data) in enumerate(frames):
                if outbox.disconnect is not None or owner.ended:
                    break
                if at >= limit:
                    self._unfinished = frames[at:]
                    break
                if len(data) > cheap:
                    limit -= len(data) >> 8
                    if len(data) > self._small and len(data) > self.max_message:
                        outbox.close(TOO_BIG)
                        break
                    if len(data) > MAX_AT_ONCE or isinstance(data, Pieces):
                        self._unfinished = frames[at:]
                        break
                try:
                    message = decode(opcode, data)  # type: ignore[arg-type]  # pieces are large
                except FrameError as error:
                    limit -= OTHER_COST
                    owner.note_malformed(self, error)
                    self._carry_out(machine.malformed(now, error.reply_to), batch)
                    continue
                channel = push(message)
                if channel is None:
                    limit -= OTHER_COST
                    machine.allowance.earn(len(data))
                    batch = self._carry_out(machine.receive(message), batch)
                    continue
                batch.messages.append((channel, message.payload))
                if declared is not None and (found := declared.find(message.topic, message.event)):
                    batch.replies.append(None)
                    declared.accept(self, found, message)
                else:
                    batch.replies.append(message if replying else None)
        finally:
            owner.publish_batch(batch)

    @property
    def max_message(self) -> int:
        """The bytes of the largest frame that is taken now: few before the first join."""
        settings = self._owner.settings
        return (
            settings.max_message if self.socket.joined else min(settings.max_unjoined, settings.max_message)
        )

    @property
    def unfinished(self) -> bool:
        """Whether the last ``feed`` or ``resume`` has left frames for the next turn."""
        return bool(self._unfinished)

    async def finish(self) -> None:
        """Handle the frames that the last ``feed`` has left, in turns with other clients."""
        while self._unfinished:
            await self.prepare()
            self.resume()

    async def prepare(self) -> None:
        """Wait for a turn, and check the first unfinished frame if it is large."""
        await self.wait_turn()
        opcode, data = self._unfinished[0]
        if not self._ended and len(data) > MAX_AT_ONCE:
            self._checked = await self._check_large(opcode, data)
            if self.congested:
                await self.wait_uncongested()

    async def wait_turn(self) -> None:
        """Wait for a turn in which the bus takes pushes.

        No ``await`` may stand before the step that follows: a push that finds the bus full is refused.
        """
        await self.turns.wait()
        while self.congested:
            await self.wait_uncongested()
            await self.turns.wait()

    def resume(self) -> None:
        """Handle the frames for which ``prepare`` has waited; some may be left for another turn."""
        frames, self._unfinished = self._unfinished, ()
        checked, self._checked = self._checked, None
        if checked is not None:
            if not self._ended:
                self.carry_out(checked())
            frames = frames[1:]
        self.feed(frames)

    async def _check_large(self, opcode: int, data: bytes | str | Pieces) -> Callable[[], Sequence[Effect]]:
        """Check a large frame in slices, and return the call that handles it."""
        frame = await self._in_pieces(data)
        reply_to: ReplyTo | None = None
        try:
            header, payload = self.outbox.serializer.decode_large(opcode, frame)
            reply_to = None if header.ref is None else ReplyTo(*header[:3])
            effects = self.socket.refuse_large(header)
            if effects is not None:
                return partial(list[Effect], effects)
            if not header.binary:
                await _check(payload, self.turns)
        except FrameError as error:
            self._owner.note_malformed(self, error)
            return partial(self.socket.malformed, trio.current_time(), error.reply_to or reply_to)
        declared = self._owner.declared
        if declared is not None and declared.find(header.topic, header.event):
            payload = Pieces([await join_in_steps(payload, self.turns.wait)])  # a parser needs one piece
        return partial(self.socket.receive_large, header, payload)

    async def _in_pieces(self, data: bytes | str | Pieces) -> Pieces:
        if isinstance(data, Pieces):
            return data
        if isinstance(data, bytes):
            return Pieces([data])
        pieces = []
        for piece in encode_slices(data):
            pieces.append(piece)
            await self.turns.wait()
        return Pieces(pieces)

    @property
    def _ended(self) -> bool:
        return self.outbox.disconnect is not None or self._owner.ended

    def alive(self) -> None:
        """Note that the client is still there, although it sent no message (a pong)."""
        self.last_seen = trio.current_time()

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Carry out effects of the socket machine."""
        self._owner.publish_batch(self._carry_out(effects, Batch(self.socket)))

    def _carry_out(self, effects: Sequence[Effect], batch: Batch) -> Batch:
        """Carry out effects, and return the batch for the publications that follow.

        An effect that may publish for itself comes after the publications before it: the batch is handed
        over first, and a new one begins. Pushes do not come here, and change no presence.
        """
        self._owner.presence_changed()
        for effect in effects:
            if isinstance(effect, Publish):
                batch.messages.append((effect.channel, effect.payload))
                batch.replies.append(None if self._is_handled(effect) else effect.reply)
            elif isinstance(effect, Authorize):
                self._owner.publish_batch(batch)
                batch = Batch(self.socket)
                self._owner.authorize(self, effect)
            else:
                self.outbox.close(effect)
        return batch

    def _is_handled(self, effect: Publish) -> bool:
        """Hand a push to the handler that is declared for it; return False if there is none."""
        push, declared = effect.push, self._owner.declared
        if push is None or declared is None:
            return False
        found = declared.find(push.topic, push.event)
        if found is not None:
            payload = effect.payload
            if not isinstance(payload, bytes):
                push = push._replace(payload=bytes(payload))
            declared.accept(self, found, push)
        return found is not None

    @property
    def congested(self) -> bool:
        """Whether a transport should ``wait_uncongested`` before it reads more."""
        return self._owner.congested or (self.pushes is not None and self.pushes.full)

    async def wait_uncongested(self) -> None:
        """Return when the bus and the handlers of this client's pushes take more.

        Meanwhile nothing is read, so that the client's own buffers fill and it slows down.
        """
        await self._owner.wait_uncongested()
        if self.pushes is not None:
            await self.pushes.wait_room()

    def gone(self) -> None:
        """Leave all topics after the end of the connection; a second call does nothing."""
        self._owner.disconnected(self)


async def _check(payload: Pieces, turns: ClientTurns) -> None:
    """Check the payload of a large text frame; raises FrameError."""
    checking = check_slices(payload)
    while True:
        await turns.wait()
        try:
            next(checking)
        except StopIteration as checked:
            if not checked.value:
                raise FrameError("the payload of a large frame is not JSON") from None
            return
