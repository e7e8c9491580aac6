"""Checks for every broker, the one in memory and the real one alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Protocol

import hiredis
import trio

from tangram.broker import BrokerStatistics, ping
from tangram.bus import Bus
from tangram.bus.resp import Dial, current_dial, dial_socket, pack
from tangram.chaos.conformance.answers import GARBAGE, Talk, check_answers
from tangram.errors import BrokerUnavailable
from tangram.redis_url import parse_redis_url

__all__ = ["Broker", "check_broker"]

START_SECONDS: Final = 60.0
"""Seconds for a start, and for an end: bounds that end a hang."""

ANSWER_SECONDS: Final = 30.0
"""Seconds for an answer, which takes milliseconds."""

MESSAGES: Final = 50

BIG: Final = bytes(range(256)) * 4096
"""A megabyte of all bytes, line ends among them."""

MOST_READ: Final = 16 * 1024
"""Bytes that a broker surely reads at once (PROTO_IOBUF_LEN)."""

PAGE: Final = BIG[:15_000]
"""Less than 16 KiB: Valkey 9 counts longer strings once, however often they wait
(min-string-size-avoid-copy-reply).
"""

PAGES: Final = 50
"""Messages that are published at once."""

MOST_UNREAD: Final = 256
"""Times `PAGES` after which a subscriber that does not read must be disconnected: 192 MB.

