"""The live stream of one page: Server-Sent Events, as long as the page is open.

1. Each page gets its own data alone, and nothing runs for a page that is not open.
2. An event is sent when something has changed, and at the interval of the page. Rates are computed in the
   browser, from two totals.
3. A stream ends when its session does, and when the incarnation stops: `LiveStreams.close` is called before
   the engine waits for the requests in flight.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, Final, TypeAlias

import attrs
import msgspec
import trio

from tangram.asgi import Receive, Scope, Send
from tangram.console.control import ConsoleControl
from tangram.console.records import RECORDS
from tangram.errors import BrokerRefused, BrokerUnavailable
from tangram.routing.responses import Response, encode_json

__all__ = ["MAX_CONNECTIONS", "MAX_TOPICS", "PAGES", "LiveResponse", "LiveStreams"]

_Payloads: TypeAlias = AsyncGenerator[dict[str, Any], None]

INTERVAL: Final = 2.0
"""Seconds between two looks at numbers that always change."""

SETTLE: Final = 0.1
"""Seconds after an event of a supervisor before the tree is sent: a restart has a dozen events."""

LOG_INTERVAL: Final = 0.5
"""Seconds between two looks at the log."""

TAIL_INTERVAL: Final = 0.5
"""Seconds between two events of a live tail."""

TAIL_SHOWN: Final = 20
"""Messages in one event of a live tail: more cannot be read."""

MAX_CONNECTIONS: Final = 200
"""Connections that are listed, those furthest behind first."""

MAX_TOPICS: Final = 500
"""Topics that are listed, those with the most bytes first."""

MAX_STREAMS: Final = 32
"""Open streams of all browsers together."""


class LiveStreams:
    """The open streams of one incarnation, so that they can be ended together."""

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._scopes)

    @property
    def full(self) -> bool:
        """Whether no further stream may be opened."""
        return self._closed or len(self._scopes) >= MAX_STREAMS

    def close(self) -> None:
        """End all streams, because the server stops or restarts."""
        self._closed = True
        for scope in self._scopes:
            scope.cancel()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make a scope around the block, which `close` ends without an error."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)


class LiveResponse(Response):
    """The stream of one page.

    Args:
        page: one of `PAGES`.
        query: the parameters of the page.
        control: the running server.
        is_open: whether the session is still valid; asked before each event.
        streams: takes this stream while it is open.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        page: str,
        query: Mapping[str, str],
        control: ConsoleControl,
        *,
        is_open: Callable[[], bool],
        streams: LiveStreams,
    ) -> None:
        super().__init__(b"", headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._page = page
        self._query = query
        self._control = control
        self._is_open = is_open
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the client goes, the session ends or the server stops."""
        await send(self.head(None))
        if scope["method"] != "HEAD":
            with self._streams.opened():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_when_gone, receive, nursery.cancel_scope)
                    await self._send_events(send)
                    nursery.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _send_events(self, send: Send) -> None:
        await send({"type": "http.response.body", "body": b"retry: 1000\n\n", "more_body": True})
        async with aclosing(PAGES[self._page](self._control, self._query)) as payloads:
            async for payload in payloads:
                if not self._is_open():
                    return
                data = {
                    "page": self._page,
                    "now": time.time(),
                    "overview": self._control.overview(),
                    **payload,
                }
                body = b"data: " + encode_json(data) + b"\n\n"
                await send({"type": "http.response.body", "body": body, "more_body": True})


async def _cancel_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _tree(control: ConsoleControl, _query: Mapping[str, str]) -> _Payloads:
    while True:
        yield dict(control.tree_view())
        with trio.move_on_after(INTERVAL):
            await control.wait_event()
            await trio.sleep(SETTLE)


async def _topics(control: ConsoleControl, _query: Mapping[str, str]) -> _Payloads:
    while True:
        topics = control.topics()
        listed = sorted(topics or (), key=lambda one: -one["sent_bytes"])
        yield {
            "topics": listed[:MAX_TOPICS],
            "count": len(listed),
            "restarting": topics is None,
            "histories": control.histories(),
        }
        await trio.sleep(INTERVAL)


async def _tail(control: ConsoleControl, query: Mapping[str, str]) -> _Payloads:
    with control.tails.open(query.get("topic", ""), query.get("event") or None) as tail:
        yield {"messages": [], "skipped": 0}
        # Not before the first event: Redis may take seconds to answer, or be away.
        yield {"messages": [], "skipped": 0, **await _about(control, query.get("topic", ""))}
        while (lines := await tail.next_lines()) is not None:
            yield _tail_event(lines)
            await trio.sleep(TAIL_INTERVAL)


async def _about(control: ConsoleControl, topic: str) -> dict[str, Any]:
    """Return the members of a topic on this server, and the messages that are kept."""
    members = next((one["members"] for one in control.topics() or () if one["topic"] == topic), 0)
    try:
        return {"members": members, "history": await control.kept(topic)}
    except (BrokerUnavailable, BrokerRefused) as error:
        return {"members": members, "history": {"failed": str(error)}}


def _tail_event(lines: bytes) -> dict[str, Any]:
    """Return the newest messages of a piece of a tail, and the number of those left out."""
    found = [msgspec.json.decode(line) for line in lines.splitlines()[-TAIL_SHOWN - 1 :] if line]
    total = sum(bool(line) for line in lines.splitlines())
    dropped = sum(one.get("dropped", 0) for one in found)
    messages = [one for one in found if "dropped" not in one][-TAIL_SHOWN:]
    marks = sum("dropped" in one for one in found)
    return {"messages": messages, "skipped": dropped + total - marks - len(messages)}


async def _connections(control: ConsoleControl, _query: Mapping[str, str]) -> _Payloads:
    while True:
        yield {"connections": [attrs.asdict(one) for one in control.connections(MAX_CONNECTIONS)]}
        await trio.sleep(INTERVAL)


async def _pictures(control: ConsoleControl, query: Mapping[str, str]) -> _Payloads:
    span = "24h" if query.get("span") == "24h" else "15m"
    seen, pictures = 0, control.pictures
    while True:
        picture = pictures.spans[span]
        if picture.points > seen or not seen:
            whole = picture.to_dict(seen)
            marks = [attrs.asdict(mark) for mark in pictures.marks]
            yield {"span": span, "picture": whole, "from": seen, "marks": marks}
            seen = picture.points
        await trio.sleep(INTERVAL)


async def _plugins(control: ConsoleControl, _query: Mapping[str, str]) -> _Payloads:
    while True:
        yield {"plugins": control.plugin_views(), "settings": control.settings_view()}
        with trio.move_on_after(5 * INTERVAL):
            await control.wait_event()
            await trio.sleep(SETTLE)


async def _log(_control: ConsoleControl, _query: Mapping[str, str]) -> _Payloads:
    seen, quiet = 0, 0.0
    while True:
        records = RECORDS.after(seen)
        if records or not seen or quiet >= INTERVAL:
            yield {"records": [msgspec.Raw(text) for _, text in records]}
            seen, quiet = (records[-1][0] if records else seen), 0.0
        await trio.sleep(LOG_INTERVAL)
        quiet += LOG_INTERVAL


PAGES: Final[Mapping[str, Callable[[ConsoleControl, Mapping[str, str]], _Payloads]]] = {
    "tree": _tree,
    "topics": _topics,
    "tail": _tail,
    "connections": _connections,
    "pictures": _pictures,
    "plugins": _plugins,
    "log": _log,
}
"""The function that yields the payloads of each page's events."""
