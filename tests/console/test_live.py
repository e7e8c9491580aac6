"""The live streams of the pages."""

from __future__ import annotations

import json
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from trio.testing import MockClock

from tangram.asgi import Message
from tangram.console.live import INTERVAL, PAGES, TAIL_SHOWN, LiveResponse, LiveStreams
from tangram.console.records import RECORDS, keep
from tests.console.test_routes import FakeControl
from tests.metrics.moments import moment


class Stream:
    """A browser that reads one stream."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.gone = trio.Event()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(message)

    @property
    def events(self) -> list[dict[str, Any]]:
        bodies = [message.get("body", b"") for message in self.sent[1:]]
        return [json.loads(body[6:]) for body in bodies if body.startswith(b"data: ")]

    @property
    def ended(self) -> bool:
        return (bool(self.sent) and self.sent[-1].get("more_body") is False) or self.sent[-1].get(
            "body"
        ) == b""


async def run(
    stream: Stream,
    page: str,
    control: FakeControl,
    streams: LiveStreams | None = None,
    *,
    is_open: Any = lambda: True,
    **query: str,
) -> None:
    response = LiveResponse(
        page, query, control, is_open=is_open, streams=LiveStreams() if streams is None else streams
    )
    await response({"type": "http", "method": "GET"}, stream.receive, stream.send)


@pytest.mark.parametrize("page", sorted(PAGES))
async def test_every_page_begins_with_its_news(autojump_clock: MockClock, page: str) -> None:
    """The first event comes at once, with the line at the top."""
    stream = Stream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, stream, page, FakeControl())
        await trio.sleep(0.1)
        nursery.cancel_scope.cancel()

    assert stream.events[0]["page"] == page
    assert stream.events[0]["overview"] == {"ready": True}


async def test_a_stream_ends_with_its_client_its_session_or_the_server(autojump_clock: MockClock) -> None:
    """And nothing is left of it."""
    streams, control = LiveStreams(), FakeControl()
    client, session, server = Stream(), Stream(), Stream()
    allowed = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, client, "topics", control, streams)
        nursery.start_soon(lambda: run(session, "topics", control, streams, is_open=lambda: allowed))
        nursery.start_soon(run, server, "topics", control, streams)
        await trio.sleep(0.1)
        assert len(streams) == 3
        client.gone.set()
        await trio.sleep(0.1)
        assert len(streams) == 2
        allowed = False
        await trio.sleep(INTERVAL)
        assert len(streams) == 1
        streams.close()
        await trio.sleep(0.1)

    assert len(streams) == 0
    assert streams.full
    assert client.ended
    assert session.ended
    assert server.ended


async def test_a_tail_shows_the_newest_messages_and_counts_the_others(autojump_clock: MockClock) -> None:
    """A busy topic costs the browser no more than a quiet one."""
    control, stream = FakeControl(), Stream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run(stream, "tail", control, topic="map"))
        await trio.sleep(0.1)
        control.tails.deliver([(b"to:map:moved", b'{"n": %d}' % number) for number in range(100)])
        control.tails.deliver([(b"to:other:moved", b"{}")])
        await trio.sleep(2)
        nursery.cancel_scope.cancel()

    shown = [one["payload"]["n"] for event in stream.events for one in event["messages"]]
    assert len(shown) == TAIL_SHOWN
    assert shown == list(range(100 - TAIL_SHOWN, 100))
    assert sum(event["skipped"] for event in stream.events) == 100 - TAIL_SHOWN
    assert len(control.tails) == 0


@pytest.mark.parametrize(
    ("topic", "history"),
    [
        ("past:eu", {"messages": [{"event": "moved", "payload": 1}]}),
        ("map", None),
        ("away", {"failed": "redis is away"}),
    ],
)
async def test_a_tail_tells_the_members_and_the_kept_messages(
    autojump_clock: MockClock, topic: str, history: object
) -> None:
    """The second event has them, so that the page begins at once also while Redis is away."""
    control, stream = FakeControl(listed=[{"topic": "past:eu", "members": 3}]), Stream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run(stream, "tail", control, topic=topic))
        await trio.sleep(0.1)
        control.tails.deliver([(b"to:%b:moved" % topic.encode(), b"2")])
        await trio.sleep(1)
        nursery.cancel_scope.cancel()

    first, second, third = stream.events
    assert "history" not in first
    assert (second["members"], second["history"]) == (3 if topic == "past:eu" else 0, history)
    assert [one["payload"] for one in third["messages"]] == [2]
    assert "history" not in third


async def test_a_picture_is_sent_whole_and_then_point_by_point(autojump_clock: MockClock) -> None:
    """So that a phone does not load the whole history every two seconds."""
    control, stream = FakeControl(), Stream()
    for second in range(0, 20, 2):
        control.pictures.take(moment(float(second)), float(second))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run(stream, "pictures", control, span="15m"))
        await trio.sleep(0.1)
        control.pictures.take(moment(20.0), 20.0)
        await trio.sleep(INTERVAL)
        nursery.cancel_scope.cancel()

    first, second_ = stream.events
    assert (first["from"], len(first["picture"]["times"])) == (0, 9)
    assert (second_["from"], second_["picture"]["times"]) == (9, [20.0])


async def test_the_log_sends_each_record_once(autojump_clock: MockClock) -> None:
    """The kept ones first, then the new ones as they come."""
    stream = Stream()
    log = structlog.wrap_logger(structlog.PrintLogger(), processors=[keep, lambda *_: ""])
    log.info("before", plugin="demo")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, stream, "log", FakeControl())
        await trio.sleep(0.1)
        log.info("after", level="info")
        await trio.sleep(3 * INTERVAL)
        nursery.cancel_scope.cancel()

    events = [record["event"] for event in stream.events for record in event["records"]]
    assert events.count("after") == 1
    assert events.index("before") < events.index("after")
    assert RECORDS.after(0)[-1][0] >= 2