client-output-buffer-limit allows 32 MB; a kernel that has grown its buffers (tcp_rmem, tcp_wmem) keeps
as much again.
"""


class Broker(Protocol):
    """A broker as the tree uses it."""

    def statistics(self) -> BrokerStatistics: ...

    async def run(self, *, task_status: trio.TaskStatus[str] = ...) -> None: ...


async def check_broker(
    make: Callable[[], Broker],
    kill: Callable[[Broker], object],
    *,
    dial: Callable[[Broker], Dial] | None = None,
) -> None:
    """Check that a broker answers, delivers, isolates clients, dies and returns.

    Messages come in order and have any size. It reports its death, comes back empty at the same
    address, and is gone when it is cancelled.

    Args:
        make: returns a new broker.
        kill: ends one incarnation from outside.
        dial: connects to it without its port; everything is checked by the port unless given.

    Raises:
        AssertionError: it does not conform; the message says how.
        ExceptionGroup: the same, from a task.
    """
    broker = make()
    token = current_dial.set(dial_socket if dial is None else dial(broker))
    try:
        url = await _check_incarnations(broker, kill)
    finally:
        current_dial.reset(token)
    try:
        await ping(url, ANSWER_SECONDS)
    except BrokerUnavailable:
        return
    raise AssertionError("it was cancelled, but something still answers at its address")


async def _check_incarnations(broker: Broker, kill: Callable[[Broker], object]) -> str:
    async with trio.open_nursery() as nursery:
        ended = trio.Event()
        told: list[BaseException] = []

        async def live(*, task_status: trio.TaskStatus[str]) -> None:
            try:
                await broker.run(task_status=task_status)
            except BrokerUnavailable as error:
                told.append(error)
            ended.set()

        url = await _start(nursery, live)
        await ping(url, ANSWER_SECONDS)
        assert broker.statistics().up, "it answers, but its statistics say that it is down"
        await _check_incarnation(url)
        client = await _talk(url)
        async with client.stream:
            await client.ask("SET", "kept", "1")
            kill(broker)
            with trio.fail_after(START_SECONDS):
                await ended.wait()
            assert await client.wait_closed() == b"", (
                "it died, but a client received something else than the end"
            )
        assert told, "it died, but did not raise BrokerUnavailable"
        assert not broker.statistics().up, "it died, but its statistics say that it is up"
        again = await _start(nursery, live)
        assert again == url, f"it came back at {again!r}, but plugins know it at {url!r}"
        client = await _talk(url)
        async with client.stream:
            assert await client.ask("GET", "kept") is None, "a key was kept over its death"
        await _carries_messages(url)
        nursery.cancel_scope.cancel()
    return url


async def _check_incarnation(url: str) -> None:
    """Check one incarnation."""
    await _carries_messages(url)
    await check_answers(partial(_talk, url))
    await _carries_anything(url)
    await _keeps_subscriptions_apart(url)
    await _survives_garbage(url)
    await _disconnects_a_silent_subscriber(url)


async def _talk(url: str) -> Talk:
    dial = current_dial.get()
    assert dial is not None
    with trio.fail_after(ANSWER_SECONDS):
        return Talk(await dial(parse_redis_url(url)))


async def _start(nursery: trio.Nursery, live: Callable[..., Awaitable[None]]) -> str:
    with trio.fail_after(START_SECONDS):
        url: str = await nursery.start(live)
    return url


async def _carries_messages(url: str) -> None:
    """Check that one program receives all messages of another one, in order."""
    got: list[bytes] = []
    all_there = trio.Event()

    def sink(batch: Sequence[tuple[bytes, bytes]]) -> None:
        got.extend(payload for _, payload in batch)
        if len(got) >= MESSAGES:
            all_there.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(Bus(url, sink=sink).run)
        other: Bus = await nursery.start(Bus(url).run)
        sent = [b"%d" % number for number in range(MESSAGES)]
        for payload in sent:
            receivers = await other.publish("to:conformance:n", payload)
            assert receivers == 2, f"two are subscribed, PUBLISH answers {receivers}"
        with trio.fail_after(ANSWER_SECONDS):
            await all_there.wait()
        assert got == sent, "messages did not come in the order in which they were sent"
        nursery.cancel_scope.cancel()


async def _carries_anything(url: str) -> None:
    """Check keys and payloads of any size and bytes."""
    one, other = await _talk(url), await _talk(url)
    async with one.stream, other.stream:
        await one.ask("SET", b"\xff\r\n", BIG)
        assert await one.ask("GET", b"\xff\r\n") == BIG, "a megabyte of bytes is not what was set"
        await other.ask("SUBSCRIBE", b"\xff\r\n")
        assert await one.ask("PUBLISH", b"\xff\r\n", BIG) == 1
        message = await other.read()
        assert message == [b"message", b"\xff\r\n", BIG], "a megabyte of bytes is not what was published"


async def _keeps_subscriptions_apart(url: str) -> None:
    """Check that a channel and a pattern of one name are two; ``^`` negates in a pattern."""
    one, other = await _talk(url), await _talk(url)
    async with one.stream, other.stream:
        await other.ask("SUBSCRIBE", "n")
        await other.ask("PSUBSCRIBE", "n")
        await other.ask("PSUBSCRIBE", "[^m]")
        receivers = await one.ask("PUBLISH", "n", "x")
        assert receivers == 3, f"a channel and two patterns are subscribed to, PUBLISH answers {receivers!r}"
        got = [await other.read() for _ in range(3)]
        expected = [[b"message", b"n", b"x"], *([b"pmessage", one, b"n", b"x"] for one in (b"[^m]", b"n"))]
        # Channels come first; the order of patterns is not promised.
        in_order = got[:1] + sorted(got[1:], key=str)
        assert in_order == expected, f"a channel and two patterns got {got!r}"
        await other.ask("UNSUBSCRIBE")
        receivers = await one.ask("PUBLISH", "n", "x")
        assert receivers == 2, f"two patterns are left after UNSUBSCRIBE, PUBLISH answers {receivers!r}"


async def _survives_garbage(url: str) -> None:
    """Check that a client with invalid requests is disconnected, and others are not."""
    other_client = await _talk(url)
    async with other_client.stream:
        for garbage in GARBAGE:
            one = await _talk(url)
            async with one.stream:
                await one.stream.send_all(garbage)
                said = await one.wait_closed()
            # Where bytes stay unread, the kernel may reset the connection before the error arrives.
            told = said.startswith(b"-ERR Protocol error") or len(garbage) > MOST_READ
            assert told, f"{garbage[:40]!r} is answered {said!r}"
            assert await other_client.ask("PING") == b"PONG", (
                f"after {garbage[:40]!r} another client is stuck"
            )
        one = await _talk(url)
        async with one.stream:
            await one.stream.send_all(b"\r\n*0\r\n\xff\xfe\r\n")
            assert isinstance(await one.read(), hiredis.ReplyError), "a command of no letters is taken"
            assert await one.ask("PING") == b"PONG", "an unknown command ends the connection"
        await (await _half_asked(url)).aclose()
        assert await other_client.ask("PING") == b"PONG", "after half a request another client is stuck"


async def _half_asked(url: str) -> trio.abc.Stream:
    one = await _talk(url)
    await one.stream.send_all(b"*2\r\n$3\r\nGET\r\n$100\r\n")
    return one.stream


async def _disconnects_a_silent_subscriber(url: str) -> None:
    """Check that a subscriber that does not read is disconnected, and others get everything."""
    silent, reading, publisher = await _talk(url), await _talk(url), await _talk(url)
    async with silent.stream, reading.stream, publisher.stream:
        await silent.ask("SUBSCRIBE", "n")
        await reading.ask("SUBSCRIBE", "n")
        for _ in range(MOST_UNREAD):
            await publisher.stream.send_all(pack(("PUBLISH", "n", PAGE)) * PAGES)
            receivers = [await publisher.read() for _ in range(PAGES)]
            for _ in range(PAGES):
                message = await reading.read()
                assert message == [b"message", b"n", PAGE], "a reading subscriber gets something else"
            if receivers[-1] == 1:
                return
        raise AssertionError(
            f"{MOST_UNREAD * PAGES * len(PAGE)} bytes were published to a subscriber that does not read, and "
            "it is still connected"
        )
