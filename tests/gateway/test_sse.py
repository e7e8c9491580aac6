"""Server-Sent Events of a topic, by a client that knows only HTTP."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tangram import History, Plugin
from tangram.gateway.sse import format_event
from tangram.testing import RunningTangram, open_tangram


class Stream:
    """The blocks of a stream as fields, without presence, read from a socket."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._data = b""
        self.head = b""

    async def _read(self) -> None:
        await trio.lowlevel.wait_readable(self._client)
        data = self._client.recv(65536)
        assert data, "the stream has ended"
        self._data += data

    async def begin(self, request: bytes) -> None:
        self._client.sendall(request)
        while b"\r\n\r\n" not in self._data:
            await self._read()
        self.head, _, self._data = self._data.partition(b"\r\n\r\n")

    async def next(self) -> dict[str, str]:
        """Return the next block; the sizes of chunks are no fields."""
        while True:
            while b"\n\n" not in self._data:
                with trio.fail_after(60):
                    await self._read()
            block, _, self._data = self._data.partition(b"\n\n")
            pairs = (line.split(": ", 1) for line in block.decode().split("\n") if ": " in line)
            fields = dict(pairs)
            if fields and not fields.get("event", "").startswith("presence_"):
                return fields


@pytest.fixture
async def tangram() -> AsyncIterator[RunningTangram]:
    """A server with one topic that has a history."""
    async with open_tangram([Plugin(history={"kept": History()})], fakes=True, memory_port=True) as running:
        yield running


async def token(tangram: RunningTangram, topic: str) -> str:
    return str((await tangram.http.post("/token", json={"channel": topic})).json()["token"])


@asynccontextmanager
async def events(tangram: RunningTangram, topic: str, last: str = "") -> AsyncIterator[Stream]:
    """Open a stream."""
    given = f"last-event-id: {last}\r\n" if last else ""
    path = f"/sse/{topic}?token={await token(tangram, topic)}"
    with tangram.connect() as client:
        stream = Stream(client)
        await stream.begin(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{given}\r\n".encode())
        assert stream.head.startswith(b"HTTP/1.1 200")
        assert b"text/event-stream" in stream.head
        yield stream
    await trio.sleep(1)


async def publish(tangram: RunningTangram, topic: str, number: int) -> str | None:
    state = tangram.server.tree.incarnation.require_state()  # type: ignore[union-attr]
    return (await state.publish(f"to:{topic}:n", {"n": number})).position


async def test_a_client_recovers_by_its_last_event_id(
    autojump_clock: MockClock, tangram: RunningTangram
) -> None:
    """``id`` is a position, and ``Last-Event-ID`` brings the missed events without a library."""
    async with events(tangram, "kept") as first:
        joined = await first.next()
        await publish(tangram, "kept", 1)
        event, position = await first.next(), await first.next()
    await publish(tangram, "kept", 2)
    async with events(tangram, "kept", last=position["id"]) as second:
        again = await second.next()
        await publish(tangram, "kept", 3)
        missed = [await second.next() for _ in range(4)]

    assert joined["event"] == "tangram:joined"
    assert event == {"event": "n", "data": '{"n":1}'}
    assert '"recovered":true' in again["data"]
    assert [one["data"] for one in missed if "data" in one] == ['{"n":2}', '{"n":3}']
    assert [sorted(one) for one in missed].count(["id"]) == 2


async def test_a_topic_without_history_has_no_ids(autojump_clock: MockClock, tangram: RunningTangram) -> None:
    """It streams the events alone."""
    async with events(tangram, "other") as stream:
        joined = await stream.next()
        await publish(tangram, "other", 1)

        assert "id" not in joined
        assert await stream.next() == {"event": "n", "data": '{"n":1}'}


async def test_a_wrong_token_is_refused_before_the_stream(
    autojump_clock: MockClock, tangram: RunningTangram
) -> None:
    """The status says it, and the membership does not begin."""
    other = await token(tangram, "other")

    answer = await tangram.http.get(f"/sse/kept?token={other}")

    assert answer.status_code == 403
    assert tangram.server.tree.incarnation.channels.statistics().connections == 0  # type: ignore[union-attr]


async def test_a_client_that_leaves_is_forgotten(autojump_clock: MockClock, tangram: RunningTangram) -> None:
    """The end of the request ends the membership."""
    async with events(tangram, "kept") as stream:
        await stream.next()
    channels = tangram.server.tree.incarnation.channels  # type: ignore[union-attr]
    await publish(tangram, "kept", 1)

    assert channels.statistics().hub.members == 0  # type: ignore[union-attr]


@given(event=st.text(), payload=st.binary())
def test_no_event_or_payload_breaks_out_of_its_block(event: str, payload: bytes) -> None:
    """Every line of an event is a field of it, and only its end is empty."""
    block = format_event(event.replace("tangram:position", ""), payload)

    *lines, end, rest = block.split(b"\n")
    assert (end, rest) == (b"", b"")
    assert all(line.startswith((b"event: ", b"data: ")) for line in lines)
    assert b"\r" not in block.partition(b"data:")[2]
