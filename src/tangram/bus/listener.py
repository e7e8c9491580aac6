"""The subscriber connection, on which Redis sends the messages of all subscribed patterns.

Messages of the pinned pattern (``to:*``) take the shortest way: a chunk is read and parsed, and its
messages go to the sink as one batch, without an await or a look-up in between. Patterns that plugins
subscribe to share the connection; each of their messages costs a look-up.

Redis answers the commands of a connection in order. Each command therefore leaves an entry in ``_expected``,
and each reply that is not a message answers the oldest entry. So the confirmation of a second subscription to
a pattern is not mistaken for that of a first one that was cancelled in between.
"""

from __future__ import annotations

import random
import secrets
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, TypeVar

import hiredis
import structlog
import trio

from tangram.bus.echo import Echo
from tangram.bus.gathering import Gathering
from tangram.bus.quiet import Publish, watch_quiet
from tangram.bus.reconnect import Reconnector
from tangram.bus.resp import CONNECT_TIMEOUT, LOST, RECEIVE_SIZE, Dial, Link, dial, pack, refusal
from tangram.bus.subscriptions import Message, Subscription
from tangram.errors import BrokerRefused, BrokerUnavailable
from tangram.redis_url import RedisAddress

__all__ = ["Listener", "Sink"]

log = structlog.get_logger("tangram.bus")

Batch = Sequence[tuple[bytes, bytes]]
"""Pairs of channel and payload, in order."""
Sink = Callable[[Batch], None]
"""Gets pairs of channel and payload, in order."""

T = TypeVar("T")

STOPPED: Final = "the bus has stopped; subscribe again on the new one"


