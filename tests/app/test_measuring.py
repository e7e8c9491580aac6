"""The numbers of a whole server, over all incarnations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

import tangram
from tangram.client import Channel
from tangram.testing import RunningTangram, open_tangram

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def make_plugin() -> tangram.Plugin:
    plugin = tangram.Plugin()

    @plugin.register_service()
    async def tick(state: tangram.BackendState) -> None:
        await trio.sleep_forever()

    @plugin.register_service(restart="temporary")
    async def once(state: tangram.BackendState) -> None:
        await trio.sleep(0.1)

    return plugin


async def scrape(running: RunningTangram) -> Samples:
    text = (await running.http.get("/-/metrics", headers=running.operator)).text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@asynccontextmanager
async def joined(running: RunningTangram, topic: str = "map") -> AsyncIterator[Channel]:
    token = await tangram.fetch_token(running.url, topic)
    async with running.open_socket() as socket:
        yield await socket.join(topic, token=token.token)


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


async def test_messages_pushes_and_joins_are_counted(autojump_clock: MockClock) -> None:
    """Each number of the channels has the value that the clients have caused."""
    async with open_tangram([make_plugin()], fakes=True) as running:
        async with joined(running) as channel, joined(running):
            for number in range(3):
                await channel.push("select", {"n": number})
            assert running.server.tree is not None
            await running.server.tree.incarnation.require_state().publish("to:map:moved", b'{"x": 1}')
            while (await channel.receive()).name != "moved":
                pass
            await trio.sleep(1)
            samples = await scrape(running)

    assert value(samples, "tangram_connections") == 2
    assert value(samples, "tangram_memberships") == 2
    assert value(samples, "tangram_joins_total", result="ok") == 2
    assert value(samples, "tangram_pushes_total", result="ok") == 3
    assert value(samples, "tangram_messages_received_total") == 5
    assert value(samples, "tangram_deliveries_total") >= 2
    assert value(samples, "tangram_sent_bytes_total") > 2 * len('{"x": 1}')
    assert value(samples, "tangram_delivery_lag_seconds_count") > 0
    assert value(samples, "tangram_service_up", plugin="plugin", service="tick") == 1
    assert value(samples, "tangram_service_up", plugin="plugin", service="once") == 1
    assert value(samples, "tangram_bus_up") == 1
    assert value(samples, "process_resident_memory_bytes") > 1e6


async def test_counters_survive_a_crash(autojump_clock: MockClock) -> None:
    """A restart of every part is counted, and no counter falls."""
    async with open_tangram([make_plugin()], fakes=True) as running:
        async with joined(running) as channel:
            await channel.push("select", {})
            before = await scrape(running)
            running.crash("plugin:plugin")
            await running.wait_ready(2)
            await trio.sleep(5)
        await trio.sleep(5)
        after = await scrape(running)

    counters = [
        "tangram_connections_accepted_total",
        "tangram_messages_received_total",
        "tangram_deliveries_total",
        "tangram_bus_reconnects_total",
        "tangram_loop_lag_seconds_count",
    ]
    assert all(value(after, name) >= value(before, name) for name in counters)
    assert value(after, "tangram_pushes_total", result="ok") >= 1
    assert value(after, "tangram_connections") == 0
    assert value(after, "tangram_disconnects_total", code="1012", reason="restart") == 1
    ((key, number),) = [item for item in after.items() if item[0][0] == "tangram_restarts_total"]
    assert dict(key[1])["child"] == "plugin:plugin"
    assert number == 1


async def test_the_pictures_have_points_and_the_mark_of_a_restart(autojump_clock: MockClock) -> None:
    """Two seconds make a point, and a crash is drawn on it."""
    async with open_tangram([make_plugin()], fakes=True) as running:
        await trio.sleep(20)
        running.crash("plugin:plugin")
        await running.wait_ready(2)
        await trio.sleep(101)
        pictures = running.server.measuring.pictures
        short, long = (pictures.spans[name].to_dict() for name in ("15m", "24h"))

    assert len(short["times"]) == 60
    assert len(long["times"]) == 2
    assert short["series"]["connections"] == [0.0] * 60
    assert [mark.child for mark in pictures.marks] == ["plugin:plugin"]


async def test_only_named_topics_have_numbers_of_their_own(autojump_clock: MockClock) -> None:
    """A topic that matches a pattern has its series; the others have none."""
    async with open_tangram([make_plugin()], {"metrics": {"topics": ["map:*"]}}, fakes=True) as running:
        async with joined(running, "map:eu"), joined(running, "chat"):
            assert running.server.tree is not None
            await running.server.tree.incarnation.require_state().publish("to:map:eu:moved", b"{}")
            await trio.sleep(1)
            samples = await scrape(running)

    assert value(samples, "tangram_topic_members", topic="map:eu") == 1
    assert value(samples, "tangram_topic_messages_total", topic="map:eu") >= 1
    assert {key[1] for key in samples if key[0].startswith("tangram_topic_")} == {(("topic", "map:eu"),)}


async def test_handlers_of_declared_channels_are_timed(autojump_clock: MockClock) -> None:
    """Each call counts with its duration, whether it returns, raises, or runs into its time limit."""
    plugin = tangram.Plugin()
    flights = plugin.channel("flights:{area}")

    @flights.receives("select", dict, reply_timeout=4)
    async def select(message: dict[str, float]) -> None:
        await trio.sleep(message["seconds"])
        if "error" in message:
            raise ValueError

    @flights.receives("never", dict)
    async def never(message: dict[str, float]) -> None: ...

    async with open_tangram([plugin], fakes=True) as running:
        async with joined(running, "flights:eu") as channel:
            await channel.push("select", {"seconds": 0.2})
            for payload in ({"seconds": 2, "error": 1}, {"seconds": 100}, {}):
                with pytest.raises(tangram.Refused):
                    await channel.push("select", payload)
        samples = await scrape(running)

    name, labels = (
        "tangram_declared_handler_duration_seconds",
        {"plugin": "plugin", "channel": "flights:{area}"},
    )
    counts = [
        value(samples, f"{name}_bucket", **labels, event="select", le=le)
        for le in ("0.1", "0.25", "2.5", "5.0")
    ]

    assert counts == [1, 2, 3, 4]
    assert value(samples, f"{name}_sum", **labels, event="select") == pytest.approx(6.2)
    assert value(samples, f"{name}_count", **labels, event="never") == 0
