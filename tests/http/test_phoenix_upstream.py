"""Cases that Phoenix's own tests of WebSocket channels name, by its unmodified client.

Further ones are in ``test_phoenix``: join, events and leave; a duplicate join; a full socket; an unknown
version; presence of several clients.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from tangram.channels.policy import Authorizer, ConnectInfo
from tests.channels.fakes import Settings
from tests.http.hostile_clients import open_site
from tests.http.native.sockets import token
from tests.http.test_phoenix import Browser, browser, node_modules

__all__ = ["browser", "node_modules"]

pytestmark = pytest.mark.slow

NO_HEARTBEAT = {"heartbeatIntervalMs": 1_000_000}


async def join(page: Browser, topic: str, id_: str = "me", **more: Any) -> dict[str, Any]:
    """Join with a token of our own; return the observations of the client."""
    await page.tell("join", topic=topic, params={"token": token(topic, id_)}, **more)
    return await page.see("join", name=more.get("name", topic))


@asynccontextmanager
async def meeting(engine: str, browser: partial[Any], *args: Any, **options: Any) -> AsyncIterator[Any]:
    """Open a site, and a page that is connected to it."""
    client = options.pop("client", {})
    async with open_site(engine, *args, **options) as site, browser(site.url, **client) as page:
        yield site, page


async def test_joins_above_the_bound_are_refused(engine: str, browser: partial[Any]) -> None:
    """A socket may join a hundred topics; after a leave there is room again."""
    async with meeting(engine, browser) as (site, page):
        for number in range(100):
            assert (await join(page, f"t{number}"))["status"] == "ok"
        refused = await join(page, "one-more")
        assert (refused["status"], refused["response"]) == ("error", {"reason": "too many channels"})
        await page.tell("leave", name="t0")

        await page.see("join", name="one-more", status="ok")
        assert site.channels.statistics().hub.members == 101  # the good client is one of them


async def test_the_limit_of_joins_is_configurable(engine: str, browser: partial[Any]) -> None:
    """``max_joins`` is the limit."""
    async with meeting(engine, browser, Settings(max_joins=1)) as (_, page):
        await join(page, "one")

        assert (await join(page, "two"))["response"] == {"reason": "too many channels"}


async def test_a_crash_is_an_error_and_the_client_comes_back(
    engine: str, browser: partial[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server fault closes with 1011: the channels err, and join again by themselves."""
    async with meeting(engine, browser) as (site, page):
        await join(page, "obs")
        (session,) = [it for it in site.channels._sessions.values() if "obs" in it.socket.topics]
        monkeypatch.setattr(session.socket.__class__, "push", lambda *_: 1 / 0)
        await page.tell("push", name="obs", event="x", payload={})
        assert (await page.see("closed"))["code"] == 1011
        monkeypatch.undo()

        await page.see("errored", name="obs")
        await page.see("join", name="obs", status="ok")
        await site.check_serves()


async def test_a_topic_that_is_reset_errs_and_is_joined_again(engine: str, browser: partial[Any]) -> None:
    """phx_error reaches one channel, which joins again; the others stay."""
    async with meeting(engine, browser) as (site, page):
        await join(page, "obs")
        await join(page, "other")
        site.publish("to:phoenix:reset", b'{"topic":"obs"}')

        await page.see("errored", name="obs")
        await page.see("join", name="obs", status="ok")
        assert page.seen("closed") == []
        assert [it["name"] for it in page.seen("errored")] == []


async def test_a_topic_that_is_closed_is_not_joined_again(engine: str, browser: partial[Any]) -> None:
    """phx_close ends a channel for good."""
    async with meeting(engine, browser) as (site, page):
        await join(page, "obs")
        site.publish("to:phoenix:close", b'{"topic":"obs"}')

        await page.see("channel-closed", name="obs")
        await page.tell("ping")
        await page.see("pong")
        assert site.channels.statistics().hub.members == 1
        assert "to:admin:channel.leave" in site.bus.names()
        assert page.seen("errored") == []


async def test_channels_end_with_the_transport(engine: str, browser: partial[Any]) -> None:
    """A client's memberships end with its connection, and the other members are notified."""
    async with meeting(engine, browser) as (site, page):
        await join(page, "town")
        await join(page, "obs")
        await page.tell("disconnect")

        with trio.fail_after(30):
            while site.channels.statistics().hub.members > 1:  # noqa: ASYNC110 - there is no event to wait for
                await trio.sleep(0.01)
        assert site.bus.names("to:admin:").count("to:admin:channel.leave") == 2


