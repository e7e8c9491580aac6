"""The subscriber connection: everything that Redis pushes to us comes in here.

Messages of the pinned pattern (``to:*``) take the short way: a chunk is read, parsed, and handed to the
sink as one batch, with no await and no look-up in between. Other patterns, which plugins subscribe to,
share the connection and pay for themselves.

Commands on a connection are answered in order, so each command that is written leaves an entry in
`_expected`, and each reply that is no message answers the oldest entry. That is what tells the confirmation
of a second subscription from that of a first one which was given up meanwhile.
"""

from __future__ import annotations

import random
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

import hiredis
import structlog
import trio

from tangram.bus.reconnect import Keeper
from tangram.bus.resp import CONNECT_TIMEOUT, LOST, RECEIVE_SIZE, Dial, Link, dial, pack, refusal
from tangram.bus.subscriptions import Message, Subscription
from tangram.errors import BrokerRefused, BrokerUnavailable
from tangram.redis_url import RedisAddress

__all__ = ["Listener", "Sink"]

log = structlog.get_logger("tangram.bus")

Sink = Callable[[Sequence[tuple[bytes, bytes]]], None]

T = TypeVar("T")

GATHER_FACTOR: Final = 10
GATHER_MAX: Final = 0.004
GATHER_LEAST: Final = 0.001
"""After a delivery that took d seconds of CPU the next read waits for ten times d, at most 4 ms, and messages
gather in the socket meanwhile: each client is then sent several in one write, and the write is what a
delivery costs. A message after a quiet moment goes out at once; where few are served (a pause of under 1 ms)
nothing waits; and after a read that was full there is no pause: enough has gathered. With 100 clients 500
messages a second cost half as much so, and 2,000 a fifth."""

STOPPED: Final = "the bus has stopped; subscribe again on the new one"


