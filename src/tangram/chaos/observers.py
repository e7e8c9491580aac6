"""Clients that observe a server while faults strike.

One connects again and again, one reads numbered messages, and one joins and does not read. Their
observations are evidence for invariants that hold under all faults.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final

import attrs
import trio

from tangram.broker.ping import Probe, open_probe
from tangram.errors import BrokerUnavailable, ChannelClosed, Refused
from tangram.redis_url import parse_redis_url
from tangram.testing.checks.invariants import Evidence, check
from tangram.testing.checks.message_log import KeptLog, MessageLog, rank_messages
from tangram.testing.fakes.client_frames import UPGRADE, masked
from tangram.testing.fakes.memory_broker import MemoryBroker
from tangram.testing.run.server import RunningTangram

__all__ = ["KEPT", "OBSERVED_INVARIANTS", "Observations", "open_observers", "recover_and_restart"]

OBSERVED_INVARIANTS: Final = (
    "no_connection_refused",
    "messages_in_order",
    "nothing_missed",
    "memory_per_slow_client",
    "close_codes_documented",
    "comes_to_rest",
)
"""Invariants that are judged by these observations."""

EVERY: Final = 0.02
"""Seconds between two connections, and between two messages."""

PATIENT_EVERY: Final = 0.5
"""Seconds between two connections while the web child is down.

The kernel queues a few thousand connections: enough for a plugin that takes its whole start time, and
no more.
"""

SCENARIO_EVERY: Final = 0.1
"""The same for a scenario of ``every_step``, in virtual seconds."""

TRY_AGAIN: Final = 0.1
"""Seconds until a client that was closed connects again."""

ANSWER_SECONDS: Final = 2.0
"""Seconds within which the client that does not read has its upgrade; else it connects again."""

CONNECT_SECONDS: Final = 5.0
"""Seconds within which a connection is made.

The kernel makes it without the server. Where its queue is full, the client asks again after 1 s, and
after 2 s more.
"""

HEARD_SECONDS: Final = 30.0
"""Seconds within which a browser is back once everything is up.

This is the longest back-off and the third delay of a rejoin, and some more for a slow machine.
"""

TOPIC: Final = "tangram-chaos"
BUSY: Final = "tangram-chaos-busy"
"""Topic of so many messages that a client that does not read falls behind."""

KEPT: Final = "tangram-chaos-kept-*"
"""Pattern of two more topics. Clients that recover read them, if these topics have a history."""
BY_SERVER: Final = "tangram-chaos-kept-server"
"""Topic of messages that the server publishes and records in one step."""
BY_PUBLISH: Final = "tangram-chaos-kept-publish"
"""Topic of messages of a program that only knows ``PUBLISH``."""

FILLER: Final = '"' + "x" * 16 * 1024 + '"'
"""A message on the busy topic: some twenty fill the kernel's buffers and the outbox."""

BESIDE: Final = 2 * 64 * 1024
"""Bytes that may wait beyond ``max_backlog``: the message in flight and the next, of those that the kit
sends.
"""


