"""Who sees what a fault does to others: one who asks over HTTP, and a browser that reads messages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from tangram.bus import Bus
from tangram.client.socket import REJOIN_DELAYS
from tangram.errors import BrokerUnavailable
from tangram.testing.checks.invariants import Evidence, check
from tangram.testing.checks.message_log import Heard, ranked
from tangram.testing.faults.catalogue.base import Chaos

__all__ = ["REJOIN_SECONDS", "TOPIC", "get", "must_answer", "publishes", "timed_publish"]

TOPIC = "tangram-chaos-fault"
"""On which a fault's own browser reads messages."""

WIDE = f"{TOPIC}-wide"
"""On which messages are published that nobody reads, for their size."""

TELL_EVERY = 0.05
"""Seconds between two messages."""

ANSWER_SECONDS = 5.0
"""Within which a server that is not hurt answers anybody."""

REJOIN_SECONDS = sum(REJOIN_DELAYS[:2])
"""That a browser waits by itself before it has joined again, where its first attempt came too early."""


async def get(host: str, port: int, path: str = "/-/healthz", *, seconds: float = ANSWER_SECONDS) -> bytes:
    """The whole answer to one request, on a connection of its own; empty if there was none.

    Raises:
        trio.TooSlowError: it did not come in time.
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
    """Somebody else asks meanwhile, and is answered."""
    import httpx

    with trio.fail_after(ANSWER_SECONDS):
        try:
            answer = await chaos.tangram.http.get("/-/healthz", headers={"connection": "close"})
        except httpx.TransportError as error:
            chaos.forgive_cut(f"somebody else asked, and was cut: {error!r}")
            raise
    assert answer.status_code == 200, f"somebody else asked, and was answered {answer.status_code}"


async def timed_publish(chaos: Chaos, size: int) -> float:
    """Publish a message of so many bytes, which nobody reads; seconds until Redis has answered.

    Raises:
        BrokerUnavailable: it did not take it.
    """
    began = trio.current_time()
    await _bus(chaos).publish(f"to:{WIDE}:n", b'"' + b"x" * size + b'"')
    return trio.current_time() - began


def _bus(chaos: Chaos) -> Bus:
    tree = chaos.tangram.server.tree
    if tree is None or tree.incarnation.bus is None:
        raise BrokerUnavailable("there is no bus just now")
    return tree.incarnation.bus


@attrs.define
class _Told:
    """Numbers of the messages that were published."""

    sent: list[int] = attrs.field(factory=list)
    """Redis has taken these."""
    refused: list[int] = attrs.field(factory=list)
    """And not, or not surely, these."""


@asynccontextmanager
async def publishes(chaos: Chaos, *, meanwhile: int = 0, lossless: bool = False) -> AsyncIterator[Heard]:
    """Around the block a browser is joined: it gets a message before it, and one after it; so many are sent
    at the block's beginning. All come in order, none twice, none is missing without a rejoin.

    With ``lossless`` none is missing at all: all are taken, all are heard, and no gap is announced. That is
    not asked for where another fault strikes beside this one, or somebody restarts something in the block.
    """
    from tangram.client import fetch_token

    tangram, told = chaos.tangram, _Told()
    mark, begun, alone = len(tangram.events), chaos.begun, chaos.alone
    token = await fetch_token(tangram.url, TOPIC)
    async with tangram.open_socket(rng=chaos.rng) as client:
        heard = Heard(await client.join(TOPIC, token=token.token))
        # Its end waits for what was sent meanwhile: each message has an answer in some seconds.
        async with trio.open_nursery() as nursery:
            await _until_heard(chaos, heard, told)
            for _ in range(meanwhile):
                nursery.start_soon(_tell, chaos, told)
            yield heard
            await _until_heard(chaos, heard, told)
    check(Evidence(messages=ranked(heard.messages, told.sent)), ["messages_in_order"])
    restarted = any(
        event.kind in {"crashed", "planned"} and event.supervisor in {"root", "incarnation"}
        for event in tangram.events[mark:]
    )
    if lossless and alone and chaos.begun == begun and not restarted:
        _must_be_whole(heard, told)


def _must_be_whole(heard: Heard, told: _Told) -> None:
    assert not told.refused, f"nothing should be lost, and {len(told.refused)} messages were not taken"
    gaps = heard.messages[-1][1] - heard.messages[0][1]
    assert gaps == 0, f"nothing should be lost, and {gaps} gaps were announced"
    lost = sorted({*told.sent} - {number for number, _ in heard.messages})
    assert not lost, f"nothing should be lost, and messages {lost[:10]} were not heard"


async def _until_heard(chaos: Chaos, heard: Heard, told: _Told) -> None:
    last = chaos.told
    seconds = chaos.heal_bound + REJOIN_SECONDS
    with trio.move_on_after(seconds):
        while not heard.messages or heard.messages[-1][0] <= last:
            await _tell(chaos, told)
            await trio.sleep(TELL_EVERY)
        return
    raise AssertionError(f"a browser got no message within {seconds:g} s")


async def _tell(chaos: Chaos, told: _Told) -> None:
    chaos.told += 1
    number = chaos.told
    try:
        await _bus(chaos).publish(f"to:{TOPIC}:n", b'{"n":%d}' % number)
    except BrokerUnavailable:
        told.refused.append(number)
    else:
        told.sent.append(number)
