"""Recovery over Server-Sent Events and LongPoll, behind either engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import trio

from tangram.testing import RunningTangram, open_tangram
from tests.gateway.test_sse import Stream, events, token

pytestmark = pytest.mark.slow


@pytest.fixture(params=["native", "hypercorn"])
async def running(request: pytest.FixtureRequest) -> AsyncIterator[RunningTangram]:
    """A server whose topic ``kept`` has a history."""
    tables = {"server": {"engine": request.param}, "channel": {"history": [{"topics": "kept"}]}}
    async with open_tangram([], tables) as running:
        with trio.fail_after(30):
            yield running


async def publish(running: RunningTangram, *numbers: int) -> None:
    for number in numbers:
        await running.state.publish("to:kept:n", {"n": number})


async def read(stream: Stream, *, numbers: int) -> tuple[list[int], str]:
    """Read until there are so many numbers, and a position behind them."""
    found: list[int] = []
    while True:
        fields = await stream.next()
        if "id" in fields and len(found) == numbers:
            return found, fields["id"]
        if fields.get("event") == "n":
            found.append(json.loads(fields["data"])["n"])


async def test_server_sent_events_recover(running: RunningTangram) -> None:
    """A stream that comes back with ``Last-Event-ID`` gets the missed events, then live ones."""
    async with events(running, "kept") as stream:
        await stream.next()
        await publish(running, 1)
        first, position = await read(stream, numbers=1)
    await publish(running, 2, 3)
    async with events(running, "kept", last=position) as stream:
        joined = await stream.next()
        missed, _ = await read(stream, numbers=2)
        await publish(running, 4)
        live, _ = await read(stream, numbers=1)

    assert (first, missed, live) == ([1], [2, 3], [4])
    assert json.loads(joined["data"])["recovered"] is True


class Poller:
    """A session of LongPoll, as phoenix.js uses it."""

    def __init__(self, running: RunningTangram, token: str) -> None:
        self._http, self._token = running.http, token
        self._session = ""
        self.position = ""
        self.recovered: bool | None = None
        self.numbers: list[int] = []
        self.covered = 0
        """Numbers before the last position."""

    async def join(self, position: str = "") -> None:
        """Open a session, and join from a position."""
        opened = (await self._http.get("/websocket/longpoll", params={"vsn": "2.0.0"})).json()
        self._session = opened["token"]
        frame = ["1", "1", "kept", "phx_join", {"token": self._token, "recover": position}]
        headers = {"content-type": "application/x-ndjson"}
        params = {"vsn": "2.0.0", "token": self._session}
        answer = await self._http.post(
            "/websocket/longpoll", params=params, content=json.dumps(frame), headers=headers
        )
        assert answer.json() == {"status": 200}
        while self.recovered is None:
            await self.poll()

    async def poll(self) -> None:
        """Take the messages of one answer."""
        params = {"vsn": "2.0.0", "token": self._session}
        answer = (await self._http.get("/websocket/longpoll", params=params)).json()
        for text in answer["messages"]:
            _, _, _, event, payload = json.loads(text)
            if event == "phx_reply":
                assert payload["status"] == "ok", payload
                self.position, self.recovered = (
                    payload["response"]["position"],
                    payload["response"]["recovered"],
                )
            elif event == "n":
                self.numbers.append(payload["n"])
            elif event == "tangram:position":
                self.position, self.covered = payload["at"], len(self.numbers)

    async def wait(self, *numbers: int) -> None:
        """Poll until these numbers have come, and the position behind them."""
        while self.covered < len(numbers):
            await self.poll()
        assert self.numbers == list(numbers)


async def test_longpoll_recovers(running: RunningTangram) -> None:
    """A new session that joins with the position of the one before gets the missed events, then live ones."""
    first, second = [Poller(running, await token(running, "kept")) for _ in range(2)]
    await first.join()
    await publish(running, 1)
    await first.wait(1)
    await publish(running, 2, 3)
    await second.join(first.position)
    recovered = second.recovered
    await second.wait(2, 3)
    await publish(running, 4)
    await second.wait(2, 3, 4)

    assert (first.recovered, recovered) == (False, True)
