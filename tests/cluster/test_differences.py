"""What two nodes must have in common."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

import tangram
from tangram.cluster import NodeRecord, Nodes
from tangram.cluster.differences import CLOCK_LIMIT, Difference, Differences, Subject, compare
from tangram.testing import open_tangram
from tangram.testing.fakes.memory_broker import MemoryBroker

ME = NodeRecord("a", 1.0, "0.1.0", None, 1, 0, (), run="1", declared=("globe", "map"), secret="ab", clock=0.5)
OTHER = attrs.evolve(ME, id="b", run="2", members=9, plugins=("globe",), address="10.0.0.5:1", clock=-0.5)


@pytest.mark.parametrize(
    ("change", "expected", "text"),
    [
        ({"secret": "cd"}, Difference("b", Subject.SECRET), "another jwt_secret"),
        ({"protocol": 7}, Difference("b", Subject.PROTOCOL, "1", "7"), "protocol: here 1, there 7"),
        (
            {"version": "0.2.0"},
            Difference("b", Subject.VERSION, "0.1.0", "0.2.0"),
            "version: here 0.1.0, there 0.2.0",
        ),
        (
            {"declared": ("map", "weather", "airports")},
            Difference("b", Subject.PLUGINS, "globe", "airports, weather"),
            "plugins: only here globe, only there airports, weather",
        ),
        ({"declared": ("globe",)}, Difference("b", Subject.PLUGINS, "map", ""), "only there none"),
        ({"clock": 3600.5}, Difference("b", Subject.CLOCK, "", "+3600"), "clock: +3600 s"),
        ({"clock": -3599.5}, Difference("b", Subject.CLOCK, "", "-3600"), "clock: -3600 s"),
    ],
)
def test_each_property_is_compared(change: dict[str, Any], expected: Difference, text: str) -> None:
    """A difference names the values of both nodes; a secret has none."""
    assert compare(ME, attrs.evolve(OTHER, **change)) == [expected]
    assert text in expected.text


@pytest.mark.parametrize("clock", [None, 0.5 + CLOCK_LIMIT, 0.5 - CLOCK_LIMIT, 0.5])
def test_nodes_that_agree_have_no_difference(clock: float | None) -> None:
    """Numbers, addresses and small leads of a clock may differ, and a clock may be unknown."""
    assert compare(ME, attrs.evolve(OTHER, clock=clock)) == []
    assert compare(attrs.evolve(ME, clock=None), attrs.evolve(OTHER, clock=1e9)) == []


def test_a_difference_is_told_once() -> None:
    """It is told again when its values change, and when the node comes back or starts anew."""
    differences = Differences()
    late = attrs.evolve(OTHER, clock=100.0)

    def told(*others: NodeRecord) -> list[Subject]:
        return [one.subject for one in differences.take(ME, (ME, *others))]

    assert told(late) == [Subject.CLOCK]
    assert told(attrs.evolve(late, clock=101.7)) == []
    assert told(attrs.evolve(late, secret="x")) == [Subject.SECRET]
    assert list(differences.found) == ["b"]
    assert told() == []
    assert differences.found == {}
    assert told(late) == [Subject.CLOCK]
    assert told(attrs.evolve(late, run="3")) == [Subject.CLOCK]
    assert told(attrs.evolve(late, run="3", declared=("map",))) == [Subject.PLUGINS]
    assert told(attrs.evolve(late, run="3", declared=())) == [Subject.PLUGINS]


async def test_a_clock_that_is_an_hour_ahead_is_told_by_both_nodes(
    autojump_clock: MockClock, nursery: trio.Nursery, memory: MemoryBroker
) -> None:
    """The late node is told that it differs from Redis; the other one names it within two seconds."""
    url = f"redis://127.0.0.1:{memory._port}"
    right = Nodes(url, attrs.evolve(ME, clock=None), wall=trio.current_time)
    wrong = Nodes(url, attrs.evolve(OTHER, clock=None), wall=lambda: trio.current_time() + 3600)
    with capture_logs() as lines:
        await nursery.start(right.run)
        await nursery.start(wrong.run)
        with trio.fail_after(2.5):
            while not (right.differences() and wrong.differences()):
                await right.wait_change()

    clocks = [(one.get("node"), one["seconds"]) for one in lines if one["log_level"] == "warning"]
    assert sorted(clocks, key=str) == [("a", "-3600"), ("b", "+3600"), (None, 3600)]


def plugin(name: str) -> tangram.Plugin:
    made = tangram.Plugin(instances="one")
    made.name = name
    return made


async def test_two_servers_with_different_settings_name_each_other(
    autojump_clock: MockClock, memory: MemoryBroker
) -> None:
    """Another secret is an error and other plugins are a warning, on both, and no node is refused."""

    def settings(node: str, secret: str) -> dict[str, dict[str, str]]:
        return {
            "core": {"redis_url": f"redis://127.0.0.1:{memory._port}"},
            "cluster": {"node": node},
            "channel": {"jwt_secret": secret * 32},
        }

    with capture_logs() as lines:
        async with (
            open_tangram([plugin("map")], settings("a", "x"), checks=()) as first,
            open_tangram([plugin("globe")], settings("b", "y"), checks=()) as second,
        ):
            await trio.sleep(3)
            for server in (first, second):
                assert (await server.http.get("/-/readyz")).status_code == 200
            listed = (await second.http.get("/-/nodes", headers=second.operator)).json()
            shown = (await second.http.get("/-/metrics", headers=second.operator)).text

    errors = {(one["node"], one["event"].partition(":")[0]) for one in lines if one["log_level"] == "error"}
    assert errors == {("a", "node has another jwt_secret"), ("b", "node has another jwt_secret")}
    plugins = {
        (one["node"], one["only_here"], one["only_there"])
        for one in lines
        if one["event"].startswith("node has other plugins")
    }
    assert plugins == {("a", "globe", "map"), ("b", "map", "globe")}
    assert listed[0]["differs"][:2] == ["another jwt_secret", "plugins: only here globe, only there map"]
    assert listed[1]["differs"] == []
    assert "tangram_nodes 2.0\n" in shown
    assert "tangram_nodes_differing 1.0\n" in shown
    assert 'tangram_lease_held{plugin="globe"} 1.0\n' in shown
    assert not any("x" * 32 in repr(one) or "y" * 32 in repr(one) for one in lines)
