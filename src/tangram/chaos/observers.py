"""Who looks on while faults strike: one that connects all the time, one that reads numbered messages, and one
that joins and reads nothing. What they have seen is evidence for invariants that hold whatever strikes.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import attrs
import trio

from tangram.broker.ping import Probe, open_probe
from tangram.errors import BrokerUnavailable, ChannelClosed, Refused
from tangram.redis_url import parse_redis_url
from tangram.testing.checks.invariants import Evidence
from tangram.testing.checks.message_log import MessageLog, rank_messages
from tangram.testing.fakes.client_frames import UPGRADE, masked
from tangram.testing.fakes.memory_broker import MemoryBroker
from tangram.testing.run.server import RunningTangram

__all__ = ["OBSERVED_INVARIANTS", "Seen", "open_observers"]

OBSERVED_INVARIANTS = (
    "no_connection_refused",
    "messages_in_order",
    "memory_per_slow_client",
    "close_codes_documented",
    "comes_to_rest",
)
"""Invariants of what onlookers see."""

EVERY = 0.02
"""Seconds between two connections, and between two messages."""

PATIENT_EVERY = 0.5
"""Seconds between two connections while nobody takes them: the kernel keeps a few thousand for a plugin that
takes its whole start time, and no more.
"""

TRY_AGAIN = 0.1
"""Seconds until who was sent away comes again."""

ANSWER_SECONDS = 2.0
"""Within which who reads nothing has its upgrade; else it comes again."""

CONNECT_SECONDS = 5.0
"""Within which a connection is made: the kernel makes it without the server, and where its queue is full the
client asks again after 1 s, and after 2 s more.
"""

HEARD_SECONDS = 30.0
"""Within which a browser is back once everything is up: the longest back-off and the third delay of a rejoin,
and some for a slow machine.
"""

TOPIC = "tangram-chaos"
BUSY = "tangram-chaos-busy"
"""On which so much is published that who does not read falls behind."""

FILLER = '"' + "x" * 16 * 1024 + '"'
"""Each message on the busy topic: some twenty fill what the kernel and the outbox keep."""

BESIDE = 2 * 64 * 1024
"""Bytes that may wait beyond ``max_backlog``: the message in flight and the next, of those that the kit
sends."""


@attrs.define
class Seen:
    """What they have seen so far."""

    connections: int = 0
    """Connections that were made, and lost at once."""
    refused: int = 0
    messages: list[tuple[int, int]] = attrs.field(factory=list)
    """Numbered messages that were received, as in `MessageLog`."""
    sent: list[int] = attrs.field(factory=list)
    """Numbers of those that Redis has taken."""
    most_behind: int = 0
    """Bytes that waited for one client, at most."""
    sent_away: int = 0
    """How often who reads nothing was sent away."""
    heard: bool | None = None
    """A message came after the last fault; see `wait_message_after_faults`."""

    async def wait_message_after_faults(self, running: RunningTangram) -> None:
        """Until the browser that reads has got a message which is sent from now on, or the server has
        ended; at most for `HEARD_SECONDS`.
        """
        last = self.sent[-1] if self.sent else 0
        self.heard = False
        with trio.move_on_after(HEARD_SECONDS):
            while not (running.ended or (self.messages and self.messages[-1][0] > last)):  # noqa: ASYNC110 - seen by a client alone
                await trio.sleep(EVERY)
            self.heard = True

    def evidence(self, running: RunningTangram) -> Evidence:
        """For the invariants `OBSERVED_INVARIANTS`, beside all else that was seen of the server."""
        return running.evidence(
            refused=self.refused,
            heard=self.heard,
            messages=rank_messages(self.messages, self.sent),
            backlogs=[self.most_behind],
            backlog_bound=running.server.config.channel.max_backlog + BESIDE,
        )


@asynccontextmanager
async def open_observers(
    running: RunningTangram, seen: Seen, *, every: float = EVERY, seed: int = 0
) -> AsyncIterator[None]:
    """They look on for the block, and tell ``seen``."""
    rng = random.Random(seed)  # noqa: S311 - reproducible
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_knock, running, seen, every)
        nursery.start_soon(_read, running, seen, rng)
        nursery.start_soon(_read_nothing, running, seen)
        nursery.start_soon(_publish, running, seen, every)
        yield
        nursery.cancel_scope.cancel()


async def _knock(running: RunningTangram, seen: Seen, every: float) -> None:
    """Connect again and again: none may be refused, or left to wait, whatever happens inside."""
    while not running.ended:
        try:
            await _connect_and_go(running)
        except (ConnectionRefusedError, trio.TooSlowError):
            seen.refused += not running.ended  # it may have ended meanwhile: then nobody is there to refuse
        else:
            seen.connections += 1
        await trio.sleep(every if "web" in running.ports.names else max(every, PATIENT_EVERY))


async def _connect_and_go(running: RunningTangram) -> None:
    with suppress(ConnectionResetError, BrokenPipeError):
        (await _connect(running)).close()


async def _connect(running: RunningTangram) -> socket.socket:
    """A connection to the web port, non-blocking; made without holding up the loop.

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