async def test_an_event_before_the_join_is_refused(engine: str, browser: partial[Any]) -> None:
    """A push to a topic that was not joined gets an error, and is not published."""
    async with meeting(engine, browser) as (site, page):
        await page.tell("raw", topic="obs", event="hello", payload={}, ref="77", join_ref="70")
        answer = await page.see("message", ref="77")

        assert answer["event"] == "phx_reply"
        assert answer["payload"] == {"status": "error", "response": {"reason": "unmatched topic"}}
        assert site.bus.names("from:obs") == []


@pytest.mark.parametrize(
    ("origin", "query", "status"),
    [("https://elsewhere.example", "2.0.0", 403), ("null", "2.0.0", 403), (None, "3.0.0", 403)],
)
async def test_a_refused_connect_is_403(
    engine: str, browser: partial[Any], origin: str | None, query: str, status: int
) -> None:
    """A foreign origin and an unknown version are refused before the upgrade."""
    async with open_site(engine) as site, browser(None) as page:
        url = site.url.replace("http", "ws", 1)
        await page.tell("connect", url=url, origin=origin, options={"vsn": query})

        assert str(status) in (await page.see("failed"))["message"]
        assert site.channels.statistics().accepted == 1  # the good client


async def test_our_own_origin_may_connect(engine: str, browser: partial[Any]) -> None:
    """The page that we serve may connect."""
    async with open_site(engine) as site, browser(None) as page:
        await page.tell("connect", url=site.url.replace("http", "ws", 1), origin=site.url, options={})
        await page.see("open")

        assert (await join(page, "obs"))["status"] == "ok"


async def test_disconnect_broadcast(engine: str, browser: partial[Any]) -> None:
    """All sockets of an id are closed, come back, and are admitted anew; others stay."""
    banned: set[str] = set()

    def authorize(topic: str, id_: str, request: ConnectInfo) -> str | None:
        return "banned" if id_ in banned else None

    authorizers = [Authorizer("guard", authorize)]
    async with meeting(engine, browser, authorizers=authorizers) as (site, page):
        async with browser(site.url) as other:
            await join(page, "obs", "eve")
            await join(other, "obs", "bob")
            banned.add("eve")
            site.publish("to:phoenix:disconnect", b'{"id":"eve"}')
            gone = await page.see("closed")
            await page.see("open")
            refused = await page.see("join", name="obs")
            site.publish("to:obs:news", b"{}")
            await other.see("event", event="news")

            assert (gone["code"], gone["reason"]) == (1008, "disconnected")
            assert refused["response"] == {"reason": "banned"}
            assert other.seen("closed") == []


async def test_a_quiet_client_is_closed_and_comes_back(engine: str, browser: partial[Any]) -> None:
    """A client that sends nothing for the idle time is closed, and joins again."""
    async with meeting(engine, browser, Settings(idle_timeout=1.5), client=NO_HEARTBEAT) as (_, page):
        await join(page, "obs")
        gone = await page.see("closed")

        assert (gone["code"], gone["reason"]) == (1001, "idle")
        await page.see("join", name="obs", status="ok")


async def test_oversized_headers_in_binary_frames(engine: str, browser: partial[Any]) -> None:
    """A binary event with a name over 255 bytes is dropped in both directions.

    As JSON it arrives, and the connection goes on.
    """
    long = "e" * 300
    async with meeting(engine, browser) as (site, page):
        await join(page, "obs")
        site.publish(f"to:obs:{long}", b"\x00\xff")
        site.publish(f"to:obs:{long}", b'{"n":1}')
        site.publish("to:obs:after", b"\x01")
        first = await page.see("event", name="obs")
        await page.see("event", event="after")
        await page.tell("push", name="obs", event=long, payload={})
        refused = await page.see("push", event=long)

        assert (first["event"], first["payload"]) == (long, {"n": 1})
        assert refused["response"] == {"reason": "event too long"}
        assert site.bus.names("from:obs:e") == []


async def test_presence_has_a_meta_for_each_socket(engine: str, browser: partial[Any]) -> None:
    """Two sockets of one id are one key with two metas, each with its own ``phx_ref``.

    The key ends with the last socket.
    """
    async with meeting(engine, browser) as (site, page):
        await join(page, "obs", "alice")
        async with browser(site.url) as first:
            await join(first, "obs", "bob")
            await page.see("presence", ids=["alice", "bob"])
            async with browser(site.url) as second:
                await join(second, "obs", "bob")
                while len(refs := (await page.see("presence"))["refs"].get("bob", [])) < 2:
                    pass
            left = await page.see("went", id="bob")
            assert [it["id"] for it in page.seen("went")] == []
        last = await page.see("went", id="bob")
        await page.see("presence", ids=["alice"])

        assert len(set(refs)) == 2
        assert len(left["left"]) == 1
        assert last["left"] == []
