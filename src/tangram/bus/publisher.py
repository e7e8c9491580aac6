"""The publisher connection: one pipeline, in order, bounded.

Its guarantees:

1. Messages reach Redis in the order of the calls. Answers come back in the same order, so an answer belongs
   to the oldest open call.
2. All messages of one pass of Trio's scheduler, or of one over the sockets of clients, go out in one write.
3. A message is sent at most once. If the connection breaks before its answer, the call fails with
   ``BrokerUnavailable`` and the message may or may not have been delivered; a repetition could deliver it
   twice.
4. Messages that were not written yet wait for the next connection, for ``BRIDGE`` seconds of an outage. After
   that, waiting calls and every new call fail with ``BrokerUnavailable`` until Redis is back.
5. Open messages, written or not, take at most ``max_buffer`` bytes; a single one of any size is accepted.
   ``publish`` waits for room, in order of the calls. ``publish_nowait`` fails without room. A caller that can
   slow down its clients looks at ``congested`` first.
6. Answers to batches alone are read with pauses of ``ANSWER_PAUSE`` at high rates: their replies to clients
   may wait. A caller that waits for its own answer ends the pause.
7. ``call_now`` writes in the pass of its caller, and ``read_now`` reads the answer in the pass of a later
   call. So a caller that looks at its own times costs no pass of the scheduler. The reader leaves the socket
   to it for ``PATIENCE`` after each such answer.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import hiredis
import structlog
import trio

from tangram.bus.reconnect import Reconnector
from tangram.bus.resp import CONNECT_TIMEOUT, LOST, RECEIVE_SIZE, Dial, Link, dial, pack, refusal
from tangram.bus.scripts import FunctionCall, LoadFunctions, Prefixes, Words, pack_head, require_functions
from tangram.errors import BrokerUnavailable
from tangram.pauses import RatePause
from tangram.pieces import LARGE, Pieces
from tangram.primary.answers import is_moved
from tangram.redis_url import RedisAddress

__all__ = ["Done", "DoneAll", "Publisher"]

log = structlog.get_logger("tangram.bus")

T = TypeVar("T")

Done = Callable[[Any], None]
"""Gets the number of receivers, or the error."""
DoneAll = Callable[[Mapping[int, BrokerUnavailable]], None]
"""Gets the failures among messages that were published together, by position; empty if none failed."""

MAX_BUFFER: Final = 8 * 1024 * 1024
"""Bytes of open messages: some 30,000 messages of 200 bytes."""

BRIDGE: Final = 2.0
"""Seconds of an outage during which messages wait: a restart or a manual failover takes less. A browser
gives up on a push after 10 s.
"""

SEND_LIMIT: Final = 256 * 1024
"""Bytes of one write. All messages of a write may be lost with the connection (guarantee 3), so a long
queue goes out in pieces.
"""

PUBLISH_TIMEOUT: Final = 5.0
"""Seconds for an answer. A hanging connection is noticed earlier, so that the error names the cause."""

MAX_HEADS: Final = 1024
"""Channels whose encoded part of the command is cached; the cache is cleared when it is full."""

ANSWER_PAUSE: Final = 0.004
"""Seconds in which answers gather, if several would come in that time."""

PATIENCE: Final = 0.25
"""Seconds for which answers to ``call_now`` are left to ``read_now``: several looks of the recorder."""

FLUSH_TIMEOUT: Final = 0.5
"""Seconds at a stop for open messages to be answered, for example the last messages of plugins."""


class _Call:
    """The messages of one call: their bytes, and the answers so far."""

    __slots__ = ("answers", "count", "data", "done", "done_all", "function", "patient", "size")

    def __init__(
        self,
        data: bytes | Pieces,
        count: int = 1,
        done: Done | None = None,
        done_all: DoneAll | None = None,
        function: FunctionCall | None = None,
    ) -> None:
        self.data = data
        self.patient = False
        """Whether its answer may wait for ``read_now``."""
        self.function = function
        """Set for a call of a function on Redis; ``data`` is then the end of the command."""
        self.size = len(data)
        self.count = count
        self.answers: list[Any] = []
        self.done = done
        self.done_all = done_all


class Publisher:
    """The publisher connection, opened again after each loss.

    Args:
        address: the address of Redis.
        on_up: called when the connection is open.
        dial: opens a connection.
        rng: the source of the back-off's jitter.
        max_buffer: bytes of open messages (guarantee 5).
        bridge: seconds of an outage during which messages wait (guarantee 4).
        name: the name of the connection in log lines.
        load: loads the functions for ``call`` on each new connection.
    """

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
        load: LoadFunctions | None = None,
    ) -> None:
        self.connection = Reconnector(address, name=name, dial=dial, rng=rng)
        self.published = 0
        """Messages that Redis has accepted."""
        self.failed = 0
        """Messages that failed, or may have."""
        self.open_bytes = 0
        """Bytes of open messages."""
        self._max_buffer = max_buffer
        self._bridge = bridge
        self._on_up = on_up
        self._load = load
        self._prefixes: Prefixes = {}
        self._unsent: deque[_Call] = deque()
        self._sent: deque[_Call] = deque()
        self._heads: dict[str, bytes] = {}
        self._link: Link | None = None
        self._rest = b""
        """The bytes of written calls that the socket has not taken yet."""
        self._large: Pieces | None = None
        """The large call whose pieces are being written, up to ``_large_at``."""
        self._large_at = 0
        self._flushing = False
        """Whether ``_flush`` is called at the end of this pass."""
        self._awaited = 0
        """Open calls of one message or function, whose callers wait for the answer."""
        self._patient = False
        """Whether a patient call was answered since the reader's last look."""
        self._failure: Exception | None = None
        """The error of ``read_now``, with which the reader ends the connection."""
        self._pausing = False
        self._hurry = trio.lowlevel.ParkingLot()
        self._answer_pause = RatePause(ANSWER_PAUSE)
        self._writable = trio.lowlevel.ParkingLot()
        self._idle = False
        """Whether the writer's task waits in ``_writable``."""
        self._waiting = 0
        """Tasks that wait for answers in one of the lots below."""
        self._uncongested = trio.lowlevel.ParkingLot()
        self._turn = trio.Lock()
        self._answered = trio.lowlevel.ParkingLot()
        self._drained = trio.lowlevel.ParkingLot()
        self._up = trio.Event()
        self._down = trio.Event()
        self._retried = trio.Event()
        self._away = ""
        self._moved = ""
        """The answer with which Redis said that another one is the primary."""
        self._closed = False

    @property
    def up(self) -> bool:
        """Whether the connection is open."""
        return self._up.is_set()

    def publish_nowait(self, channel: str | bytes, payload: bytes | str, done: Done | None = None) -> None:
        """Send one message without waiting; see ``Bus.publish_nowait``.

        Raises:
            BrokerUnavailable: the bus is closed for good.
        """
        self._enqueue(_Call(pack((b"PUBLISH", channel, payload)), 1, done))

    def publish_all_nowait(
        self, messages: Sequence[tuple[str, bytes | Pieces]], done: DoneAll | None = None
    ) -> None:
        """Send several messages without waiting; see ``Bus.publish_all_nowait``.

        Raises:
            BrokerUnavailable: the bus is closed for good.
        """
        heads = self._heads
        parts: list[bytes | memoryview] = []
        large = False
        for channel, payload in messages:
            head = heads.get(channel) or self._command_head(channel)
            if len(payload) <= LARGE:
                # "%b" asks pieces for their bytes.
                parts.append(b"%b%d\r\n%b\r\n" % (head, len(payload), payload))  # type: ignore[str-format]
            else:
                large = True
                pieces = payload.pieces if isinstance(payload, Pieces) else (payload,)
                parts += (b"%b%d\r\n" % (head, len(payload)), *pieces, b"\r\n")
        if messages:
            data = Pieces(parts) if large else b"".join(parts)
            self._enqueue(_Call(data, len(messages), None, done))

    def call_nowait(self, function: FunctionCall, done: Done) -> None:
        """Call a function on Redis without waiting; see ``Bus.call_nowait``.

        Raises:
            BrokerUnavailable: the bus is closed for good.
        """
        self._enqueue(_Call(function.pack_tail(), 1, done, function=function))

    def call_now(self, function: FunctionCall, done: Done) -> None:
        """Call a function on Redis, and write the call in this pass if nothing is in the way.

        Raises:
            BrokerUnavailable: the bus is closed for good.
        """
        call = _Call(function.pack_tail(), 1, done, function=function)
        call.patient = self._link is not None and self._link.nowait
        self._enqueue(call)

    def _command_head(self, channel: str) -> bytes:
        """Return the bytes of a PUBLISH up to the payload's length, and cache them."""
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        name = channel.encode()
        head = self._heads[channel] = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$" % (len(name), name)
        return head

    def _enqueue(self, call: _Call) -> None:
        if self._away or self._closed or not self._fits(call):
            self._refuse(call)
            return
        self.open_bytes += call.size
        if call.done is not None:
            self._awaited += not call.patient
            if self._pausing and not call.patient:
                self._hurry.unpark_all()
        if call.patient and self._send_now(call):
            return
        self._unsent.append(call)
        if self._idle:
            self._request_write()

    def _wake_writer(self) -> None:
        self._idle = False
        self._writable.unpark()

    def _request_write(self) -> None:
        """Write at the end of this pass over the sockets of clients, or else in the writer's task."""
        link = self._link
        if link is None or link.readiness is None or not link.readiness.in_pass:
            self._wake_writer()
        elif not self._flushing:
            self._flushing = True
            link.readiness.at_end(self._flush)

    def _flush(self) -> None:
        """Write everything at once, unless the writer's task does; it writes the rest."""
        self._flushing = False
        if not self._idle or self._link is None or self._failure is not None:
            return
        data = self._next_write()
        sent = self._link.send_nowait(data)
        if sent < len(data) or self._unsent or self._large is not None:
            self._rest = data[sent:]
            self._wake_writer()

    def _send_now(self, call: _Call) -> bool:
        """Write a call at once, and return whether the socket took any of it.

        The writer sends the rest.
        """
        if self._link is None or self._failure is not None or not self._idle or self._has_calls:
            return False  # the connection ends, or the writer is at work, and has older calls
        assert call.function is not None
        assert isinstance(call.data, bytes)
        data = self._command(call.function, call.data)
        sent = self._link.send_nowait(data)
        if not sent:
            return False
        self._sent.append(call)
        if sent < len(data):
            self._rest = data[sent:]
            self._wake_writer()
        return True

    def _fits(self, call: _Call) -> bool:
        return not self.open_bytes or self.open_bytes + call.size <= self._max_buffer

    async def publish(
        self, channel: str | bytes, payload: bytes | str, *, timeout: float = PUBLISH_TIMEOUT
    ) -> int:
        """Send one message, and return the number of receivers; see ``Bus.publish``.

        Raises:
            BrokerUnavailable: Redis is away, or does not answer within ``timeout`` seconds.
            BrokerRefused: Redis refuses the command.
        """
        result: int = await self._wait_answer(_Call(pack((b"PUBLISH", channel, payload))), timeout)
        return result

    async def probe(self, channel: str) -> None:
        """Send an empty message that is not counted, as a probe of a subscriber connection.

        Raises:
            BrokerUnavailable: Redis is away, or does not answer in time.
            BrokerRefused: Redis refuses the command.
        """
        await self.publish(channel, b"")
        self.published -= 1

    async def call(self, function: FunctionCall, *, timeout: float = PUBLISH_TIMEOUT) -> Any:
        """Call a function on Redis, in order with all messages, and return its answer.

        Raises:
            BrokerUnavailable: Redis is away, or does not answer within ``timeout`` seconds.
            BrokerRefused: Redis refuses the call, or does not have the function.
        """
        return await self._wait_answer(_Call(function.pack_tail(), function=function), timeout)

    async def _wait_answer(self, call: _Call, timeout: float) -> Any:
        answer: list[Any] = []
        answered = trio.Event()

        def done(result: Any) -> None:
            answer.append(result)
            answered.set()

        call.done = done
        queued = False
        with trio.move_on_after(timeout):
            await self._enqueue_in_turn(call)
            queued = True
            await answered.wait()
        if not answer and not queued:
            self._refuse(call, f"no room within {timeout:g} s: ")
        if not answer:
            cause = f": {self.connection.cause}" if self.connection.cause and not self.up else ""
            raise BrokerUnavailable(f"redis did not answer a publish within {timeout:g} s{cause}")
        if isinstance(answer[0], BrokerUnavailable):
            raise answer[0]
        return answer[0]

    async def _enqueue_in_turn(self, call: _Call) -> None:
        """Enqueue a call once there is room for it, after the calls that wait already."""
        if not self._turn.locked() and not self._should_wait(call):
            self._enqueue(call)
            return
        async with self._turn:
            while self._should_wait(call):
                await self._wait_in(self._answered)
            self._enqueue(call)

    def _should_wait(self, call: _Call) -> bool:
        """Return whether the buffer is full and Redis can make room."""
        return not (self._away or self._closed or self._fits(call))

    @property
    def congested(self) -> bool:
        """Whether over half of ``max_buffer`` is in use; a caller that can wait should wait."""
        return self.open_bytes > self._max_buffer // 2

    async def wait_uncongested(self) -> None:
        """Return once ``congested`` is false, after answers of Redis or failures."""
        if not self.congested:
            await trio.lowlevel.checkpoint()
        # All waiting tasks are woken together and each takes some of the room, so there must be no checkpoint
        # between the last look and the caller.
        while self.congested:
            await self._wait_in(self._uncongested)

    async def _wait_in(self, lot: trio.lowlevel.ParkingLot) -> None:
        # Counted, because each answer looks for waiting tasks, and three lots take a tenth of its time.
        self._waiting += 1
        try:
            await lot.park()
        finally:
            self._waiting -= 1

    def retry_now(self) -> None:
        """Dial at once, because another connection has reached Redis.

        New messages wait for this dial instead of failing.
        """
        self._away = ""
        self._retried.set()
        self.connection.retry_now()

    async def run(self) -> None:
        """Send messages until cancelled; then wait up to ``FLUSH_TIMEOUT`` for answers."""
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
        # Shielded, so that a stop can flush first. The bound: ``run`` sets ``stop`` when it is cancelled,
        # and the flush ends after FLUSH_TIMEOUT.
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.connection.run, self._session)
                nursery.start_soon(self._fail_long_outages)
                await stop.wait()
                self._closed = True
                self._hurry.unpark_all()
                with trio.move_on_after(FLUSH_TIMEOUT):
                    while self.up and (self._unsent or self._sent):
                        await self._wait_in(self._drained)
                nursery.cancel_scope.cancel()

    async def _fail_long_outages(self) -> None:
        """Fail the waiting calls when an outage lasts longer than ``bridge``."""
        while True:
            with trio.move_on_after(self._bridge):
                await self._up.wait()
            if self._up.is_set():
                await self._down.wait()
                continue
            self._away = f"redis is away: {self.connection.cause or 'no answer yet'}"
            self._fail_unsent(self._away)
            self._retried = trio.Event()
            await self._retried.wait()

    async def _session(self, link: Link) -> None:
        self._moved, self._rest = "", b""
        self._large, self._large_at = None, 0
        self._patient, self._failure = False, None
        if self._load is not None:
            with trio.move_on_after(CONNECT_TIMEOUT) as limit:
                self._prefixes = await self._load(link)
            if limit.cancelled_caught:
                raise BrokerUnavailable(f"redis did not load the functions within {CONNECT_TIMEOUT:g} s")
        self.connection.established()
        self._on_up()
        self.retry_now()
        self._down = trio.Event()
        self._up.set()
        self._link = link
        try:
            await link.share(self._read, self._write, self._watch)
        finally:
            self._link = None
            self._up = trio.Event()
            self._down.set()
            why = f"the connection to redis broke ({link.cause or 'stopped'}) before it answered"
            self._fail_sent(f"{why}; the message may or may not have been delivered, and is not sent twice")
            self._drained.unpark_all()

    async def _write(self, link: Link) -> None:
        while True:
            while self._failure is not None or not (self._rest or self._has_calls):
                self._idle = True
                try:
                    await self._writable.park()
                finally:
                    self._idle = False
            await link.stream.send_all(self._next_write())

    @property
    def _has_calls(self) -> bool:
        """Whether calls wait to be written, or pieces of one."""
        return bool(self._unsent) or self._large is not None

    def _next_write(self) -> bytes:
        """Return the bytes of the next write: the rest of the last one, and the calls that wait.

        A large call is written in pieces, so that each write takes a bounded time.
        """
        batch = [self._rest] if self._rest else []
        size, self._rest = len(self._rest), b""
        while size < SEND_LIMIT and (self._unsent or self._large is not None):
            if self._large is not None:
                data = self._next_piece(self._large)
            else:
                call = self._unsent.popleft()
                self._sent.append(call)
                if isinstance(call.data, Pieces):
                    self._large = call.data
                    continue
                data = call.data if call.function is None else self._command(call.function, call.data)
            batch.append(data)
            size += len(data)
        return batch[0] if len(batch) == 1 else b"".join(batch)

    def _next_piece(self, large: Pieces) -> bytes:
        piece = large[self._large_at : self._large_at + LARGE]
        self._large_at += len(piece)
        if self._large_at == len(large):
            self._large, self._large_at = None, 0
        return piece

    def words(self, function: FunctionCall) -> Words:
        """Return the command that calls a function, for a client with another connection.

        Raises:
            BrokerUnavailable: no Redis has been reached yet that has the function.
        """
        first = self._prefixes.get(function.function)
        if first is None:
            raise BrokerUnavailable(f"redis has no function {function.function!r} yet")
        return (*first, str(len(function.keys)), *function.keys, *function.arguments)

    def _command(self, function: FunctionCall, tail: bytes) -> bytes:
        """Return the command that calls a function on the Redis of this connection."""
        first = self._prefixes.get(function.function)
        if first is not None:
            return pack_head(first, function.tail_words) + tail
        # Redis answers a command that it does not know with an error, which then is the answer of the call.
        return pack(function.instead or ("FCALL", function.function, "0"))

    async def _read(self, link: Link) -> None:
        while True:
            if self._patient and not self._awaited and not self._closed:
                self._patient = False
                await self._wait_answers(PATIENCE)
                if self._failure is not None:
                    raise self._failure
                continue
            if pause := await link.receive_each(partial(self._take_chunk, link)):
                await self._wait_answers(pause)

    def _take_chunk(self, link: Link, size: int) -> float | None:
        """Take the answers of a chunk; return the seconds to pause before the next one, or None."""
        answered = self._take_answers(link)
        if self._patient and not self._awaited:
            return 0.0  # ``read_now`` takes the next ones
        if link.readiness is not None:
            return None  # answers gather where reads from clients do
        self._answer_pause.count(answered, trio.current_time())
        return ANSWER_PAUSE if self._answer_pause.pays and not self._awaited and size < RECEIVE_SIZE else None

    def _take_answers(self, link: Link) -> int:
        """Finish the calls whose answers are in the reader, and return their number."""
        gets = link.reader.gets
        sent = self._sent
        answered = 0
        while (reply := gets()) is not False:
            if not sent:
                raise BrokerUnavailable(f"redis sent {reply!r}, which answers no command")
            call = sent[0]
            call.answers.append(reply)
            if len(call.answers) == call.count:
                sent.popleft()
                answered += 1
                self._finish(call)
                if call.function is not None:
                    require_functions(reply)
        if self._waiting:
            self._drained.unpark_all()
        if self._moved and link.located:
            raise BrokerUnavailable(f"this redis is not the primary any more: {self._moved}")
        return answered

    def read_now(self) -> None:
        """Take the answers that have arrived, while the reader leaves them to this."""
        if self._link is None or not self._pausing or not self._sent:
            return
        try:
            if self._link.receive_nowait():
                self._take_answers(self._link)
        except LOST as error:
            self._failure = error
            self._hurry.unpark_all()

    async def _wait_answers(self, seconds: float) -> None:
        """Let answers gather, until a caller waits for its own."""
        self._pausing = True
        try:
            with trio.move_on_after(seconds):
                await self._hurry.park()
        finally:
            self._pausing = False

    async def _watch(self, link: Link) -> None:
        await link.watch(self._ping)

    def _ping(self) -> None:
        # The answers of open messages show as well that Redis is alive, and a ping would wait behind them.
        if not self._sent and not self._unsent:
            call = _Call(pack((b"PING",)), 1, _pong)
            self.open_bytes += call.size
            self._awaited += 1
            self._unsent.append(call)
            if self._idle:
                self._request_write()

    def _finish(self, call: _Call, unanswered: str = "") -> None:
        """Report the results of a call.

        Args:
            call: the call.
            unanswered: why its messages without an answer failed.
        """
        self.open_bytes -= call.size
        if call.done is not None:
            self._awaited -= not call.patient
            self._patient |= call.patient
        if self._waiting:
            self._answered.unpark_all()
            if not self.congested:
                self._uncongested.unpark_all()
        if call.done is _pong:
            return
        answers = call.answers
        if call.function is not None:
            self._finish_function(call, unanswered)
            return
        if len(answers) == 1:
            taken = int(type(answers[0]) is int)
        else:
            taken = sum([type(answer) is int for answer in answers])
        self.published += taken
        if taken == call.count:
            if call.done_all is not None:
                self._report(call.done_all, {})
            elif call.done is not None:
                self._report(call.done, answers[0])
            return
        failures = {
            at: refusal("the publish", answer) for at, answer in enumerate(answers) if type(answer) is not int
        }
        failures |= {at: BrokerUnavailable(unanswered) for at in range(len(answers), call.count)}
        self._fail(call, failures)

    def _finish_function(self, call: _Call, unanswered: str) -> None:
        assert call.function is not None
        answer = call.answers[0] if call.answers else None
        if not call.answers:
            self._fail(call, {0: BrokerUnavailable(unanswered)})
        elif isinstance(answer, hiredis.ReplyError):
            error = refusal(f"the call of {call.function.function}", answer)
            self._fail(call, {0: error})
        else:
            self.published += 1
            if call.done is not None:
                self._report(call.done, answer)

    def _refuse(self, call: _Call, why: str = "") -> None:
        if self._closed:
            raise BrokerUnavailable("the bus is closed")
        full = f"{why}{self.open_bytes} bytes wait for redis already, the limit is {self._max_buffer}"
        error = BrokerUnavailable(self._away or full)
        self._fail(call, dict.fromkeys(range(call.count), error))

    def _fail_sent(self, why: str) -> None:
        while self._sent:
            self._finish(self._sent.popleft(), why)

    def _fail_unsent(self, why: str) -> None:
        while self._unsent:
            self._finish(self._unsent.popleft(), why)

    def _fail(self, call: _Call, failures: Mapping[int, BrokerUnavailable]) -> None:
        self._moved = next((str(one) for one in call.answers if is_moved(one)), self._moved)
        self.failed += len(failures)
        if call.done_all is not None:
            self._report(call.done_all, failures)
        elif call.done is not None:
            self._report(call.done, failures[0])
        else:
            log.debug("message not published", causes=[str(one) for one in failures.values()])

    def _report(self, done: Callable[[T], None], outcome: T) -> None:
        try:
            done(outcome)
        except Exception as exc:
            # A bug of one caller must not cost the others their answers.
            log.exception("publisher callback failed", cause=repr(exc))


def _pong(_result: object) -> None:
    """Stand for the caller of a ping, whose answer is not used."""