async def _publish(running: RunningTangram, seen: Seen, every: float) -> None:
    """As a plugin with a connection of its own does, also while the server's bus is away: what browsers miss
    meanwhile has to be announced to them.
    """
    numbers = itertools.count(1)
    while not running.ended:
        with suppress(BrokerUnavailable, trio.TooSlowError):
            if running.memory is None:
                async with open_probe(parse_redis_url(running.redis_url)) as probe:
                    await _publish_by(partial(_ask, probe), running, seen, numbers, every)
            else:
                await _publish_by(partial(_tell, running.memory), running, seen, numbers, every)
        await trio.sleep(every)


async def _ask(probe: Probe, channel: str, payload: str) -> None:
    with trio.fail_after(ANSWER_SECONDS):
        await probe.ask("PUBLISH", channel, payload)


async def _tell(memory: MemoryBroker, channel: str, payload: str) -> None:
    await trio.lowlevel.checkpoint()
    if not memory.statistics().up:
        raise BrokerUnavailable("the broker in memory is not up")
    memory.publish(channel.encode(), payload.encode())


async def _publish_by(
    publish: Callable[[str, str], Awaitable[None]],
    running: RunningTangram,
    seen: Seen,
    numbers: Iterator[int],
    every: float,
) -> None:
    while not running.ended:
        number = next(numbers)
        await publish(f"to:{TOPIC}:n", f'{{"n":{number}}}')
        seen.sent.append(number)
        await publish(f"to:{BUSY}:filler", FILLER)
        tree = running.server.tree
        if tree is not None and tree.incarnation.channels is not None:
            seen.most_behind = max(seen.most_behind, tree.incarnation.channels.statistics().furthest_behind)
        await trio.sleep(every)


async def _token(running: RunningTangram, topic: str) -> str:
    from tangram.client import fetch_token

    return (await fetch_token(running.url, topic)).token


async def _read(running: RunningTangram, seen: Seen, rng: random.Random) -> None:
    """A browser that reads all; where it is sent away for good it comes as another."""
    while not running.ended:
        with suppress(Refused, ChannelClosed, trio.TooSlowError, OSError):
            token = await _token(running, TOPIC)
            async with running.open_socket(rng=rng) as client:
                channel = await client.join(TOPIC, token=token)
                # Each connection of this loop is a new membership, like each rejoin of one.
                base = 1 + max((announced for _, announced in seen.messages), default=0)
                heard = MessageLog(channel, base=base)
                heard.messages = seen.messages
                async for _event in channel:
                    pass
        await trio.sleep(TRY_AGAIN)


async def _read_nothing(running: RunningTangram, seen: Seen) -> None:
    """A browser that joins a busy topic and never reads: it is sent away, and comes again."""
    while not running.ended:
        with suppress(Refused, ChannelClosed, trio.TooSlowError, OSError):
            token = await _token(running, BUSY)
            client = await _connect(running)
            try:
                client.send(UPGRADE)
                with trio.fail_after(ANSWER_SECONDS):
                    await trio.lowlevel.wait_readable(client)
                client.send(masked(json.dumps(["1", "1", BUSY, "phx_join", {"token": token}])))
                await _until_gone(client)
                seen.sent_away += 1
            finally:
                trio.lowlevel.notify_closing(client)
                client.close()
        await trio.sleep(TRY_AGAIN)


async def _until_gone(client: socket.socket) -> None:
    """Until the other end has closed; what it has said before lies unread."""
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    while not poll.poll(0):  # noqa: ASYNC110 - the event would be what it does not read
        await trio.sleep(TRY_AGAIN)
