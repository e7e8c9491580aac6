"""No message from a browser crashes a plugin, shown with the examples of the pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import structlog.testing
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

import tangram
from tangram.bus.subscriptions import Message, Subscription
from tangram.errors import BadMessage
from tangram.testing import open_tangram

DOCS: Final = Path(__file__).parents[2] / "docs"
HOSTILE: Final = [
    b"",
    b"\xff\xfe\x00",
    b"null",
    b"true",
    b"5",
    b'"text"',
    b"[]",
    b"{}",
    b'{"name":5}',
    b'{"name":null,"times":"x"}',
    b"{",
    b"NaN",
    b"1e999",
    b"9" * 5000,
    b"[" * 100_000,
    b'{"a":' * 2000 + b"1" + b"}" * 2000,
    b'["\\ud800"]',
    b'{"a":1,"a":2}',
]


@attrs.define
class Source:
    """Delivers nothing by itself; the test pushes messages."""

    dropped: int = 0
    cause: str = ""
    subscriptions: list[Subscription] = attrs.Factory(list)

    def add(self, subscription: Subscription) -> None:
        self.subscriptions.append(subscription)

    def remove(self, subscription: Subscription) -> None:
        self.subscriptions.remove(subscription)

    async def wait_confirmed(self, patterns: object) -> None:
        await trio.lowlevel.checkpoint()


@attrs.define
class State:
    """The part of a ``BackendState`` that subscribing services use."""

    source: Source = attrs.Factory(Source)
    published: list[tuple[str, Any]] = attrs.Factory(list)

    def subscribe(self, *patterns: str) -> Subscription:
        return Subscription(self.source, patterns)

    async def publish(self, channel: str, payload: Any) -> int:
        self.published.append((channel, payload))
        await trio.lowlevel.checkpoint()
        return 0


def subscribing_services() -> Iterator[Any]:
    """Yield each service of an example on the pages that subscribes."""
    for page in sorted(DOCS.glob("*.md")):
        for number, code in enumerate(
            re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        ):
            if ".subscribe(" in code and "register_service" in code:
                names: dict[str, Any] = {"__name__": "example"}
                exec(compile(code, str(page), "exec", dont_inherit=True), names)
                for service in names["plugin"].services:
                    if ".subscribe(" in re.split(rf"def {service.name}\b", code)[1].split("@plugin")[0]:
                        yield pytest.param(service.function, id=f"{page.stem}-{number}-{service.name}")


SERVICES: Final = list(subscribing_services())


def test_the_pages_have_subscribing_examples() -> None:
    """Plugins and the tutorial show how messages are read."""
    assert {str(param.id).split("-")[0] for param in SERVICES} >= {"getting", "plugins"}


async def feed(function: Any, payloads: list[bytes]) -> State:
    """Run a service, deliver the payloads, and check that it still runs."""
    state = State()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(function, state)
        await trio.testing.wait_all_tasks_blocked()
        (subscription,) = state.source.subscriptions
        for payload in payloads:
            for pattern in subscription.patterns:
                for event in ("ask", "x", ""):
                    channel = pattern.replace("*", event)
                    subscription.push(Message(channel, payload, pattern))
            await trio.testing.wait_all_tasks_blocked()
        assert state.source.subscriptions == [subscription]
        assert not subscription._queue
        nursery.cancel_scope.cancel()
    return state


@pytest.mark.parametrize("function", SERVICES)
async def test_no_hostile_payload_ends_an_example(function: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A service that is written as the pages show goes on after each of these payloads."""
    await feed(function, HOSTILE)


@pytest.mark.slow
@pytest.mark.parametrize("function", SERVICES)
@settings(max_examples=25, deadline=None)
@given(payloads=st.lists(st.binary(max_size=60) | st.text(max_size=30).map(str.encode), max_size=10))
def test_no_random_payload_ends_an_example(function: Any, payloads: list[bytes]) -> None:
    """The same for random payloads."""
    trio.run(feed, function, payloads)


async def test_a_bad_message_is_skipped_and_logged_once() -> None:
    """``decoded`` skips it; the log has one line for many, with sender and topic."""
    source = Source()
    subscription = Subscription(source, ("from:chat:*",))
    got: list[Any] = []

    async def read() -> None:
        async for message, value in subscription.decoded(dict[str, int]):
            got.append((message.topic, message.event, value))

    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            for payload in (b'{"a":1}', b"[]", b"{", b'{"b":"x"}', b'{"c":2}'):
                subscription.push(Message("from:chat:say", payload, "from:chat:*"))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    assert got == [("chat", "say", {"a": 1}), ("chat", "say", {"c": 2})]
    (line,) = [line for line in logs if line["event"] == "message dropped"]
    assert (line["sender"], line["topic"]) == ("client", "chat")


@pytest.mark.parametrize("payload", HOSTILE)
def test_reading_a_message_raises_bad_message_only(payload: bytes) -> None:
    """``text`` never raises; ``json`` raises BadMessage or returns."""
    message = Message("from:chat:say", payload, "from:chat:*")
    assert isinstance(message.text, str)
    for type_ in (Any, dict[str, int], list[str], int):
        try:
            message.json(type_)
        except BadMessage as error:
            raised = error.channel, error.sender, error.topic
            assert raised == ("from:chat:say", "client", "chat")


@pytest.mark.parametrize(
    ("channel", "topic", "event", "sender"),
    [
        ("from:secret:x:cmd", "secret:x", "cmd", "client"),
        ("from:secret:cmd", "secret", "cmd", "client"),
        ("to:weather:wind:", "weather:wind", "", "server"),
        ("from:cmd", None, None, "redis"),
        ("history:control", None, None, "redis"),
        ("from", None, None, "redis"),
    ],
)
def test_topic_and_event_are_told_apart_at_the_last_colon(
    channel: str, topic: str | None, event: str | None, sender: str
) -> None:
    """A pattern matches both topics; the properties differ."""
    message = Message(channel, b"", "*")

    assert (message.topic, message.event, message.sender) == (topic, event, sender)


@pytest.mark.slow
async def test_a_bad_message_that_is_not_caught_costs_no_crash() -> None:
    """The service runs again, and no other part of the server is restarted."""
    plugin = tangram.Plugin()
    states: list[tangram.BackendState] = []
    runs: list[int] = []
    seen: list[Any] = []

    @plugin.register_service()
    async def read(state: tangram.BackendState) -> None:
        states.append(state)
        runs.append(1)
        async with state.subscribe("from:chat:*") as messages:
            async for message in messages:
                value = message.json(dict[str, int])
                seen.append(value)

    with trio.fail_after(30):
        async with open_tangram([plugin]) as running:
            for _ in range(8):
                before = len(runs)
                while len(runs) == before:  # a message that comes before it has subscribed is lost
                    await states[0].publish("from:chat:say", b"\xff")
                    await trio.sleep(0.01)
            while {"a": 1} not in seen:
                await states[0].publish("from:chat:say", b'{"a":1}')
                await trio.sleep(0.02)
            crashes = [event for event in running.events if event.kind == "crashed"]

    assert crashes == []
