"""The task of a node: it renews its record on Redis, and follows the other nodes.

It lives above the incarnations, on connections of its own, so that a restart of an incarnation does not
interrupt it.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

import attrs
import msgspec
import structlog
import trio

from tangram.bus.library import load_library
from tangram.bus.listener import Listener
from tangram.bus.publisher import Publisher
from tangram.bus.resp import Link
from tangram.bus.scripts import FunctionCall, Prefixes
from tangram.cluster.library import CHANGES, LIBRARY, beat_call, leave_call, parse_beat
from tangram.cluster.registry import NodeRecord, Registry
from tangram.errors import BrokerRefused, BrokerUnavailable
from tangram.redis_url import parse_redis_url

__all__ = ["NODE_TTL", "RENEW_EVERY", "Nodes", "new_node_id"]

log = structlog.get_logger("tangram.cluster")

NODE_TTL: Final = 6.0
"""Seconds for which a node's record lasts."""
RENEW_EVERY: Final = 2.0
"""Seconds between two beats: two of them may be lost."""
RETRY_AFTER: Final = 0.25
"""Seconds until a beat that failed is tried again."""
START_TIMEOUT: Final = 2.0
"""Seconds that the start waits for the first answer of Redis."""
LEAVE_TIMEOUT: Final = 0.5
"""Seconds at a stop to remove the node's record."""

OnGone = Callable[[NodeRecord], None]


def new_node_id() -> str:
    """Return an id for a node without a configured one: the host's name and a random part."""
    host = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in socket.gethostname())
    return f"{host[:48] or 'node'}-{secrets.token_hex(3)}"


class Nodes:
    """This node, and those that it knows.

    Args:
        url: the URL of Redis.
        record: the record of this node.
        describe: returns the values of the record that change, by name, for example ``members``.
        interval: seconds between two beats.
    """

    def __init__(
        self,
        url: str,
        record: NodeRecord,
        *,
        describe: Callable[[], Mapping[str, Any]] = dict,
        interval: float = RENEW_EVERY,
    ) -> None:
        address = parse_redis_url(url)
        self.me = record.id
        """The id of this node."""
        self._record = record
        self._describe = describe
        self._interval = interval
        self._registry = Registry(record.id, NODE_TTL)
        self._gone: list[OnGone] = []
        self._publisher = Publisher(address, name="nodes", load=self._load, on_up=self._on_connected)
        self._listener = Listener(
            address,
            pinned=CHANGES,
            sink=self._take_changes,
            on_up=self._on_listening,
            name="node changes",
        )
        self._was_connected = False
        self._wake = trio.Event()
        self._answered = trio.Event()

    def alive(self) -> Mapping[str, NodeRecord]:
        """Return the nodes that are alive by their ids, this one included."""
        return self._registry.alive

    def on_gone(self, callback: OnGone) -> Callable[[], None]:
        """Call a function with the record of each node that has left or whose record has expired.

        Returns:
            A function that ends the calls.
        """
        self._gone.append(callback)
        return lambda: self._gone.remove(callback)

    def renew_now(self) -> None:
        """Write the record at once, because a value of it has changed."""
        self._wake.set()

    async def wait_change(self) -> None:
        """Return after the next answer or change that this node receives."""
        await self._answered.wait()

    async def call(self, function: FunctionCall, *, timeout: float) -> Any:
        """Call a function of `LIBRARY` on Redis, and return its answer.

        Raises:
            BrokerUnavailable: Redis is away, or does not answer in time.
            BrokerRefused: Redis refuses the call.
        """
        return await self._publisher.call(function, timeout=timeout)

    async def run(self, *, task_status: trio.TaskStatus[Nodes] = trio.TASK_STATUS_IGNORED) -> None:
        """Renew until cancelled, then leave.

        The start is reported after the first answer of Redis, or after ``START_TIMEOUT`` seconds.
        """
        # Shielded, so that the record can be removed. The bound: the tasks beside it end when this is
        # cancelled, and the rest has LEAVE_TIMEOUT.
        sending = trio.CancelScope(shield=True)
        async with trio.open_nursery() as outer:
            outer.start_soon(self._send, sending)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listener.run)
                    nursery.start_soon(self._renew)
                    with trio.move_on_after(START_TIMEOUT):
                        await self._answered.wait()
                    task_status.started(self)
            finally:
                with trio.move_on_after(LEAVE_TIMEOUT, shield=True):
                    await self._leave()
                sending.cancel()

    async def _send(self, scope: trio.CancelScope) -> None:
        with scope:
            await self._publisher.run()

    async def _load(self, link: Link) -> Prefixes:
        try:
            return await load_library(link, LIBRARY)
        except BrokerRefused as error:
            log.error("nodes are off: redis refuses the functions", cause=str(error))  # noqa: TRY400 - Redis' answer needs no traceback
            return {}

    def _on_connected(self) -> None:
        if self._was_connected:
            self._registry.reconnected(trio.current_time())
        self._was_connected = True
        self._wake.set()

    def _on_listening(self, up: bool) -> None:
        if up:
            # Changes may have been missed.
            self._wake.set()

    async def _renew(self) -> NoReturn:
        while True:
            self._wake = trio.Event()
            pause = self._interval
            try:
                await self._beat()
            except BrokerUnavailable as error:
                log.debug("record of the node not renewed", cause=str(error))
                pause = RETRY_AFTER
            with trio.move_on_after(pause):
                await self._wake.wait()
            await trio.lowlevel.checkpoint()

    async def _beat(self) -> None:
        record = attrs.evolve(self._record, **self._describe())
        candidate = secrets.token_hex(6)
        call = beat_call(self.me, record.fields(), NODE_TTL, candidate, ())
        beat = parse_beat(await self.call(call, timeout=self._interval))
        for gone in self._registry.answered(trio.current_time(), beat.nodes):
            self._report_gone(gone, "its record has expired")
        self._notify()

    def _report_gone(self, record: NodeRecord, cause: str) -> None:
        log.warning("node gone", node=record.id, cause=cause)
        for callback in list(self._gone):
            callback(record)

    def _take_changes(self, batch: Sequence[tuple[bytes, bytes]]) -> None:
        for _, payload in batch:
            try:
                change = msgspec.json.decode(payload, type=dict[str, str])
            except msgspec.DecodeError as error:
                log.warning("change of a node cannot be read", cause=str(error))
                continue
            self._take_change(change)
        self._notify()

    def _take_change(self, change: Mapping[str, str]) -> None:
        node = change.get("node", "")
        if change.get("what") == "left":
            record = self._registry.left(node)
            if record is not None:
                self._report_gone(record, "it has left")
        elif change.get("what") == "joined" and node != self.me:
            log.info("node joined", node=node)
            self._wake.set()

    def _notify(self) -> None:
        self._answered.set()
        self._answered = trio.Event()

    async def _leave(self) -> None:
        try:
            await self.call(leave_call(self.me, self._record.run), timeout=LEAVE_TIMEOUT)
        except BrokerUnavailable as error:
            log.debug("record of the node not removed", cause=str(error))
