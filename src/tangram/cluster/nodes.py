"""The task of a node: it renews its record on Redis, and follows the other nodes.

It lives above the incarnations, on connections of its own, so that a restart of an incarnation does not
interrupt it.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
from tangram.cluster.book import LeaseBook
from tangram.cluster.differences import CLOCK_LIMIT, Difference, Differences, Subject
from tangram.cluster.identity import ANSWER_TIME, Identity, NameStep
from tangram.cluster.lease import Lease
from tangram.cluster.library import (
    CHANGES,
    LIBRARY,
    beat_call,
    claim_call,
    give_call,
    leave_call,
    parse_beat,
    parse_take,
    take_call,
)
from tangram.cluster.registry import NodeRecord, Registry
from tangram.defaults import LEASE_TTL
from tangram.errors import BrokerRefused, BrokerUnavailable, NodeNameTaken
from tangram.log_limit import LogLimit
from tangram.redis_url import parse_redis_url

__all__ = ["NODE_TTL", "RENEW_EVERY", "Nodes", "load_functions", "new_node_id"]

log = structlog.get_logger("tangram.cluster")

NODE_TTL: Final = 6.0
"""Seconds for which a node's record lasts."""
RENEW_EVERY: Final = 1.8
"""Seconds between two beats: two of them may be lost.

A node that dies is noticed at most ``NODE_TTL`` and one beat later, within the eight seconds that presence
promises.
"""
RETRY_AFTER: Final = 0.25
"""Seconds until a beat that failed is tried again."""
START_TIMEOUT: Final = 2.0
"""Seconds that the start waits for the first answer of Redis."""
LEAVE_TIMEOUT: Final = 0.5
"""Seconds at a stop to remove the node's record."""

OnGone = Callable[[NodeRecord], None]
OnChange = Callable[[Mapping[str, str]], None]


def new_node_id() -> str:
    """Return an id for a node without a configured one: the host's name and a random part."""
    host = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in socket.gethostname())
    return f"{host[:48] or 'node'}-{secrets.token_hex(3)}"


async def load_functions(link: Link) -> Prefixes:
    """Load the functions of nodes on a new connection; without any if Redis refuses them."""
    try:
        return await load_library(link, LIBRARY)
    except BrokerRefused as error:
        log.error("nodes are off: redis refuses the functions", cause=str(error))  # noqa: TRY400 - Redis' answer needs no traceback
        return {}