class _Pattern:
    """One pattern of this connection, and its subscriptions."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.text = name.decode()
        self.subscribers: list[weakref.ref[Subscription]] = []
        self.settled = trio.Event()
        """Set once Redis has confirmed or refused the pattern."""
        self.refused = ""
        """The error message of a refusal; empty otherwise."""


class Listener:
    """The subscriber connection, opened again after each loss.

    Args:
        address: the address of Redis.
        pinned: a pattern that is always subscribed, and whose messages go to ``sink`` in batches.
        sink: called with each batch of the pinned pattern's messages.
        on_up: called with True when every pattern is confirmed, and with False when the connection is lost.
        dial: opens a connection.
        rng: the source of the back-off's jitter.
        name: the name of the connection in log lines.
        timer: returns CPU seconds, which give the cost of a delivery.
        probe: publishes a probe while the connection is quiet (``echo``); without it there are none.
    """

    def __init__(
        self,
        address: RedisAddress,
        *,
        pinned: bytes | None = None,
        sink: Sink | None = None,
        on_up: Callable[[bool], None] = lambda _up: None,
        dial: Dial = dial,
        rng: random.Random | None = None,
        name: str = "subscriber",
        timer: Callable[[], float] = time.thread_time,
        probe: Publish | None = None,
    ) -> None:
        self.connection = Reconnector(address, name=name, dial=dial, rng=rng)
        self.received = 0
        """Messages of the pinned pattern so far."""
        self.batches = 0
        """Calls of the sink so far."""
        self.dropped = 0
        """Messages that slow subscriptions dropped so far."""
        self._pinned = pinned
        self._sink = sink
        self._timer = timer
        self._gathering = Gathering()
        self._now: Callable[[], float] = trio.current_time
        self._probe = probe
        self._echo = Echo(secrets.token_hex(8))
        self._others = 0
        """Messages of other patterns than the pinned one, and probes, so far."""
        self._on_up = on_up
        self._patterns: dict[bytes, _Pattern] = {}
        if pinned is not None:
            self._patterns[pinned] = _Pattern(pinned)
        self._link: Link | None = None
        self._expected: deque[_Pattern | Echo | None] = deque()
        self._out: list[bytes] = []
        self._writable = trio.lowlevel.ParkingLot()
        self._up = trio.Event()
        self._stopped = False

    @property
    def up(self) -> bool:
        """Whether the connection is open and every pattern is confirmed."""
        return self._up.is_set()

    @property
    def cause(self) -> str:
        """Why ``up`` is false; empty while it is true."""
        return "" if self.up else self.connection.cause

    @property
    def patterns(self) -> tuple[str, ...]:
        """The subscribed patterns, the pinned one first."""
        return tuple(pattern.text for pattern in self._patterns.values())

    async def wait_up(self) -> None:
        """Return once ``up`` is true."""
        while not self._up.is_set():
            await self._up.wait()

    async def run(self) -> None:
        """Receive messages until cancelled; then end every subscription."""
        try:
            await self.connection.run(self._session)
        finally:
            self._stopped = True
            for pattern in self._patterns.values():
                pattern.settled.set()
                _end(pattern, STOPPED)

    def add(self, subscription: Subscription) -> None:
        """Deliver the messages of a subscription's patterns to it from now on.

        Raises:
            BrokerUnavailable: the bus has stopped.
        """
        if self._stopped:
            raise BrokerUnavailable(STOPPED)
        for text in dict.fromkeys(subscription.patterns):
            name = text.encode()
            pattern = self._patterns.get(name)
            if pattern is None or pattern.refused:
                pattern = self._patterns[name] = _Pattern(name)
                self._send_subscribe(pattern)
            # A weak reference: an ``async for`` that was left by ``break`` drops its subscription, and the
            # garbage collector may notice this in any thread.
            pattern.subscribers.append(weakref.ref(subscription))

    def remove(self, subscription: Subscription) -> None:
        """Deliver nothing more to a subscription; unsubscribe patterns that have none left."""
        for text in dict.fromkeys(subscription.patterns):
            pattern = self._patterns.get(text.encode())
            if pattern is not None:
                pattern.subscribers = [
                    ref for ref in pattern.subscribers if ref() not in {None, subscription}
                ]
                self._unsubscribe_if_unused(pattern)

    async def wait_confirmed(self, patterns: Iterable[str]) -> None:
        """Return once Redis has confirmed each of the patterns, which must have been added before.

        Raises:
            BrokerRefused: Redis refuses one of them.
            BrokerUnavailable: the bus stopped in the meantime.
        """
        for text in patterns:
            pattern = self._patterns[text.encode()]
            # A lost connection replaces the event, so look it up again.
            while not pattern.settled.is_set() and not self._stopped:
                await pattern.settled.wait()
            if pattern.refused:
                raise BrokerRefused(pattern.refused)
            if self._stopped:
                raise BrokerUnavailable(STOPPED)
        await trio.lowlevel.checkpoint()

    # A session lasts as long as one connection.

    async def _session(self, link: Link) -> None:
        self._link = link
        self._now = trio.lowlevel.current_clock().current_time
        self._expected.clear()
        self._out.clear()
        try:
            for pattern in list(self._patterns.values()):
                if not self._unsubscribe_if_unused(pattern):
                    self._send_subscribe(pattern)
            self._echo.connected()
            if self._probe is not None:
                self._command(self._echo, "SUBSCRIBE", self._echo.channel)
            await link.share(
                self._read, self._write, self._require_confirmation, self._watch, self._watch_quiet
            )
        finally:
            self._link = None
            self._mark_lost()

    def _mark_lost(self) -> None:
        for pattern in self._patterns.values():
            if pattern.settled.is_set() and not pattern.refused:
                pattern.settled = trio.Event()
        if self._up.is_set():
            self._up = trio.Event()
            _call(self._on_up, False)

    async def _read(self, link: Link) -> None:
        self._report_up_if_confirmed()
        while True:
            pause = await link.receive_each(partial(self._take_chunk, link))
            await trio.sleep(pause)

    def _take_chunk(self, link: Link, size: int) -> float | None:
        """Deliver the messages of a chunk; return the seconds to pause after it, or None."""
        # After a full read enough messages have gathered.
        gathering = self._gathering
        timed = gathering.pays and size < RECEIVE_SIZE
        began = self._timer() if timed else 0.0
        gathering.count(self._deliver_received(link), self._now())
        return (gathering.pause(self._timer() - began) or None) if timed else None

    async def _write(self, link: Link) -> None:
        while True:
            while not self._out:
                await self._writable.park()
            data, self._out = b"".join(self._out), []
            await link.stream.send_all(data)

    async def _watch(self, link: Link) -> None:
        await link.watch(lambda: self._command(None, "PING"))

    async def _watch_quiet(self, _link: Link) -> None:
        if self._probe is None:
            await trio.sleep_forever()
        else:
            await watch_quiet(self._echo, lambda: self.received + self._others, self._probe)

    async def _require_confirmation(self, _link: Link) -> None:
        """End the session if Redis does not confirm the patterns in time."""
        with trio.move_on_after(CONNECT_TIMEOUT):
            await self._up.wait()
        if not self._up.is_set():
            raise BrokerUnavailable(f"redis did not confirm the subscriptions within {CONNECT_TIMEOUT:g} s")
        await trio.sleep_forever()

    def _command(self, pattern: _Pattern | Echo | None, *words: str | bytes) -> None:
        self._expected.append(pattern)
        self._out.append(pack(words))
        self._writable.unpark()

    def _send_subscribe(self, pattern: _Pattern) -> None:
        if self._link is not None:
            # One command for each pattern, so that the refusal of one leaves the others alone.
            self._command(pattern, b"PSUBSCRIBE", pattern.name)

    def _deliver_received(self, link: Link) -> Batch:
        """Process every complete reply in the reader, call the sink once, and return its batch."""
        batch: list[tuple[bytes, bytes]] = []
        append, gets, pinned = batch.append, link.reader.gets, self._pinned
        shared = self._patterns[pinned] if pinned is not None else None
        try:
            while (reply := gets()) is not False:
                # Only a message has four parts: a confirmation has three, the answer to PING has two.
                if type(reply) is list and len(reply) == 4:
                    _, pattern, channel, payload = reply
                    if pattern == pinned:
                        append((channel, payload))
                        if not shared.subscribers:  # type: ignore[union-attr]
                            continue
                    self._dispatch(pattern, channel, payload)
                else:
                    self._take_answer(reply)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise
            # Raised by the reader itself, for a map whose keys cannot be hashed: the other end is not Redis.
            raise BrokerUnavailable(f"redis sent a reply that cannot be read: {error}") from None
        finally:
            # Also after a protocol error: the messages before it are good.
            if batch:
                self.received += len(batch)
                self.batches += 1
                if self._sink is not None:
                    _call(self._sink, batch)
        return batch

    def _dispatch(self, name: bytes, channel: bytes, payload: bytes) -> None:
        self._others += 1
        try:
            pattern = self._patterns.get(name)
            if pattern is None:
                return  # it was unsubscribed a moment ago
            message = Message(channel.decode("utf-8", "backslashreplace"), payload, pattern.text)
        except (AttributeError, TypeError):
            # Four parts that are no message: the other end is not Redis.
            raise BrokerUnavailable(f"redis sent a message of {name!r} on {channel!r}") from None
        gone = False
        for ref in pattern.subscribers:
            subscription = ref()
            if subscription is None:
                gone = True
            else:
                subscription.push(message)
        if gone:
            pattern.subscribers = [ref for ref in pattern.subscribers if ref() is not None]
            self._unsubscribe_if_unused(pattern)

    def _take_answer(self, reply: object) -> None:
        if type(reply) is list and reply and reply[0] == b"message":
            self._others += 1  # a probe: the only channel that is subscribed by its name
            return
        if not self._expected:
            raise BrokerUnavailable(f"redis sent {reply!r}, which answers no command")
        pattern = self._expected.popleft()
        if pattern is None:
            return
        if isinstance(pattern, Echo):
            pattern.allowed = isinstance(reply, list)
            if not pattern.allowed:
                log.info("quiet connections are not probed", cause=str(reply))
            return
        if isinstance(reply, hiredis.ReplyError):
            error = refusal(f"the subscription to {pattern.text!r}", reply)
            if pattern.name == self._pinned or not isinstance(error, BrokerRefused):
                raise error
            log.warning("subscription refused by redis", pattern=pattern.text, cause=str(reply))
            pattern.refused = str(error)
            _end(pattern, pattern.refused, BrokerRefused)
        pattern.settled.set()
        self._report_up_if_confirmed()

    def _report_up_if_confirmed(self) -> None:
        if not self._up.is_set() and all(pattern.settled.is_set() for pattern in self._patterns.values()):
            self._up.set()
            self.connection.established()
            _call(self._on_up, True)

    def _unsubscribe_if_unused(self, pattern: _Pattern) -> bool:
        """Unsubscribe a pattern without subscriptions; return whether it had none."""
        if pattern.name == self._pinned or any(ref() is not None for ref in pattern.subscribers):
            return False
        if self._patterns.get(pattern.name) is pattern:
            del self._patterns[pattern.name]
            if self._link is not None and not pattern.refused:
                self._command(None, b"PUNSUBSCRIBE", pattern.name)
            # A pattern that was removed before its confirmation must not delay ``up``.
            pattern.settled.set()
            if self._link is not None:
                self._report_up_if_confirmed()
        return True


def _end(pattern: _Pattern, why: str, kind: type[BrokerUnavailable] = BrokerUnavailable) -> None:
    """End the subscriptions of a pattern with an error."""
    for ref in pattern.subscribers:
        subscription = ref()
        if subscription is not None:
            subscription.end(why, kind)


def _call(function: Callable[[T], None], value: T) -> None:
    """Call a function of another room; an error of it must not look like a lost connection."""
    try:
        function(value)
    except LOST as exc:
        raise RuntimeError(f"the bus called {function!r}, which raised {exc!r}") from exc
