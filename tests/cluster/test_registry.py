"""The nodes that one node knows."""

from __future__ import annotations

import attrs

from tangram.cluster.registry import NodeRecord, Registry

RECORD = NodeRecord(
    "a", 1.5, "0.1.0", "10.0.0.5:2350", 2, 7, ("globe", "system"), "run", ("globe",), ("map",), "ab"
)


def fields(*ids: str) -> dict[str, dict[str, str]]:
    return {node: dict(attrs.evolve(RECORD, id=node).fields()) for node in ids}


def test_a_record_comes_back_from_redis_as_it_was() -> None:
    """Every value survives the way through Redis, also the absent ones."""
    for record in (RECORD, NodeRecord("b", 0.1, "1", None, 1, 0, ())):
        assert NodeRecord.parse(record.id, record.fields()) == record


def test_a_record_of_another_form_is_no_node() -> None:
    """A record that lacks a field, or has another type, is left out."""
    registry = Registry("a", 6.0)

    registry.answered(0.0, fields("a") | {"old": {"id": "x"}, "bad": fields("bad")["bad"] | {"members": "?"}})
    assert list(registry.alive) == ["a"]


def test_a_node_whose_record_has_expired_is_gone_once() -> None:
    """It is reported at the first answer without it, and not again."""
    registry = Registry("a", 6.0)
    registry.answered(1.0, fields("a", "b"))

    assert [one.id for one in registry.answered(3.0, fields("a"))] == ["b"]
    assert list(registry.alive) == ["a"]
    assert registry.answered(5.0, fields("a")) == []


def test_after_an_outage_of_redis_missing_nodes_have_one_ttl_to_come_back() -> None:
    """A Redis that came back empty does not make every other node a dead one."""
    registry = Registry("a", 6.0)
    registry.answered(1.0, fields("a", "b", "c"))
    registry.reconnected(10.0)

    assert registry.answered(10.0, fields("a")) == []
    assert list(registry.alive) == ["a", "b", "c"]
    assert registry.answered(12.0, fields("a", "b")) == []
    assert [one.id for one in registry.answered(16.0, fields("a", "b"))] == ["c"]


def test_a_node_that_leaves_is_gone_at_once() -> None:
    """It is forgotten, and its record is returned; this node itself and unknown ones are no news."""
    registry = Registry("a", 6.0)
    registry.answered(1.0, fields("a", "b"))

    found = registry.left("b")
    assert found is not None
    assert found.id == "b"
    assert registry.left("b") is None
    assert registry.left("a") is None