class _Pattern:
    """One pattern on the wire, and who wants it."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.text = name.decode()
        self.subscribers: list[weakref.ref[Subscription]] = []
        self.settled = trio.Event()
        """Set once Redis has confirmed it, or refused it."""
        self.refused = ""


class Listener:
    """Keeps the subscriber connection to *address*, with *pinned* subscribed for ever and handed to *sink*
    in batches.
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
    ) -> None:
        self.keeper = Keeper(address, name=name, dial=dial, rng=rng)
        self.received = 0
        self.batches = 0
        self.dropped = 0
        self._pinned = pinned
        self._sink = sink
        self._timer = timer
        self._on_up = on_up
        self._patterns: dict[bytes, _Pattern] = {}
        if pinned is not None:
            self._patterns[pinned] = _Pattern(pinned)
        self._link: Link | None = None
        self._expected: deque[_Pattern | None] = deque()
        self._out: list[bytes] = []
        self._writable = trio.lowlevel.ParkingLot()
        self._up = trio.Event()
        self._stopped = False

    @property
    def up(self) -> bool:
        """Connected, and every pattern that was wanted then is subscribed."""
        return self._up.is_set()

    @property
    def cause(self) -> str:
        """Why it is not up; empty while it is."""
        return "" if self.up else self.keeper.cause

    @property
    def patterns(self) -> tuple[str, ...]:
        return tuple(pattern.text for pattern in self._patterns.values())

    async def wait_up(self) -> None:
        """Return once it is up."""
        while not self._up.is_set():
            await self._up.wait()

    async def run(self) -> None:
        """Listen until cancelled; then every subscription ends."""
        try:
            await self.keeper.run(self._session)
        finally:
            self._stopped = True
            for pattern in self._patterns.values():
                pattern.settled.set()
                _end(pattern, STOPPED)

    def add(self, subscription: Subscription) -> None:
        """Have *subscription* get the messages of its patterns.

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
                self._ask(pattern)
            # Weakly: a loop that was left by `break` ends its subscription by being forgotten, in whichever
            # thread that is noticed.
            pattern.subscribers.append(weakref.ref(subscription))

    def remove(self, subscription: Subscription) -> None:
        """Have *subscription* get nothing any more; patterns that nobody wants are unsubscribed."""
        for text in dict.fromkeys(subscription.patterns):
            pattern = self._patterns.get(text.encode())
            if pattern is not None:
                pattern.subscribers = [
                    ref for ref in pattern.subscribers if ref() not in {None, subscription}
                ]
                self._drop_unwanted(pattern)

    async def wait_confirmed(self, patterns: Iterable[str]) -> None:
        """Return once Redis has confirmed each of *patterns*, which must have been added.

        Raises:
            BrokerRefused: Redis refuses one.
            BrokerUnavailable: the bus stops meanwhile.
        """
        for text in patterns:
            pattern = self._patterns[text.encode()]
            # A loss in between makes a new event: wait for the one that counts.
            while not pattern.settled.is_set() and not self._stopped:
                await pattern.settled.wait()
            if pattern.refused:
                raise BrokerRefused(pattern.refused)
            if self._stopped:
                raise BrokerUnavailable(STOPPED)
        await trio.lowlevel.checkpoint()

    # A session: one connection's life

    async def _session(self, link: Link) -> None:
        self._link = link
        self._expected.clear()
        self._out.clear()
        try:
            for pattern in list(self._patterns.values()):
                if not self._drop_unwanted(pattern):
                    self._ask(pattern)
            await link.share(self._read, self._write, self._expect_up, self._watch)
        finally:
            self._link = None
            self._interrupted()

    def _interrupted(self) -> None:
        for pattern in self._patterns.values():
            if pattern.settled.is_set() and not pattern.refused:
                pattern.settled = trio.Event()
        if self._up.is_set():
            self._up = trio.Event()
            _tell(self._on_up, False)

    async def _read(self, link: Link) -> None:
        self._settle()
        while True:
            size = await link.receive()
            began = self._timer()
            self._drain(link)
            pause = min(GATHER_FACTOR * (self._timer() - began), GATHER_MAX)
            if pause >= GATHER_LEAST and size < RECEIVE_SIZE:
                await trio.sleep(pause)

    async def _write(self, link: Link) -> None:
        while True:
            while not self._out:
                await self._writable.park()
            data, self._out = b"".join(self._out), []
            await link.stream.send_all(data)

    async def _watch(self, link: Link) -> None:
        await link.watch(lambda: self._command(None, "PING"))

    async def _expect_up(self, _link: Link) -> None:
        with trio.move_on_after(CONNECT_TIMEOUT):
            await self._up.wait()
        if not self._up.is_set():
            raise BrokerUnavailable(f"redis did not confirm the subscriptions within {CONNECT_TIMEOUT:g} s")
        await trio.sleep_forever()

    def _command(self, pattern: _Pattern | None, *words: str | bytes) -> None:
        self._expected.append(pattern)
        self._out.append(pack(words))
        self._writable.unpark()

    def _ask(self, pattern: _Pattern) -> None:
        if self._link is not None:
            # One command for each, so that one that is refused does not take the others with it.
            self._command(pattern, b"PSUBSCRIBE", pattern.name)

    def _drain(self, link: Link) -> None:
        """Deal with all that has arrived; the sink gets its share in one call."""
        batch: list[tuple[bytes, bytes]] = []
        append, gets, pinned = batch.append, link.reader.gets, self._pinned
        shared = self._patterns[pinned] if pinned is not None else None
        try:
            while (reply := gets()) is not False:
                # Only a message has four parts: confirmations have three, an answer to PING two.
                if type(reply) is list and len(reply) == 4:
                    _, pattern, channel, payload = reply
                    if pattern == pinned:
                        append((channel, payload))
                        if not shared.subscribers:  # type: ignore[union-attr]
                            continue
                    self._dispatch(pattern, channel, payload)
                else:
                    self._answered(reply)
        finally:
            # Also when the stream turns to garbage further on: what came before it is good.
            if batch:
                self.received += len(batch)
                self.batches += 1
                if self._sink is not None:
                    _tell(self._sink, batch)

    def _dispatch(self, name: bytes, channel: bytes, payload: bytes) -> None:
        pattern = self._patterns.get(name)
        if pattern is None:
            return  # was unsubscribed a moment ago
        message = Message(channel.decode("utf-8", "backslashreplace"), payload, pattern.text)
        gone = False
        for ref in pattern.subscribers:
            subscription = ref()
            if subscription is None:
                gone = True
            else:
                subscription.push(message)
        if gone:
            pattern.subscribers = [ref for ref in pattern.subscribers if ref() is not None]
            self._drop_unwanted(pattern)

    def _answered(self, reply: object) -> None:
        if not self._expected:
            raise BrokerUnavailable(f"redis said {reply!r} out of turn")
        pattern = self._expected.popleft()
        if pattern is None:
            return
        if isinstance(reply, hiredis.ReplyError):
            error = refusal(f"the subscription to {pattern.text!r}", reply)
            if pattern.name == self._pinned or not isinstance(error, BrokerRefused):
                raise error
            log.warning("redis refuses a subscription", pattern=pattern.text, cause=str(reply))
            pattern.refused = str(error)
            _end(pattern, pattern.refused, BrokerRefused)
        pattern.settled.set()
        self._settle()

    def _settle(self) -> None:
        if not self._up.is_set() and all(pattern.settled.is_set() for pattern in self._patterns.values()):
            self._up.set()
            self.keeper.established()
            _tell(self._on_up, True)

    def _drop_unwanted(self, pattern: _Pattern) -> bool:
        """Unsubscribe *pattern* if nobody is left who wants it; whether that is so."""
        if pattern.name == self._pinned or any(ref() is not None for ref in pattern.subscribers):
            return False
        if self._patterns.get(pattern.name) is pattern:
            del self._patterns[pattern.name]
            if self._link is not None and not pattern.refused:
                self._command(None, b"PUNSUBSCRIBE", pattern.name)
            # Whoever was given up must not keep the others from being up.
            pattern.settled.set()
            if self._link is not None:
                self._settle()
        return True


def _end(pattern: _Pattern, why: str, kind: type[BrokerUnavailable] = BrokerUnavailable) -> None:
    """Tell everybody who wants *pattern* that nothing will come of it."""
    for ref in pattern.subscribers:
        subscription = ref()
        if subscription is not None:
            subscription.end(why, kind)


def _tell(function: Callable[[T], None], value: T) -> None:
    """Call *function* of another room; what it raises is a bug, also when it looks like a lost connection."""
    try:
        function(value)
    except LOST as exc:
        raise RuntimeError(f"what the bus delivers to raised {exc!r}") from exc
