"""The task of the recorder: a connection that reads the feed, and one that records.

It lives above the incarnations, so that no message of plain ``PUBLISH`` is missed while one restarts.
"""

from __future__ import annotations

import math
from typing import Final, NoReturn

import attrs
import hiredis
import structlog
import trio

from tangram.bus.echo import Echo
from tangram.bus.publisher import Publisher
from tangram.bus.quiet import watch_quiet
from tangram.bus.reconnect import Reconnector
from tangram.bus.resp import CONNECT_TIMEOUT, RECEIVE_SIZE, Link, dial, pack, refusal
from tangram.bus.scripts import FunctionCall
from tangram.errors import BrokerUnavailable
from tangram.history.library import LEASE
from tangram.history.recorder import Recorder
from tangram.history.rules import STAMPS, Rules
from tangram.history.stamps import hello
from tangram.redis_url import parse_redis_url

__all__ = ["RecorderStatistics", "Recording"]

log = structlog.get_logger("tangram.history")

GATHER: Final = 0.05
"""Seconds between two looks at the feed, in which messages gather: at most 20 steps a second.

Each step costs the same for one message and for ten. A page that loses its connection may get the messages of
this time again.
"""
SLACK: Final = 0.02
"""Seconds for which a look waits for a message of the bus: the process is awake then, with warm caches."""
TICK: Final = 0.5
"""Seconds between two renewals of the lease: six fit into its time."""
STOP_TIMEOUT: Final = 0.5
"""Seconds at a stop to give the lease away."""


@attrs.frozen
class RecorderStatistics:
    """The state of the recorder at one moment."""

    number: int | None
    """The number under which this node records; None while another node does."""
    in_step: bool
    """Whether this node could go on where the recorder stops."""
    waiting: int
    """Messages that are not recorded yet."""


