"""The publisher connection: one pipeline, in order, bounded.

What is promised:

1. Messages reach Redis in the order in which they were handed over; their answers come back in that order
   too, so the oldest open call is the one that an answer belongs to.
2. What was handed over during one pass of the scheduler goes out in one write.
3. A message is sent at most once. What was written but not answered when the connection broke is reported
   as BrokerUnavailable, and may or may not have been delivered: sending it again could deliver it twice.
4. What was not yet written waits for the next connection, for `BRIDGE` seconds of an outage. Longer outages
   are told at once: whoever waits gets BrokerUnavailable, and so does every new call until Redis is back.
5. Messages that are open, written or not, take at most *max_buffer* bytes; one of any size is taken when
   there is no other. `publish` waits for its turn, first come first served; what is handed over beyond that
   without waiting is refused; who can let others wait asks `congested` before that.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import structlog
import trio

from tangram.bus.reconnect import Keeper
from tangram.bus.resp import Dial, Link, dial, pack, refusal
from tangram.errors import BrokerUnavailable
from tangram.redis_url import RedisAddress

__all__ = ["Done", "DoneAll", "Publisher"]

log = structlog.get_logger("tangram.bus")

T = TypeVar("T")

Done = Callable[[int | BrokerUnavailable], None]
DoneAll = Callable[[Mapping[int, BrokerUnavailable]], None]
"""Hears which of the messages that were handed over together failed, by their position; empty: none."""

MAX_BUFFER = 8 * 1024 * 1024
"""Bytes of open messages: some 30,000 messages of 200 bytes."""

BRIDGE = 2.0
"""Seconds of an outage that are bridged: a broker's restart or a failover by hand. A browser gives up on a
push after 10."""

SEND_LIMIT = 256 * 1024
"""Bytes of one write. What is in a write when the connection breaks is lost to rule 3, so a long queue goes
out in pieces."""

PUBLISH_TIMEOUT = 5.0
"""Seconds for an answer: longer than a hanging connection takes to be noticed while messages are under way.
"""

MAX_HEADS: Final = 1024
"""Channels whose part of the command is kept; forgotten all at once when there are more."""

FLUSH_TIMEOUT = 0.5
"""Seconds at a stop for what is still open: whoever stops after us said goodbye through us."""


class _Call:
    """What was handed over together: its bytes, how many answers it gets, and those it has."""

    __slots__ = ("answers", "count", "data", "done", "done_all", "size")

    def __init__(
        self, data: bytes, count: int = 1, done: Done | None = None, done_all: DoneAll | None = None
    ) -> None:
        self.data = data
        self.size = len(data)
        self.count = count
        self.answers: list[Any] = []
        self.done = done
        self.done_all = done_all


class Publisher:
    """Keeps the publisher connection to *address*."""

    def __init__(
        self,
        address: RedisAddress,
        *,
        on_up: Callable[[], None] = lambda: None,
        dial: Dial = dial,
        rng: random.Random | None = None,
        max_buffer: int = MAX_BUFFER,
        bridge: float = BRIDGE,
        name: str = "publisher",
    ) -> None:
        self.keeper = Keeper(address, name=name, dial=dial, rng=rng)
        self.published = 0
        self.failed = 0
        self.open_bytes = 0
        self._max_buffer = max_buffer
        self._bridge = bridge
        self._on_up = on_up
        self._unsent: deque[_Call] = deque()
        self._sent: deque[_Call] = deque()
        self._heads: dict[str, bytes] = {}
        self._writable = trio.lowlevel.ParkingLot()
        self._uncongested = trio.lowlevel.ParkingLot()
        self._turn = trio.Lock()
        self._settled = trio.lowlevel.ParkingLot()
        self._drained = trio.lowlevel.ParkingLot()
        self._up = trio.Event()
        self._down = trio.Event()
        self._hope = trio.Event()
        self._away = ""
        self._closed = False

    @property
    def up(self) -> bool:
        return self._up.is_set()

    def publish_nowait(self, channel: str | bytes, payload: bytes | str, done: Done | None = None) -> None:
        """Send *payload* to *channel*; *done* gets the number of receivers, or why it failed.

        *done* is called later, from the bus's task; or before this returns, when the message cannot be
        taken. It must not block or raise.

        Raises:
            BrokerUnavailable: the bus is closed for good.
        """
        self._hand_over(_Call(pack((b"PUBLISH", channel, payload)), 1, done))

    def publish_all_nowait(self, messages: Sequence[tuple[str, bytes]], done: DoneAll | None = None) -> None:
        """Send all of *messages*, ``(channel, payload)``, in order; they are taken together or not at all.

        *done* is told once, when the last is answered, which of them failed; as in `publish_nowait`, it may
        be called before this returns, and must not block or raise.

        Raises:
            BrokerUnavailable: the bus is closed for good.
        """
        heads = self._heads
        parts: list[bytes] = []
        for channel, payload in messages:
            head = heads.get(channel) or self._learn(channel)
            parts.append(b"%b%d\r\n%b\r\n" % (head, len(payload), payload))
        if parts:
            self._hand_over(_Call(b"".join(parts), len(parts), None, done))

    def _learn(self, channel: str) -> bytes:
        """All of a PUBLISH to *channel* that stands before the payload's length."""
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        name = channel.encode()
        head = self._heads[channel] = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$" % (len(name), name)
        return head

    def _hand_over(self, call: _Call) -> None:
        if self._away or self._closed or not self._fits(call):
            self._refuse(call)
            return
        self.open_bytes += call.size
        self._unsent.append(call)
        if self._writable:
            self._writable.unpark()

    def _fits(self, call: _Call) -> bool:
        return not self.open_bytes or self.open_bytes + call.size <= self._max_buffer

    async def publish(
        self, channel: str | bytes, payload: bytes | str, *, timeout: float = PUBLISH_TIMEOUT
    ) -> int:
        """Send *payload* to *channel* and wait for the answer: how many subscribers got it.

        Where the buffer is full, its turn is waited for first, within the same *timeout*. Cancelling ends the
        wait, not the message: it may still go out.

        Raises:
            BrokerUnavailable: Redis is away, or does not answer within *timeout* seconds.
            BrokerRefused: it says no.
        """
        answer: list[int | BrokerUnavailable] = []
        answered = trio.Event()

        def done(result: int | BrokerUnavailable) -> None:
            answer.append(result)
            answered.set()

        call = _Call(pack((b"PUBLISH", channel, payload)), 1, done)
        handed_over = False
        with trio.move_on_after(timeout):
            await self._queue(call)
            handed_over = True
            await answered.wait()
        if not answer and not handed_over:
            self._refuse(call, f"no room within {timeout:g} s: ")
        if not answer:
            cause = f": {self.keeper.cause}" if self.keeper.cause and not self.up else ""
            raise BrokerUnavailable(f"redis did not answer a publish within {timeout:g} s{cause}")
        if isinstance(answer[0], BrokerUnavailable):
            raise answer[0]
        return answer[0]

    async def _queue(self, call: _Call) -> None:
        """Hand *call* over once there is room for it, after whoever waited before."""
        if not self._turn.locked() and self._decided(call):
            self._hand_over(call)
            return
        async with self._turn:
            while not self._decided(call):
                await self._settled.park()
            self._hand_over(call)

    def _decided(self, call: _Call) -> bool:
        """Whether waiting for room would change nothing: there is some, or there is no Redis to make it."""
        return bool(self._away) or self._closed or self._fits(call)

    @property
    def congested(self) -> bool:
        """Whether more than half of *max_buffer* is open: a caller that can wait should."""
        return self.open_bytes > self._max_buffer // 2

    async def wait_uncongested(self) -> None:
        """Wait until Redis has answered, or until the outage is too long to be bridged."""
        if not self.congested:
            await trio.lowlevel.checkpoint()
        # Nothing may come between the last look and the caller: all who wait are woken together, and each of
        # them takes some of the room.
        while self.congested:
            await self._uncongested.park()

    def hope(self) -> None:
        """Redis was just seen alive: dial now, and bridge again what comes until the dial is through."""
        self._away = ""
        self._hope.set()
        self.keeper.hurry()

    async def run(self) -> None:
        """Keep the connection until cancelled; then what is open has `FLUSH_TIMEOUT` to be answered."""
        stop = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._work, stop)
                try:
                    await trio.sleep_forever()
                finally:
                    stop.set()
        finally:
            self._closed = True
            self._fail_sent(
                "the bus was stopped before redis answered; the message may or may not have been delivered"
            )
            self._fail_unsent("the bus was stopped")

    async def _work(self, stop: trio.Event) -> None:
        # Shielded so that a stop can flush first: it ends by `stop`, which the cancelled task above sets,
        # plus FLUSH_TIMEOUT.
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.keeper.run, self._session)
                nursery.start_soon(self._expire)
                await stop.wait()
                self._closed = True
                with trio.move_on_after(FLUSH_TIMEOUT):
                    while self.up and (self._unsent or self._sent):
                        await self._drained.park()
                nursery.cancel_scope.cancel()

    async def _expire(self) -> None:
        """Tell whoever waits when an outage is longer than what is bridged."""
        while True:
            with trio.move_on_after(self._bridge):
                await self._up.wait()
            if self._up.is_set():
                await self._down.wait()
                continue
            self._away = f"redis is away: {self.keeper.cause or 'no answer yet'}"
            self._fail_unsent(self._away)
            self._hope = trio.Event()
            await self._hope.wait()

    async def _session(self, link: Link) -> None:
        self.keeper.established()
        self._on_up()
        self.hope()
        self._down = trio.Event()
        self._up.set()
        try:
            await link.share(self._read, self._write, self._watch)
        finally:
            self._up = trio.Event()
            self._down.set()
            why = f"the connection to redis broke ({link.cause or 'stopped'}) before it answered"
            self._fail_sent(f"{why}; the message may or may not have been delivered, and is not sent twice")
            self._drained.unpark_all()

    async def _write(self, link: Link) -> None:
        while True:
            while not self._unsent:
                await self._writable.park()
            batch: list[bytes] = []
            size = 0
            while self._unsent and size < SEND_LIMIT:
                call = self._unsent.popleft()
                self._sent.append(call)
                batch.append(call.data)
                size += call.size
            await link.stream.send_all(batch[0] if len(batch) == 1 else b"".join(batch))

    async def _read(self, link: Link) -> None:
        gets = link.reader.gets
        sent = self._sent
        while True:
            await link.receive()
            while (reply := gets()) is not False:
                if not sent:
                    raise BrokerUnavailable(f"redis said {reply!r} out of turn")
                call = sent[0]
                call.answers.append(reply)
                if len(call.answers) == call.count:
                    sent.popleft()
                    self._settle(call)
            if self._drained:
                self._drained.unpark_all()

    async def _watch(self, link: Link) -> None:
        await link.watch(self._ping)

    def _ping(self) -> None:
        # With messages under way, their answers are the sign of life, and this one would only wait behind
        # them.
        if not self._sent and not self._unsent:
            call = _Call(pack((b"PING",)), 1, _pong)
            self.open_bytes += call.size
            self._unsent.append(call)
            self._writable.unpark()

    def _settle(self, call: _Call, rest: str = "") -> None:
        """Tell what became of a call that is over; messages without an answer failed because of *rest*."""
        self.open_bytes -= call.size
        if self._uncongested and not self.congested:
            self._uncongested.unpark_all()
        if self._settled:
            self._settled.unpark_all()
        if call.done is _pong:
            return
        answers = call.answers
        taken = sum([type(answer) is int for answer in answers])
        self.published += taken
        if taken == call.count:
            if call.done_all is not None:
                self._tell(call.done_all, {})
            elif call.done is not None:
                self._tell(call.done, answers[0])
            return
        failures = {
            at: refusal("the publish", answer) for at, answer in enumerate(answers) if type(answer) is not int
        }
        failures |= {at: BrokerUnavailable(rest) for at in range(len(answers), call.count)}
        self._fail(call, failures)

    def _refuse(self, call: _Call, why: str = "") -> None:
        if self._closed:
            raise BrokerUnavailable("the bus is closed")
        full = f"{why}{self.open_bytes} bytes wait for redis already, at most {self._max_buffer} may"
        error = BrokerUnavailable(self._away or full)
        self._fail(call, dict.fromkeys(range(call.count), error))

    def _fail_sent(self, why: str) -> None:
        while self._sent:
            self._settle(self._sent.popleft(), why)

    def _fail_unsent(self, why: str) -> None:
        while self._unsent:
            self._settle(self._unsent.popleft(), why)

    def _fail(self, call: _Call, failures: Mapping[int, BrokerUnavailable]) -> None:
        self.failed += len(failures)
        if call.done_all is not None:
            self._tell(call.done_all, failures)
        elif call.done is not None:
            self._tell(call.done, failures[0])
        else:
            log.debug(
                "nobody waits for what was not published", causes=[str(one) for one in failures.values()]
            )

    def _tell(self, done: Callable[[T], None], outcome: T) -> None:
        try:
            done(outcome)
        except Exception as exc:
            # One caller's bug must not cost the others their answers.
            log.exception("a publisher's callback raised", cause=repr(exc))


def _pong(_result: object) -> None:
    """Who gets the answer to a ping: that it came is all."""
