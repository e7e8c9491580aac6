"""Placed plugins over nodes that start together."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tangram.app.node_parts import starts_with_others
from tangram.config import Config
from tangram.testing.fakes.memory_broker import MemoryBroker
from tests.cluster.test_placement import Server, Stage


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0.0, 0.4), min_size=2, max_size=4),
    st.integers(1, 9),
)
def test_nodes_that_start_together_share_the_plugins(starts: list[float], count: int) -> None:
    """Each plugin is started once and stays; no node has three more than another one."""
    trio.run(share, starts, count, clock=MockClock(autojump_threshold=0))


async def share(starts: list[float], count: int) -> None:
    names = tuple(f"plugin{number}" for number in range(count))
    memory, stage = MemoryBroker(), Stage()

    async with trio.open_nursery() as nursery:
        await nursery.start(memory.run)

        async def start(node: str, after: float) -> None:
            await trio.sleep(after)
            server = Server(memory, stage, node, spread=True)
            server.placed = frozenset(names)
            server.nodes.book.watch(names)
            await nursery.start(server.run, names)

        for number, after in enumerate(starts):
            nursery.start_soon(start, f"n{number}", after)
        await trio.sleep(30)
        starts_of = Counter(name for name, _ in stage.starts)
        held = Counter({f"n{number}": 0 for number in range(len(starts))})
        held.update(node for running in stage.running.values() for node in running)
        nursery.cancel_scope.cancel()

    assert starts_of == Counter(names)
    assert stage.overlaps == []
    assert max(held.values()) - min(held.values()) <= 2


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({}, False),
        ({"server": {"workers": 2}}, True),
        ({"cluster": {"listen": "10.0.0.5:2350"}}, True),
        ({"cluster": {"node": "a"}}, False),
    ],
)
def test_a_server_that_may_be_alone_waits_for_none(tables: dict[str, Any], expected: bool) -> None:
    """Workers have siblings, and ``cluster.listen`` is set for nodes on other machines."""
    sections = {name: attrs.evolve(getattr(Config(), name), **table) for name, table in tables.items()}
    config = attrs.evolve(Config(), **sections)

    assert starts_with_others(config) is expected