@attrs.define
class Observations:
    """The observations so far."""

    connections: int = 0
    """Connections that were made, and closed at once."""
    refused: int = 0
    messages: list[tuple[int, int]] = attrs.field(factory=list)
    """Numbered messages that were received, as in `MessageLog`."""
    sent: list[int] = attrs.field(factory=list)
    """Numbers of the messages that Redis has taken."""
    most_behind: int = 0
    """Bytes that waited for one client, at most."""
    sent_away: int = 0
    """How often the client that does not read was closed."""
    heard: bool | None = None
    """Whether a message came after the last fault; see `wait_message_after_faults`."""
    reads: bool = False
    """Whether the browser that reads all numbered messages is among the clients."""
    kept: dict[str, KeptLog] = attrs.field(factory=dict)
    """Messages of the clients that recover, by topic; empty if no topic has a history."""
    kept_sent: dict[str, list[int]] = attrs.field(factory=dict)
    """Numbers of the messages that Redis has taken, by topic."""

    @property
    def recoveries(self) -> int:
        """How many joins of the clients that recover have missed nothing."""
        return sum(log.recovered for log in self.kept.values())

    async def wait_message_after_faults(self, running: RunningTangram) -> None:
        """Wait until each reading client gets a message sent from now on, or the server has ended.

        The bound is `HEARD_SECONDS`; ``heard`` tells whether it was kept.
        """
        last = [sent[-1] if sent else 0 for sent, _ in self._streams()]
        self.heard = False
        with trio.move_on_after(HEARD_SECONDS):
            while not (running.ended or self._all_behind(last)):  # noqa: ASYNC110 - the client has no event for it
                await trio.sleep(EVERY)
            self.heard = True

    def _streams(self) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Return the numbers that were sent and received, of each reading client."""
        kept = [(self.kept_sent[topic], log.messages) for topic, log in self.kept.items()]
        return [(self.sent, self.messages), *kept] if self.reads else kept

    def _all_behind(self, last: Sequence[int]) -> bool:
        """Return whether each client has received a message behind the given number."""
        return all(
            received and received[-1][0] > number
            for number, (_, received) in zip(last, self._streams(), strict=True)
        )

    def evidence(self, running: RunningTangram) -> Evidence:
        """Return the evidence for `OBSERVED_INVARIANTS`, beside all other evidence of the server."""
        return running.evidence(
            refused=self.refused,
            heard=self.heard,
            messages=rank_messages(self.messages, self.sent),
            kept={topic: log.evidence(self.kept_sent[topic]) for topic, log in self.kept.items()},
            backlogs=[self.most_behind],
            backlog_bound=running.server.config.channel.max_backlog + BESIDE,
        )


@asynccontextmanager
async def open_observers(
    running: RunningTangram, seen: Observations, *, every: float = EVERY, seed: int = 0
) -> AsyncIterator[None]:
    """Run the observing clients for the block; their observations go to ``seen``.

    Args:
        running: the server.
        seen: collects the observations.
        every: seconds between two connections, and between two messages.
        seed: of the browser's delays.
    """
    rng = random.Random(seed)  # noqa: S311 - reproducible
    seen.reads = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_connect_repeatedly, running, seen, every)
        nursery.start_soon(_read, running, seen, rng)
        nursery.start_soon(_join_without_reading, running, seen)
        nursery.start_soon(_publish, running, partial(_note_sent, running, seen), _messages, every)
        _observe_kept(nursery, running, seen, every, rng)
        yield
        nursery.cancel_scope.cancel()


def _observe_kept(
    nursery: trio.Nursery, running: RunningTangram, seen: Observations, every: float, rng: random.Random
) -> None:
    """Start the clients that recover, and their publishers, if there is a history."""
    tree = running.server.tree
    if tree is None or tree.rules.find(BY_SERVER) is None:
        return
    for topic in (BY_SERVER, BY_PUBLISH):
        seen.kept[topic], seen.kept_sent[topic] = KeptLog(), []
        nursery.start_soon(_recover, running, seen.kept[topic], topic, rng)
    nursery.start_soon(_publish_by_server, running, seen.kept_sent[BY_SERVER], every)
    nursery.start_soon(_publish, running, seen.kept_sent[BY_PUBLISH].append, _kept_messages, every)


async def recover_and_restart(running: RunningTangram) -> None:
    """Restart everything while clients recover: a scenario for ``every_step``.

    The topics of `KEPT` need a history: ``config={"channel": {"history": [{"topics": KEPT}]}}``.

    Raises:
        InvariantBroken: a client has missed a message, or gets none any more.
    """
    seen = Observations()
    async with trio.open_nursery() as nursery:
        _observe_kept(nursery, running, seen, SCENARIO_EVERY, random.Random(0))  # noqa: S311 - reproducible
        if not seen.kept:
            raise ValueError(f"no topic {KEPT!r} has a history: add one to [[channel.history]]")
        for last in (False, True):
            await seen.wait_message_after_faults(running)
            if not last and not running.ended:
                await running.server.restart()
        nursery.cancel_scope.cancel()
    check(seen.evidence(running), ["nothing_missed", "comes_to_rest"])


async def _connect_repeatedly(running: RunningTangram, seen: Observations, every: float) -> None:
    """Connect again and again: no connection may be refused, or left to wait."""
    while not running.ended:
        try:
            await _connect_and_go(running)
        except (ConnectionRefusedError, trio.TooSlowError):
            seen.refused += not _may_refuse(running)
        else:
            seen.connections += 1
        await trio.sleep(every if "web" in running.ports.names else max(every, PATIENT_EVERY))


def _may_refuse(running: RunningTangram) -> bool:
    """Return whether the server may refuse connections, as from the beginning of its stop."""
    return running.ended or running.server.stopping


async def _connect_and_go(running: RunningTangram) -> None:
    with suppress(ConnectionResetError, BrokenPipeError):
        (await _connect(running)).close()


async def _connect(running: RunningTangram) -> socket.socket:
    """Return a non-blocking connection to the web port, made without blocking the loop.

    Raises:
        OSError: it is refused, or ends at once.
        trio.TooSlowError: it is not made within `CONNECT_SECONDS`.
    """
    if running.port is not None:
        return running.connect()
    held = running.server.held[0]
    client = socket.socket(socket.AF_INET6 if ":" in held.host else socket.AF_INET)
    client.setblocking(False)
    try:
        with trio.fail_after(CONNECT_SECONDS):
            error = client.connect_ex((held.host, held.port))
            if error == errno.EINPROGRESS:
                await trio.lowlevel.wait_writable(client)
                error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except BaseException:
        client.close()
        raise
    if error:
        client.close()
        raise OSError(error, os.strerror(error))
    return client


Messages = Callable[[int], Sequence[tuple[str, str]]]
"""Returns the messages of a number, the numbered one last: where it fails, Redis has not taken it."""


def _messages(number: int) -> Sequence[tuple[str, str]]:
    return (f"to:{BUSY}:filler", FILLER), (f"to:{TOPIC}:n", f'{{"n":{number}}}')


def _kept_messages(number: int) -> Sequence[tuple[str, str]]:
    return ((f"to:{BY_PUBLISH}:n", f'{{"n":{number}}}'),)


def _note_sent(running: RunningTangram, seen: Observations, number: int) -> None:
    seen.sent.append(number)
    tree = running.server.tree
    if tree is not None and tree.incarnation.channels is not None:
        seen.most_behind = max(seen.most_behind, tree.incarnation.channels.statistics().furthest_behind)


async def _publish(
    running: RunningTangram, note_sent: Callable[[int], None], messages: Messages, every: float
) -> None:
    """Publish on a connection of its own, also while the server's bus is away.

    The gap that browsers miss meanwhile has to be announced to them.
    """
    numbered = ((number, messages(number)) for number in itertools.count(1))
    while not running.ended:
        with suppress(BrokerUnavailable, trio.TooSlowError):
            if running.memory is None:
                async with open_probe(parse_redis_url(running.redis_url)) as probe:
                    publish = partial(_publish_to_redis, probe)
                    await _publish_by(publish, running, note_sent, numbered, every)
            else:
                publish = partial(_publish_to_memory, running.memory)
                await _publish_by(publish, running, note_sent, numbered, every)
        await trio.sleep(every)


async def _publish_to_redis(probe: Probe, *messages: tuple[str, str]) -> None:
    with trio.fail_after(ANSWER_SECONDS):
        for channel, payload in messages:
            await probe.ask("PUBLISH", channel, payload)


async def _publish_to_memory(memory: MemoryBroker, *messages: tuple[str, str]) -> None:
    await trio.lowlevel.checkpoint()
    if not memory.statistics().up:
        raise BrokerUnavailable("the broker in memory is down")
    for channel, payload in messages:
        memory.publish(channel.encode(), payload.encode())


async def _publish_by(
    publish: Callable[..., Awaitable[None]],
    running: RunningTangram,
    note_sent: Callable[[int], None],
    numbered: Iterator[tuple[int, Sequence[tuple[str, str]]]],
    every: float,
) -> None:
    while not running.ended:
        number, messages = next(numbered)
        await publish(*messages)
        note_sent(number)
        await trio.sleep(every)


async def _publish_by_server(running: RunningTangram, sent: list[int], every: float) -> None:
    """Publish by the server's bus, as plugins do: the message and its record are one step."""
    for number in itertools.count(1):
        if running.ended:
            return
        tree = running.server.tree
        bus = None if tree is None else tree.incarnation.bus
        if bus is not None:
            with suppress(BrokerUnavailable):
                await bus.publish(f"to:{BY_SERVER}:n", f'{{"n":{number}}}')
                sent.append(number)
        await trio.sleep(every)