class Recording:
    """The recorder's two connections and its tasks.

    Args:
        url: returns the URL of Redis.
        rules: which topics have a history.
        node: a name that no other node has.
        alone: whether no other node can hold the lease, because the broker has just started.
    """

    def __init__(self, url: str, rules: Rules, node: str, *, alone: bool = False) -> None:
        address = parse_redis_url(url)
        self.recorder = Recorder(rules, node)
        self.rules = rules
        self._alone = alone
        self._feed = Reconnector(address, name="recorder feed", dial=dial)
        self._publisher = Publisher(address, name="recorder", load=rules.load)
        self._echo = Echo(node)
        self._received = 0
        """Messages of the feed, and probes, so far."""
        self._listening = trio.Event()
        self._due = 0.0
        """The time from which on the next look at the feed may be."""
        self._gathers = False
        """Whether the feed had messages at the last look, so that the next one is after a pause."""
        self._pause: trio.CancelScope | None = None
        """The pause before the next look, while the reader is in it."""
        self._link: Link | None = None
        self._failure: Exception | None = None
        """An error of ``nudge``, with which the reader ends."""
        self._doubt: object = None
        """The answer because of which a step may not have been made."""
        self._doubtful = trio.Event()
        self._may_hold = True
        """Whether Redis may have a lease of this node, also one of which this node does not know."""
        self._looked = False
        """Whether the lease was free at the last look, to give nodes that are in step the first chance."""
        self._renewing = 0.0
        """Until when the marker of a lease is waited for."""

    def statistics(self) -> RecorderStatistics:
        """Return a record of this moment."""
        unrecorded = self.recorder.unrecorded
        return RecorderStatistics(self.recorder.number, unrecorded.recorder is not None, len(unrecorded))

    async def run(self, *, task_status: trio.TaskStatus[Recording] = trio.TASK_STATUS_IGNORED) -> None:
        """Record until cancelled, then give the lease away."""
        # Shielded, so that the lease can be given away. The bound: the tasks beside it end when this is
        # cancelled, and the rest has STOP_TIMEOUT.
        sending = trio.CancelScope(shield=True)
        async with trio.open_nursery() as outer:
            outer.start_soon(self._send, sending)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._feed.run, self._session)
                    nursery.start_soon(self._keep_lease)
                    nursery.start_soon(self._clear_doubts)
                    task_status.started(self)
            finally:
                with trio.move_on_after(STOP_TIMEOUT, shield=True):
                    await self._release()
                sending.cancel()

    async def _send(self, scope: trio.CancelScope) -> None:
        with scope:
            await self._publisher.run()

    # The feed.

    async def _session(self, link: Link) -> None:
        self.recorder.interrupted()
        try:
            with trio.move_on_after(CONNECT_TIMEOUT) as limit:
                await self._subscribe(link)
            if limit.cancelled_caught:
                raise BrokerUnavailable(f"redis did not confirm the feed within {CONNECT_TIMEOUT:g} s")
            self._feed.established()
            self._publisher.retry_now()
            self._listening.set()
            self._link, self._failure = link, None
            await link.share(self._read, self._watch, self._watch_quiet)
        finally:
            self._link = None
            self._listening = trio.Event()
            self.recorder.interrupted()

    async def _subscribe(self, link: Link) -> None:
        patterns = self.rules.redis_patterns()
        self._echo.connected()
        echo = pack(("SUBSCRIBE", self._echo.channel))
        await link.stream.send_all(pack(("PSUBSCRIBE", *patterns)) + echo)
        answered = 0
        while answered <= len(patterns):
            while (reply := link.reader.gets()) is not False:
                if answered == len(patterns) and isinstance(reply, hiredis.ReplyError):
                    log.info("quiet connections are not probed", cause=str(reply))
                    answered += 1
                elif isinstance(reply, list) and len(reply) == 3:
                    self._echo.allowed = answered == len(patterns)
                    answered += 1
                else:
                    self._take(reply)
            if answered <= len(patterns):
                await link.receive()

    async def _read(self, link: Link) -> None:
        self._advance(link, 0)
        while True:
            self._advance(link, await link.receive())
            while self._gathers:
                await self._wait_look(SLACK if link.nowait else 0.0)
                self._look_after_pause(link)

    async def _wait_look(self, slack: float) -> None:
        """Wait until the pause is over, and a little longer, in which ``nudge`` may look."""
        try:
            with trio.CancelScope(deadline=self._due + slack) as self._pause:
                await trio.sleep_forever()
        finally:
            self._pause = None
        if self._failure is not None:
            raise self._failure

    def nudge(self) -> None:
        """Look at the feed now if a look is due, because a message has woken the process.

        It raises nothing: an error of the recorder ends the recorder and not its caller.
        """
        pause, link = self._pause, self._link
        if pause is None or link is None or trio.current_time() < self._due:
            return
        try:
            found = self._look(link)
        except Exception as error:  # noqa: BLE001 - raised again by the reader, whose error it is
            self._failure = error
            pause.cancel()
            return
        if found:
            pause.deadline = self._due + SLACK if self._gathers else -math.inf

    def _look_after_pause(self, link: Link) -> None:
        """Look, unless ``nudge`` has ended the pause; wait for the feed if it has nothing."""
        if self._gathers and not self._look(link):
            self._gathers = False

    def _look(self, link: Link) -> bool:
        """Take the messages that have arrived; return whether there were any."""
        self._publisher.read_now()
        size = link.receive_nowait()
        if size:
            self._advance(link, size)
        return size > 0

    def _advance(self, link: Link, size: int) -> None:
        """Handle the messages in the reader, and take the next step.

        Args:
            link: the connection of the feed.
            size: the bytes that came last.
        """
        recorder = self.recorder
        while (reply := link.reader.gets()) is not False:
            self._take(reply)
        try:
            for answer in recorder.answers():
                self._publisher.publish_nowait(STAMPS, answer)
            step = recorder.next_step()
            if step is not None:
                self._publisher.call_now(step, self._take_step_answer)
        except BrokerUnavailable as error:  # the recorder stops
            log.debug("reader not brought in step", cause=str(error))
        self._due = trio.current_time() + GATHER
        # With more in the socket, or for more than a step, a pause would only make it late.
        self._gathers = size < RECEIVE_SIZE and not recorder.behind

    def _take(self, reply: object) -> None:
        if isinstance(reply, hiredis.ReplyError):
            raise refusal("the feed of the recorder", reply)
        if isinstance(reply, list) and len(reply) == 4:
            self._received += 1
            self.recorder.take(*reply[1:])
        elif isinstance(reply, list) and len(reply) == 3:
            self._received += 1  # a probe

    async def _watch_quiet(self, _link: Link) -> None:
        await watch_quiet(self._echo, lambda: self._received, self._publisher.probe)

    async def _watch(self, link: Link) -> None:
        def ping() -> None:
            pings.append(None)
            ready.unpark()

        async def send(link: Link) -> None:
            while True:
                while not pings:
                    await ready.park()
                pings.clear()
                await link.stream.send_all(pack(("PING",)))

        pings: list[None] = []
        ready = trio.lowlevel.ParkingLot()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, link)
            await link.watch(ping)

    # The lease.

    async def _keep_lease(self) -> NoReturn:
        while True:
            if self._listening.is_set():
                try:
                    await self._look_at_lease()
                except BrokerUnavailable as error:
                    log.debug("lease of the recorder not renewed", cause=str(error))
            with trio.move_on_after(TICK):
                await self._wait_listening()
                await trio.sleep(TICK)

    async def _wait_listening(self) -> None:
        while not self._listening.is_set():
            await self._listening.wait()

    async def _look_at_lease(self) -> None:
        """Take the lease if it is free, or renew it."""
        if trio.current_time() < self._renewing and self.recorder.number is None:
            return
        recorder = self.recorder
        if recorder.unrecorded.recorder is None and not self._alone:
            await self._say_hello()
            if not await self._was_free():
                return
        held = recorder.number is not None
        if not held and self._may_hold:
            # Redis may have refused the end of an old lease of this node, for example as a replica or with a
            # full disk. Its renewal would have no marker, and this node would never record again.
            await self._publisher.call(recorder.release_call())
        # Until the answer it is unknown; a node that knows that it does not hold the lease gives none away.
        self._may_hold = True
        answer = await self._publisher.call(recorder.lease_call(force=self._alone))
        self._may_hold = answer[0] == 1
        self._alone = False
        if answer[0] == 1 and not held:
            self._renewing = trio.current_time() + CONNECT_TIMEOUT
            log.info("recorder of plain messages", number=int(answer[1]), gap=bool(answer[2]))

    async def _say_hello(self) -> None:
        nonce = self.recorder.unrecorded.next_hello()
        await self._publisher.publish(STAMPS, hello(nonce))

    async def _was_free(self) -> bool:
        """Return whether the lease was free at this look and the one before."""
        holder = await self._publisher.call(FunctionCall("", (), (), ("GET", LEASE)))
        free = holder in (None, self.recorder.node.encode())
        before, self._looked = self._looked, free
        return before and free

    async def _release(self) -> None:
        if self.recorder.number is not None:
            try:
                await self._publisher.call(self.recorder.release_call())
            except BrokerUnavailable as error:
                log.debug("lease of the recorder not released", cause=str(error))

    # Steps.

    def _take_step_answer(self, answer: object) -> None:
        if self.recorder.step_answered(answer):
            self._doubt = answer
            self._doubtful.set()

    async def _clear_doubts(self) -> NoReturn:
        """Renew the lease under a new number after each step that may not have been made."""
        while True:
            await self._doubtful.wait()
            self._doubtful = trio.Event()
            log.warning("messages may not be recorded, the lease is renewed", cause=str(self._doubt))
            try:
                await self._publisher.call(self.recorder.release_call())
                await self._publisher.call(self.recorder.lease_call())
            except BrokerUnavailable as error:
                log.debug("lease of the recorder not renewed", cause=str(error))
