"""Clients that check how a fault affects others: an HTTP request, and a browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

from tangram.bus import Bus
from tangram.client.socket import REJOIN_DELAYS
from tangram.errors import BrokerUnavailable
from tangram.testing.checks.invariants import Evidence, check
from tangram.testing.checks.message_log import MessageLog, rank_messages
from tangram.testing.faults.catalogue.base import Chaos
from tangram.testing.run.server import RunningTangram

__all__ = ["REJOIN_SECONDS", "TOPIC", "expect_delivery", "get", "must_answer", "timed_publish"]

TOPIC: Final = "tangram-chaos-fault"
"""Topic on which a fault's own browser reads messages."""

WIDE: Final = f"{TOPIC}-wide"
"""Topic of large messages that no client reads; only their size matters."""

PUBLISH_EVERY: Final = 0.05
"""Seconds between two messages."""

ANSWER_SECONDS: Final = 5.0
"""Seconds within which a server that is not hurt answers any client."""

REJOIN_SECONDS: Final = sum(REJOIN_DELAYS[:2])
"""Seconds that a browser waits by itself before it joins again, where its first attempt came too early."""


async def get(host: str, port: int, path: str = "/-/healthz", *, seconds: float = ANSWER_SECONDS) -> bytes:
    """Send one request on a new connection and return the answer; empty if there was none.

    Raises:
        trio.TooSlowError: the answer did not come within ``seconds``.
    """
    answer = b""
    with trio.fail_after(seconds):
        async with await trio.open_tcp_stream(host, port) as stream:
            try:
                await stream.send_all(
                    f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
                )
                while data := await stream.receive_some(65536):
                    answer += data
            except trio.BrokenResourceError:
                return b""
    return answer


async def must_answer(chaos: Chaos) -> None:
    """Check that another client is answered meanwhile."""
    import httpx

    with trio.fail_after(ANSWER_SECONDS):
        try:
            answer = await chaos.tangram.http.get("/-/healthz", headers={"connection": "close"})
        except httpx.TransportError as error:
            chaos.forgive_cut(f"the request of another client was cut: {error!r}")
            raise
    assert answer.status_code == 200, f"another client was answered {answer.status_code}"


async def timed_publish(chaos: Chaos, size: int) -> float:
    """Publish a message of ``size`` bytes and return the seconds until Redis has answered.

    No client reads its topic.

    Raises:
        BrokerUnavailable: Redis did not take it.
    """
    began = trio.current_time()
    await _bus(chaos).publish(f"to:{WIDE}:n", b'"' + b"x" * size + b'"')
    return trio.current_time() - began


def _bus(chaos: Chaos) -> Bus:
    tree = chaos.tangram.server.tree
    if tree is None or tree.incarnation.bus is None:
        raise BrokerUnavailable("the bus is between two incarnations")
    return tree.incarnation.bus


@attrs.define
class _Published:
    """Numbers of the messages that were published."""

    sent: list[int] = attrs.field(factory=list)
    """Redis has taken these."""
    refused: list[int] = attrs.field(factory=list)
    """Redis has refused these, or it is not known whether it took them."""


@asynccontextmanager
async def expect_delivery(
    chaos: Chaos, *, meanwhile: int = 0, lossless: bool = False
) -> AsyncIterator[MessageLog]:
    """Join a browser around the block and check that published messages reach it.

    The browser gets a message before the block and another one after it. All come in order, none twice,
    and none is missing without a rejoin.

    Args:
        chaos: for the server under test.
        meanwhile: messages that are published at the beginning of the block, beside the two.
        lossless: check besides that Redis takes every message, that all arrive, and that no gap is
            announced. This is not checked where another fault was active, or a part of the server was
            restarted meanwhile.
    """
    from tangram.client import fetch_token

    tangram, published = chaos.tangram, _Published()
    mark, begun, alone = len(tangram.events), chaos.begun, chaos.alone
    token = await fetch_token(tangram.url, TOPIC)
    async with tangram.open_socket(rng=chaos.rng) as client:
        log = MessageLog(await client.join(TOPIC, token=token.token))
        # The end of this nursery waits for the publishes in flight: each is answered within seconds.
        async with trio.open_nursery() as nursery:
            await _wait_next_message(chaos, log, published)
            for _ in range(meanwhile):
                nursery.start_soon(_publish_number, chaos, published)
            yield log
            await _wait_next_message(chaos, log, published)
        whole = lossless and alone and chaos.begun == begun and not _restarted(tangram, mark)
        if whole:
            await _wait_all_delivered(chaos, log, published)
    check(Evidence(messages=rank_messages(log.messages, published.sent)), ["messages_in_order"])
    if whole:
        _check_lossless(log, published)


def _restarted(tangram: RunningTangram, mark: int) -> bool:
    """Return whether a part of the server crashed or was restarted since ``mark``."""
    return any(
        event.kind in {"crashed", "planned"} and event.supervisor in {"root", "incarnation"}
        for event in tangram.events[mark:]
    )


async def _wait_all_delivered(chaos: Chaos, log: MessageLog, published: _Published) -> None:
    """Wait until every message that Redis took has arrived, or a bound has passed.

    Messages may still be in transit when the fault ends, for example in the buffers of a slow proxy.
    Only a message that never comes is lost.
    """
    missing = set(published.sent)
    checked = 0
    with trio.move_on_after(chaos.heal_bound + REJOIN_SECONDS):
        while missing:
            missing.difference_update(number for number, _ in log.messages[checked:])
            checked = len(log.messages)
            await trio.sleep(PUBLISH_EVERY)


def _check_lossless(log: MessageLog, published: _Published) -> None:
    assert not published.refused, (
        f"nothing should be lost, but {len(published.refused)} messages were refused"
    )
    gaps = log.messages[-1][1] - log.messages[0][1]
    assert gaps == 0, f"nothing should be lost, but {gaps} gaps were announced"
    lost = sorted({*published.sent} - {number for number, _ in log.messages})
    assert not lost, f"nothing should be lost, but messages {lost[:10]} did not arrive"


async def _wait_next_message(chaos: Chaos, log: MessageLog, published: _Published) -> None:
    last = chaos.published
    seconds = chaos.heal_bound + REJOIN_SECONDS
    with trio.move_on_after(seconds):
        while not log.messages or log.messages[-1][0] <= last:
            await _publish_number(chaos, published)
            await trio.sleep(PUBLISH_EVERY)
        return
    raise AssertionError(f"a browser got no message within {seconds:g} s")


async def _publish_number(chaos: Chaos, published: _Published) -> None:
    chaos.published += 1
    number = chaos.published
    try:
        await _bus(chaos).publish(f"to:{TOPIC}:n", b'{"n":%d}' % number)
    except BrokerUnavailable:
        published.refused.append(number)
    else:
        published.sent.append(number)
