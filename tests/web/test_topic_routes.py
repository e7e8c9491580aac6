"""The operator's routes about topics."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest
import trio
import trio.testing

from tangram.gateway.tails import MAX_TAILS
from tangram.testing import open_tangram
from tests.web.asgi import TOKEN, FakeOperator, call, site_of

AS_OPERATOR = {"authorization": f"Bearer {TOKEN}"}
JSON = {**AS_OPERATOR, "content-type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/-/topics"), ("GET", "/-/tail?topic=t"), ("POST", "/-/publish"), ("POST", "/-/push")],
)
async def test_topics_are_for_the_operator(method: str, path: str) -> None:
    """Without the token no route about topics answers, wherever the request comes from."""
    operator = FakeOperator(listed_topics=[{"topic": "t"}])
    body = b'{"topic": "t", "event": "e"}'
    headers = {"content-type": "application/json"}

    refused = await call(site_of(operator=operator), method, path, headers=headers, body=body)

    assert refused.status == 401
    assert operator.published == []


async def test_topics_are_listed() -> None:
    """The numbers of each topic, or 503 while the channels restart."""
    operator = FakeOperator(listed_topics=[{"topic": "t", "members": 3}])
    site = site_of(operator=operator)

    assert (await call(site, "GET", "/-/topics", headers=AS_OPERATOR)).json() == [
        {"topic": "t", "members": 3}
    ]
    operator.listed_topics = None
    assert (await call(site, "GET", "/-/topics", headers=AS_OPERATOR)).status == 503


async def test_a_message_goes_to_members_or_to_plugins() -> None:
    """``publish`` uses the channel of browsers, ``push`` that of plugins."""
    operator = FakeOperator()
    site = site_of(operator=operator)
    body = json.dumps({"topic": "a:b", "event": "e", "payload": {"n": 1.5}}).encode()

    published = await call(site, "POST", "/-/publish", headers=JSON, body=body)
    await call(site, "POST", "/-/push", headers=JSON, body=body)

    assert published.json() == {"topic": "a:b", "event": "e", "receivers": 1}
    assert operator.published == [("to:a:b:e", b'{"n":1.5}'), ("from:a:b:e", b'{"n":1.5}')]
    operator.redis_away = True
    assert (await call(site, "POST", "/-/publish", headers=JSON, body=body)).status == 503


async def test_the_operator_publishes_on_a_topic_with_a_history(autojump_clock: object) -> None:
    """The answer counts receivers as on other topics, and the message is kept."""
    kept = {"channel": {"history": [{"topics": "map"}]}}
    async with open_tangram([], kept, fakes=True) as running:
        body = {"topic": "map", "event": "move", "payload": {"x": 1}}
        answer = await running.http.post("/-/publish", json=body, headers=running.operator)
        history = await running.state.history("map")

    assert answer.status_code == 200
    assert answer.json()["receivers"] >= 1
    assert list(history.events) == [("move", b'{"x":1}')]


@pytest.mark.parametrize(
    ("message", "places"),
    [
        ({"topic": "", "event": "a:b"}, [["body", "topic"], ["body", "event"]]),
        ({"topic": "t", "event": "phx_close"}, [["body", "event"]]),
        ({"topic": "t"}, [["body", "event"]]),
    ],
)
async def test_each_fault_of_a_message_is_listed(message: dict[str, str], places: list[list[str]]) -> None:
    """Names that would reach another topic, or no browser, are refused."""
    operator = FakeOperator()
    body = json.dumps(message).encode()

    answer = await call(site_of(operator=operator), "POST", "/-/publish", headers=JSON, body=body)

    assert answer.status == 422
    assert [one["loc"] for one in answer.json()["detail"]] == places
    assert operator.published == []


async def test_too_many_tails_are_refused() -> None:
    """Above the limit the answer is 503, and no tail of others ends."""
    operator = FakeOperator()
    with ExitStack() as stack:
        for _ in range(MAX_TAILS):
            stack.enter_context(operator.tails.open("t"))

        answer = await call(site_of(operator=operator), "GET", "/-/tail?topic=t", headers=AS_OPERATOR)

        assert (answer.status, len(operator.tails)) == (503, MAX_TAILS)


async def test_a_tail_shows_messages_and_ends_at_the_stop() -> None:
    """Messages come as they pass, without a member as well, and an open tail does not hold up the stop."""
    async with open_tangram([], fakes=True) as running:
        lines: list[dict[str, object]] = []

        async def follow(*, task_status: trio.TaskStatus[None]) -> None:
            path = "/-/tail?topic=map"
            async with running.http.stream("GET", path, headers=running.operator, timeout=60) as response:
                async for line in response.aiter_lines():
                    if line:
                        lines.append(json.loads(line))
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED

        async with trio.open_nursery() as nursery:
            await nursery.start(follow)
            told = await running.http.post(
                "/-/publish",
                json={"topic": "map", "event": "move", "payload": {"x": 1}},
                headers=running.operator,
            )
            assert told.json()["receivers"] == 1
            while not lines:
                await trio.testing.wait_all_tasks_blocked(0.01)
            began = trio.current_time()
            running.server.stop()
        stopped = trio.current_time() - began

    assert (lines[0]["event"], lines[0]["payload"]) == ("move", {"x": 1})
    assert stopped < 2.0  # the grace would be 5 s