class Nodes:
    """This node, and those that it knows.

    Args:
        url: the URL of Redis.
        record: the record of this node.
        describe: returns the values of the record that change, by name, for example ``members``.
        lease_ttl: seconds for which a lease lasts.
        spread: whether other nodes start at the same time.
        wall: returns seconds since the epoch.
    """

    def __init__(
        self,
        url: str,
        record: NodeRecord,
        *,
        describe: Callable[[], Mapping[str, Any]] = dict,
        lease_ttl: float = LEASE_TTL,
        spread: bool = False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        address = parse_redis_url(url)
        self.book = LeaseBook(record.id, lease_ttl, partial(secrets.token_hex, 6), spread=spread)
        """The leases of this node."""
        self.me = record.id
        """The id of this node."""
        self._record = record
        self._describe = describe
        self._interval = min(RENEW_EVERY, lease_ttl / 3)
        self._registry = Registry(record.id, NODE_TTL)
        self._identity = Identity(record.id, record.run, f"process {os.getpid()} on {socket.gethostname()}")
        self._log_limit = LogLimit()
        self._differences = Differences()
        self._wall = wall
        self._clock: float | None = None
        self._gone: list[OnGone] = []
        self._changed: list[Callable[[], None]] = []
        self._changes: list[OnChange] = []
        self._publisher = Publisher(address, name="nodes", load=load_functions, on_up=self._on_connected)
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
        self._known = trio.Event()
        """Set once this node knows the others."""

    def alive(self) -> Mapping[str, NodeRecord]:
        """Return the nodes that are alive by their ids, this one included.

        There are none while another server may have the name of this node.
        """
        return self._registry.alive if self._identity.owns else {}

    def differences(self) -> Mapping[str, Sequence[Difference]]:
        """Return the differences from this node of each node that has any."""
        return self._differences.found

    def on_gone(self, callback: OnGone) -> Callable[[], None]:
        """Call a function with the record of each node that has left or whose record has expired.

        Returns:
            A function that ends the calls.
        """
        self._gone.append(callback)
        return lambda: self._gone.remove(callback)

    def on_leases(self, callback: Callable[[], None]) -> None:
        """Call a function whenever a lease may have changed."""
        self._changed.append(callback)

    def on_change(self, callback: OnChange) -> Callable[[], None]:
        """Call a function with each change that a node has published.

        Returns:
            A function that ends the calls.
        """
        self._changes.append(callback)
        return lambda: self._changes.remove(callback)

    def renew_now(self) -> None:
        """Write the record at once, because a value of it has changed."""
        self._wake.set()

    async def wait_change(self) -> None:
        """Return after the next answer or change that this node receives."""
        await self._answered.wait()

    async def publish_change(self, change: Mapping[str, str]) -> None:
        """Publish a change to all nodes, this one included.

        Raises:
            BrokerUnavailable: Redis is away, or does not answer in time.
        """
        await self._publisher.publish(CHANGES, msgspec.json.encode(change), timeout=self._interval)

    async def take(self, lease: Lease) -> None:
        """Try to take a lease.

        Raises:
            BrokerUnavailable: Redis is away, or does not answer in time; the lease may be taken or not.
        """
        if not self._identity.owns:
            raise BrokerUnavailable("another node may have the name of this one")
        sent, value = trio.current_time(), lease.value
        # The holder takes it again from any storage, because it knows that no other node has it.
        storage = "" if lease.held else self.book.storage
        call = take_call(lease.name, value, lease.ttl, storage, secrets.token_hex(6))
        try:
            answer = parse_take(await self.call(call, timeout=self._interval))
        except trio.Cancelled:
            if not lease.held:
                # Redis may have taken the call.
                self.book.to_release[lease.name] = value
            raise
        self.book.storage = self.book.storage or answer.storage
        unwanted = lease.take_answered(sent, trio.current_time(), answer, value)
        if unwanted:
            self.book.to_release[lease.name] = unwanted
        self._notify()
        if unwanted:
            await self.release_all()

    async def release(self, name: str, to: str = "", *, shun: bool = False) -> None:
        """Release a lease, if this node holds it, and notify the other nodes.

        Args:
            name: the name of the lease.
            to: the node that shall take it.
            shun: leave it to other nodes for a while.
        """
        self.book.release(name, trio.current_time(), shun=shun)
        self._notify()
        await self.release_all(to)
        self._wake.set()

    async def release_all(self, to: str = "") -> None:
        """Release what is left to release; what Redis does not answer expires by itself."""
        while self.book.to_release:
            name, value = self.book.to_release.popitem()
            try:
                await self.call(give_call(name, value, to), timeout=self._interval)
            except BrokerUnavailable as error:
                log.debug("lease not released", lease=name, cause=str(error))

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

        Raises:
            NodeNameTaken: in a group; another server has the name of this node, at the start or later.
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
                        await self._known.wait()
                    task_status.started(self)
            finally:
                with trio.move_on_after(LEAVE_TIMEOUT, shield=True):
                    await self._leave()
                sending.cancel()

    async def _send(self, scope: trio.CancelScope) -> None:
        with scope:
            await self._publisher.run()

    def _on_connected(self) -> None:
        if self._was_connected:
            self._registry.reconnected(trio.current_time())
            self.book.distrust(trio.current_time())
        self._was_connected = True
        self._wake.set()

    def _on_listening(self, up: bool) -> None:
        # Changes may have been missed.
        self._identity.interrupted()
        if up:
            self._wake.set()

    async def _renew(self) -> NoReturn:
        while True:
            self._wake = trio.Event()
            try:
                pause = await self._beat()
            except BrokerUnavailable as error:
                log.debug("record of the node not renewed", cause=str(error))
                pause = RETRY_AFTER
            with trio.move_on_after(pause):
                await self._wake.wait()
            await trio.lowlevel.checkpoint()

    async def _beat(self) -> float:
        """Renew record and leases, and return the seconds until the next beat."""
        book, sent = self.book, trio.current_time()
        for name in book.release_abandoned(sent):
            log.warning("lease given up: its plugin has not run for a long time", lease=name)
        await self.release_all()
        # A release waits for its answer, and renewals count from here.
        sent, asked = trio.current_time(), book.asked()
        held = [name for name in book.held if "/" not in name]
        values = {"plugins": tuple(held), "standby": tuple(book.standby), "clock": self._clock}
        record = attrs.evolve(self._record, **values | dict(self._describe()))
        call = beat_call(self.me, record.fields(), NODE_TTL, secrets.token_hex(6), asked)
        before = self._wall()
        beat = parse_beat(await self.call(call, timeout=self._interval))
        self._compare_clock((before + self._wall()) / 2 - beat.time)
        step = self._identity.beaten(trio.current_time(), beat.before)
        if step is not NameStep.GO_ON:
            return await self._settle_name(step)
        again = book.answered(sent, trio.current_time(), asked, beat.leases, beat.storage)
        for gone in self._registry.answered(trio.current_time(), beat.nodes):
            self._report_gone(gone, "its record has expired")
        me = attrs.evolve(record, clock=self._clock)
        for news in self._differences.take(me, self._registry.alive.values()):
            _report_difference(news)
        self._notify()
        self._known.set()
        for name in again:
            log.warning("redis has lost a lease, it is taken again", lease=name)
            await self.take(book.lease(name))
        return self._interval

    async def _settle_name(self, step: NameStep) -> float:
        """Find out whether another server uses the name of this node.

        Returns:
            The seconds until the next beat.

        Raises:
            NodeNameTaken: it does.
        """
        identity = self._identity
        match step:
            case NameStep.ASK if self._listener.up:
                await self._ask_owner()
            case NameStep.TAKE:
                await self.call(claim_call(self.me, identity.owner, self._record.run), timeout=self._interval)
                return 0.0
            case NameStep.END:
                raise NodeNameTaken(
                    f"another server of this cluster is called {self.me!r}: {identity.rival}; give this one "
                    "another cluster.node, or none, or end the other one"
                )
            case NameStep.ASK:
                identity.interrupted()  # no answer would arrive now
                return RETRY_AFTER
            case _:
                return RETRY_AFTER
        return ANSWER_TIME

    async def _ask_owner(self) -> None:
        try:
            await self.publish_change(self._identity.question)
        except BrokerUnavailable:
            self._identity.interrupted()
            raise
        self._identity.asked(trio.current_time())

    def _compare_clock(self, lead: float) -> None:
        if abs(lead) > CLOCK_LIMIT and (self._clock is None or abs(self._clock) <= CLOCK_LIMIT):
            log.warning("clock differs from that of redis: set both by NTP", seconds=round(lead))
        if self._clock is None:
            # The other nodes shall know it at once.
            self._wake.set()
        self._clock = lead

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
        answer = self._identity.heard(change)
        if answer is not None:
            self._answer_rival(answer, change.get("place", ""))
        if self._identity.rival:
            self._wake.set()
        node = change.get("node", "")
        if change.get("what") == "left":
            record = self._registry.left(node)
            if record is not None:
                self._report_gone(record, "it has left")
        elif change.get("what") == "joined" and node != self.me:
            log.info("node joined", node=node)
            self._wake.set()
        self.book.heard(trio.current_time(), change)
        for callback in list(self._changes):
            callback(change)

    def _answer_rival(self, answer: Mapping[str, str], place: str) -> None:
        """Let a server that starts with the name of this node know that this one is alive."""
        try:
            self._publisher.publish_nowait(CHANGES, msgspec.json.encode(answer))
        except BrokerUnavailable as error:
            log.debug("question of another server not answered", cause=str(error))
            return
        if self._log_limit.allows("rival", place, trio.current_time()):
            log.warning(
                "server with the name of this node refused: give it another cluster.node",
                node=self.me,
                other=place,
            )

    def _notify(self) -> None:
        for callback in self._changed:
            callback()
        self._answered.set()
        self._answered = trio.Event()

    async def _leave(self) -> None:
        try:
            await self.call(leave_call(self.me, self._record.run), timeout=LEAVE_TIMEOUT)
        except BrokerUnavailable as error:
            log.debug("record of the node not removed", cause=str(error))


def _report_difference(one: Difference) -> None:
    there = {"node": one.node, "here": one.here, "there": one.there}
    match one.subject:
        case Subject.SECRET:
            log.error("node has another jwt_secret: set one channel.jwt_secret on all nodes", node=one.node)
        case Subject.PROTOCOL:
            log.error("node speaks another protocol: upgrade all nodes to one version of tangram", **there)
        case Subject.VERSION:
            log.warning("node has another version: upgrade all nodes to one version of tangram", **there)
        case Subject.PLUGINS:
            log.warning(
                "node has other plugins: install and configure the same ones on all nodes",
                node=one.node,
                only_here=one.here,
                only_there=one.there,
            )
        case Subject.CLOCK:
            log.warning(
                "node has another time: set the clocks of both by NTP", node=one.node, seconds=one.there
            )
