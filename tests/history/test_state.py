"""The history for plugins, in a whole server."""

from __future__ import annotations

import pytest

from tangram import History, Plugin
from tangram.history.store import HistoryStore
from tangram.testing import open_tangram

pytestmark = pytest.mark.slow


async def test_a_plugin_publishes_and_reads_its_history() -> None:
    """Each publication has a position, and the messages behind one can be read."""
    plugin = Plugin(history={"flights:*": History(size=3)})
    async with open_tangram([plugin]) as tangram:
        state = tangram.server.tree.incarnation.require_state()  # type: ignore[union-attr]
        first = await state.position("flights:eu")
        published = [await state.publish("to:flights:eu:n", {"n": number}) for number in range(4)]
        other = await state.publish("to:other:n", {})
        through_client = await state.redis_client.publish("to:flights:eu:n", b"4")
        everything = await state.history("flights:eu")
        rest = await state.history("flights:eu", since=published[2].position)
        last = await state.history("flights:eu", since=published[2].position, limit=1)
        missed = await state.history("flights:eu", since=first)
        with pytest.raises(LookupError, match="topic 'other' has no history"):
            await state.history("other")

    assert [one.position for one in published] == [f"{first[:-1]}{offset}" for offset in (1, 2, 3, 4)]
    assert other.position is None
    assert through_client == 2, "the bus and the recorder"
    assert [payload for _, payload in everything.events] == [b'{"n":2}', b'{"n":3}', b"4"]
    assert not everything.complete
    assert rest.complete
    assert [payload for _, payload in rest.events] == [b'{"n":3}', b"4"]
    assert not last.complete
    assert last.events == [("n", b"4")]
    assert rest.position == f"{first[:-1]}5"
    assert not missed.complete


async def test_the_newest_messages_are_read_without_the_others() -> None:
    """The console shows the last few messages of a topic, however many are kept."""
    histories = {"flights": History(size=50), "map": History(mode="latest")}
    async with open_tangram([Plugin(history=histories)]) as tangram:
        tree = tangram.server.tree
        assert tree is not None
        state, store = tree.incarnation.require_state(), HistoryStore(tree.rules, tree.incarnation.call)
        nothing = await store.newest("flights", 3, 1024)
        for number in range(6):
            await state.publish("to:flights:n", number)
            await state.publish(f"to:map:e{number % 2}", number)
        newest, few = await store.newest("flights", 3, 1024), await store.newest("flights", 10, 1024)
        latest = await store.newest("map", 10, 1024)
        await state.publish("to:flights:n", "x" * 2000)
        large = await store.newest("flights", 3, 1024)
        with pytest.raises(LookupError):
            await store.newest("other", 3, 1024)

    assert (nothing.events, nothing.reason) == ([], None)
    assert newest.events == [("n", b"3"), ("n", b"4"), ("n", b"5")]
    assert newest.position.offset == 6
    assert len(few.events) == 6
    assert (large.events, large.reason) == ([], "too_much")
    assert latest.events == [("e0", b"4"), ("e1", b"5")]


async def test_the_operator_comes_before_plugins() -> None:
    """An entry of the operator for the same topics counts instead of the plugin's."""
    plugin = Plugin(history={"flights": History(size=3)})
    config = {"channel": {"history": [{"topics": "flights", "size": 1}]}}
    async with open_tangram([plugin], config) as tangram:
        state = tangram.server.tree.incarnation.require_state()  # type: ignore[union-attr]
        for number in range(3):
            await state.publish("to:flights:n", number)
        page = await state.history("flights")

    assert page.events == [("n", b"2")]
