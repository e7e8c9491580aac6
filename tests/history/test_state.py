"""The history for plugins, in a whole server."""

from __future__ import annotations

import pytest

from tangram import History, Plugin
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