async def _token(running: RunningTangram, topic: str) -> str:
    from tangram.client import fetch_token

    return (await fetch_token(running.url, topic)).token


async def _read(running: RunningTangram, seen: Observations, rng: random.Random) -> None:
    """Run the browser that reads everything; where it is closed for good, another one comes."""
    while not running.ended:
        with suppress(Refused, ChannelClosed, trio.TooSlowError, OSError):
            token = await _token(running, TOPIC)
            async with running.open_socket(rng=rng) as client:
                channel = await client.join(TOPIC, token=token)
                # Each connection of this loop is a new membership, like each rejoin of one.
                base = 1 + max((announced for _, announced in seen.messages), default=0)
                log = MessageLog(channel, base=base)
                log.messages = seen.messages
                async for _event in channel:
                    pass
        await trio.sleep(TRY_AGAIN)


async def _recover(running: RunningTangram, log: KeptLog, topic: str, rng: random.Random) -> None:
    """Run a client that recovers; the next one goes on at its position."""
    while not running.ended:
        with suppress(Refused, ChannelClosed, trio.TooSlowError, OSError):
            token = await _token(running, topic)
            async with running.open_socket(rng=rng) as client:
                channel = await client.join(topic, token=token, recover=log.position or True)
                log.follow(channel)
                async for _event in channel:
                    pass
        await trio.sleep(TRY_AGAIN)


async def _join_without_reading(running: RunningTangram, seen: Observations) -> None:
    """Run the browser that joins a busy topic, does not read, is closed, and comes again."""
    while not running.ended:
        with suppress(Refused, ChannelClosed, trio.TooSlowError, OSError):
            token = await _token(running, BUSY)
            client = await _connect(running)
            try:
                client.send(UPGRADE)
                with trio.fail_after(ANSWER_SECONDS):
                    await trio.lowlevel.wait_readable(client)
                client.send(masked(json.dumps(["1", "1", BUSY, "phx_join", {"token": token}])))
                await _wait_closed(client)
                seen.sent_away += 1
            finally:
                trio.lowlevel.notify_closing(client)
                client.close()
        await trio.sleep(TRY_AGAIN)


async def _wait_closed(client: socket.socket) -> None:
    """Wait until the other end has closed; its bytes stay unread."""
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    while not poll.poll(0):  # noqa: ASYNC110 - readable is no event for the end while bytes wait
        await trio.sleep(TRY_AGAIN)
