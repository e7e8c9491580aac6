"""Run the handlers of one plugin's pushes, in the plugin's place of the supervision tree.

1. Tasks take lanes from the line and handle their pushes. A task that finds further lanes in line calls
   another task first, so that a handler that waits delays its own sender alone. While handlers do not wait,
   one task handles everything.
2. Every push is answered: by its handler, by the faults of its payload, as failed, as late, or as interrupted
   when the plugin stops. An exception of a handler is logged and ends nothing else.
3. Pushes that came with one read have the same deadline, and share one cancel scope until it has passed.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final

import attrs
import msgspec
import structlog
import trio

from tangram.asyncio_hint import asyncio_hint
from tangram.channels.disconnects import (
    BUSY,
    HANDLER_FAILED,
    HANDLER_TIMEOUT,
    INVALID,
    RESTARTING,
    UNAVAILABLE,
    Refusal,
)
from tangram.declared.binding import SENDER, STATE, Handler, compile_handler
from tangram.declared.channel import DeclaredChannel, Incoming
from tangram.declared.counts import PushCounts
from tangram.declared.lanes import TURN, Lane, Lanes, WaitingPush
from tangram.declared.payload import BINARY_FAULT, TOO_LONG, encode_message
from tangram.declared.sender import Sender
from tangram.errors import BrokerUnavailable
from tangram.groups import unwrap_single
from tangram.log_limit import LogLimit
from tangram.routing.collector_hold import hold
from tangram.routing.exceptions import InvalidRequest
from tangram.routing.shortage import refusal_of

__all__ = ["MAX_TASKS", "RESULTS", "PushPool", "PushStatistics"]

log = structlog.get_logger("tangram.plugins")

MAX_TASKS: Final = 100
"""Handlers of one plugin that may wait at the same time."""
SHARE: Final = 512
"""Bytes of payloads that count as one more push of a turn."""
THREADS: Final = 20
"""Synchronous handlers of one plugin that may run at the same time."""
READERS: Final = 2
"""Large payloads of one plugin that are read at the same time: more would keep the event loop waiting."""
RESULTS: Final = ("ok", "invalid", "refused", "failed", "timeout", "interrupted")


@attrs.frozen
class PushStatistics:
    """The pushes of one plugin."""

    waiting: int
    """Pushes that wait for their handler now."""
    results: Mapping[str, int]
    """Answered pushes since the plugin was loaded, by result: one of ``RESULTS``."""


class PushPool:
    """The handlers of one plugin, while the plugin runs.

    Args:
        plugin: the plugin's name.
        channels: its channels.
        state: the state that handlers get.
        counts: counts the answers by result, and the handlers' durations; it outlives the pool.

    Raises:
        PluginError: a handler's signature cannot be bound.
    """

    def __init__(
        self,
        plugin: str,
        channels: Iterable[DeclaredChannel],
        state: Any,
        *,
        counts: PushCounts | None = None,
    ) -> None:
        self.plugin = plugin
        self.state = state
        counts = PushCounts() if counts is None else counts
        self.results = counts.results
        incoming = [one for channel in channels for one in channel.incoming.values()]
        self._handlers = {one: compile_handler(one, type(state)) for one in incoming}
        self._observe = {
            handler: counts.durations_of(one.channel.template.text, one.event).observe
            for one, handler in self._handlers.items()
        }
        self._clock = trio.current_time
        self._lanes = Lanes()
        self._parked = trio.lowlevel.ParkingLot()
        self._tasks = 0
        self._called = False
        """Whether a task has been called that has not looked at the line yet."""
        self._nursery: trio.Nursery | None = None
        self._unsent: list[Lane] = []
        """Lanes with replies that are not sent yet."""
        self._sender = trio.lowlevel.ParkingLot()
        self._threads = trio.CapacityLimiter(THREADS)
        self._readers = trio.CapacityLimiter(READERS)
        self._log_limit = LogLimit()

    def handler(self, incoming: Incoming) -> Handler | None:
        """Return the handler of a declaration, or None if this version of it does not run."""
        return None if self._nursery is None else self._handlers.get(incoming)

    def bind(self, handler: Handler, sender: Sender, parameters: dict[str, str]) -> dict[str, Any]:
        """Return the arguments of a handler beside the message.

        Raises:
            InvalidRequest: a part of the topic does not fit its annotation.
        """
        return handler.named.arguments({SENDER: sender, STATE: self.state}, parameters)

    def put(self, lane: Lane, push: WaitingPush) -> None:
        """Add a push to the lane of its sender; it is refused if too many wait."""
        if self._lanes.full:
            lane.unanswered.count += 1
            self._refuse(lane, push, BUSY, "refused")
        elif self._lanes.put(lane, push):
            self._call_task()

    def _reply(self, lane: Lane, push: WaitingPush, status: str, response: bytes) -> None:
        """Answer a push; replies of one turn go out together, or at once if a handler waits."""
        if not self._unsent:
            self._sender.unpark()
        if not self._unsent or self._unsent[-1] is not lane:
            self._unsent.append(lane)
        lane.reply(push, status, response)

    def _send_replies(self) -> None:
        lanes, self._unsent = self._unsent, []
        for lane in lanes:
            lane.answers.flush()

    async def _send(self) -> None:
        """Send replies in the pass of the event loop after the one in which they were made."""
        while True:
            await self._sender.park()
            self._send_replies()

    def statistics(self) -> PushStatistics:
        """Return the numbers of the pool."""
        return PushStatistics(self._lanes.waiting, {name: self.results[name] for name in RESULTS})

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Handle pushes until cancelled; those that are left are answered as interrupted."""
        self._clock = trio.lowlevel.current_clock().current_time
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._send)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    # A nursery takes no tasks once its last one has ended, a pass before its block does.
                    self._nursery = None
        finally:
            for lane, push in self._lanes.take_all():
                self._refuse(lane, push, RESTARTING, "interrupted")
            self._send_replies()

    def _call_task(self) -> None:
        """Let an idle task, or a new one, look at the line."""
        if self._called or self._nursery is None:
            return
        if self._parked:
            self._called = True
            self._parked.unpark()
        elif self._tasks < MAX_TASKS:
            self._called = True
            self._tasks += 1
            self._nursery.start_soon(self._work)

    async def _work(self) -> None:
        lanes = self._lanes
        while True:
            self._called = False
            while lanes.ready:
                lane = lanes.take()
                if lanes.ready:
                    self._call_task()
                await self._serve(lane)
                lanes.put_back(lane)
                await trio.lowlevel.checkpoint()
            await self._parked.park()

    async def _serve(self, lane: Lane) -> None:
        """Handle a turn of a lane."""
        left = TURN
        while left > 0 and lane.pushes:
            deadline = lane.pushes[0].deadline
            if trio.current_time() >= deadline:
                left -= 1
                self._refuse(lane, self._lanes.next_push(lane), HANDLER_TIMEOUT, "timeout")
                continue
            with trio.CancelScope(deadline=deadline) as limit:
                while left > 0 and lane.pushes and lane.pushes[0].deadline == deadline:
                    left -= 1 + len(lane.pushes[0].message.payload) // SHARE
                    await self._handle(lane, self._lanes.next_push(lane))
            if limit.cancelled_caught and lane.current is not None:
                push = lane.current
                if self._may_log(push, "timeout"):
                    log.warning(
                        "push handler took too long", seconds=push.handler.timeout, **self._about(push)
                    )
                self._refuse(lane, push, HANDLER_TIMEOUT, "timeout")

    async def _read_in_thread(self, handler: Handler, payload: bytes) -> Any:
        """Return the value of a large payload; a thread takes turns with the loop."""
        with hold:
            return await trio.to_thread.run_sync(
                handler.reader.read, payload, abandon_on_cancel=True, limiter=self._readers
            )

    async def _handle(self, lane: Lane, push: WaitingPush) -> None:
        """Read the payload, call the handler, and reply."""
        handler, message = push.handler, push.message
        try:
            if message.binary:
                value = self._binary(handler, message.payload)
            else:
                value = handler.reader.read_at_once(message.payload)
                if value is TOO_LONG:
                    value = await self._read_in_thread(handler, message.payload)
        except InvalidRequest as error:
            self._refuse(lane, push, INVALID, "invalid", error)
            return
        began = self._clock()
        try:
            try:
                if handler.is_async:
                    result = await handler.function(value, **push.arguments)
                else:
                    call = partial(handler.function, value, **push.arguments)
                    result = await trio.to_thread.run_sync(
                        call, abandon_on_cancel=True, limiter=self._threads
                    )
            finally:
                self._observe[handler](self._clock() - began)
            response = b"{}" if result is None else encode_message(result)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a failure ends its own push only
            self._fail(lane, push, error)
            return
        except BaseExceptionGroup as group:
            failures, rest = group.split((Exception, SystemExit))
            if rest is None:
                self._fail(lane, push, group)
                return
            if failures is not None:
                self._report(push, failures)
            raise rest from None
        lane.current = None
        self.results["ok"] += 1
        self._reply(lane, push, "ok", response)

    @staticmethod
    def _binary(handler: Handler, payload: bytes) -> bytes:
        if not handler.reader.binary:
            raise InvalidRequest([BINARY_FAULT])
        return payload

    def _fail(self, lane: Lane, push: WaitingPush, error: BaseException) -> None:
        """Reply to a push whose handler has raised."""
        cause = unwrap_single(error)
        refusal = refusal_of(cause)
        if isinstance(cause, BrokerUnavailable):
            self._refuse(lane, push, UNAVAILABLE, "failed")
        elif isinstance(cause, InvalidRequest):
            self._refuse(lane, push, INVALID, "invalid", cause)
        elif refusal is not None:
            response = {"reason": refusal.detail, "status": refusal.status_code}
            self._answer_error(lane, push, "refused", response)
        else:
            number = self._report(push, error)
            self._answer_error(lane, push, "failed", {"reason": HANDLER_FAILED.reason, "id": number})

    def _report(self, push: WaitingPush, error: BaseException) -> str:
        """Log the exception of a handler, and return the record's id for the client."""
        number = secrets.token_hex(8)
        hint = asyncio_hint(unwrap_single(error))
        more: dict[str, object] = {"hint": hint} if hint else {}
        # The first frame is the one that called the handler.
        frames = error.__traceback__ and (error.__traceback__.tb_next or error.__traceback__)
        if self._may_log(push, "failed"):
            exc_info = (type(error), error, frames)
            log.error("push handler failed", id=number, **more, **self._about(push), exc_info=exc_info)
        return number

    def _may_log(self, push: WaitingPush, kind: str) -> bool:
        """Return whether a failure is logged: once a minute for each handler."""
        about = f"{push.handler.incoming.channel.template.text} {push.message.event}"
        return self._log_limit.allows(kind, about, trio.current_time())

    def _about(self, push: WaitingPush) -> dict[str, object]:
        handler = getattr(push.handler.function, "__qualname__", "handler")
        return {
            "plugin": self.plugin,
            "topic": push.message.topic,
            "push": push.message.event,
            "handler": handler,
        }

    def _refuse(
        self,
        lane: Lane,
        push: WaitingPush,
        refusal: Refusal,
        result: str,
        error: InvalidRequest | None = None,
    ) -> None:
        self._answer_error(lane, push, result, refused(refusal, error))

    def _answer_error(
        self, lane: Lane, push: WaitingPush, result: str, response: Mapping[str, object]
    ) -> None:
        if lane.current is push:
            lane.current = None
        self.results[result] += 1
        self._reply(lane, push, "error", _encode_error(response))


def refused(refusal: Refusal, error: InvalidRequest | None = None) -> dict[str, object]:
    """Return the response of an error reply: the reason, and each fault in ``detail``."""
    response: dict[str, object] = {"reason": refusal.reason}
    if error is not None:
        response["detail"] = [problem._asdict() for problem in error.problems]
    return response


def _encode_error(response: Mapping[str, object]) -> bytes:
    try:
        return encode_message(response)
    except (TypeError, ValueError, msgspec.MsgspecError):
        # The detail of an author's exception is no JSON.
        return msgspec.json.encode({"reason": HANDLER_FAILED.reason})
