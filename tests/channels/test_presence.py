from __future__ import annotations

from typing import Any

import msgspec

from tangram.channels.presence import Change, Presence


def metas(*refs: str) -> dict[str, list[dict[str, str]]]:
    return {"metas": [{"phx_ref": ref} for ref in refs]}


def state(presence: Presence[str], topic: str) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(presence.state(topic))
    return decoded


def test_all_joins_of_a_window_make_one_change() -> None:
    """A thousand joins between two flushes are one difference."""
    presence: Presence[str] = Presence()
    for number in range(1000):
        presence.join("t", f"id{number}", f"ref{number}", f"m{number}")

    (change,) = presence.flush()
    assert len(change.joins) == len(state(presence, "t")) == len(presence.newcomers("t")) == 1000
    assert change.leaves == {}
    assert presence.flush() == []


def test_two_sockets_of_one_id_are_one_key() -> None:
    """Metas are gathered under the external id, and the key ends with the last of them."""
    presence: Presence[str] = Presence()
    presence.join("t", "bob", "r1", "m1")
    presence.join("t", "bob", "r2", "m2")
    presence.flush()
    assert state(presence, "t") == {"bob": metas("r1", "r2")}

    presence.leave("t", "bob", "r1", "m1")
    assert presence.flush() == [Change("t", {}, {"bob": metas("r1")})]
    presence.leave("t", "bob", "r2", "m2")
    assert state(presence, "t") == {}


def test_join_and_leave_in_one_window_cancel_out() -> None:
    """A member that joins and leaves between two flushes is not published."""
    presence: Presence[str] = Presence()
    presence.join("t", "bob", "r1", "m1")
    presence.leave("t", "bob", "r1", "m1")

    assert presence.flush() == []


def test_a_leave_is_reported_if_a_state_has_shown_the_member() -> None:
    """A client that got the state between a join and a leave of one window must learn of the leave."""
    presence: Presence[str] = Presence()
    presence.join("obs", "ann", "1", "first")
    presence.join("obs", "bob", "2", "second")
    presence.take_newcomers("obs", 1)
    presence.leave("obs", "bob", "2", "second")
    (change,) = presence.flush()

    assert change.leaves == {"bob": {"metas": [{"phx_ref": "2"}]}}
    assert list(change.joins) == ["ann"]


def test_leave_and_join_again_in_one_window() -> None:
    """With a new ref both are published; with the same ref only a newcomer waits for the state."""
    presence: Presence[str] = Presence()
    presence.join("t", "bob", "r1", "m1")
    presence.flush()
    presence.leave("t", "bob", "r1", "m1")
    presence.join("t", "bob", "r2", "m2")
    assert presence.flush() == [Change("t", {"bob": metas("r2")}, {"bob": metas("r1")})]
    assert list(presence.newcomers("t")) == ["m2"]

    presence.leave("t", "bob", "r2", "m2")
    presence.join("t", "bob", "r2", "m3")
    assert presence.flush() == []
    assert presence.take_newcomers("t", 9) == ["m3"]
    assert state(presence, "t") == {"bob": metas("r2")}


def test_newcomers_wait_in_order_and_topics_take_turns() -> None:
    """The one that joined first is first, and a topic with many newcomers does not hold the others."""
    presence: Presence[str] = Presence()
    for member in ("m1", "m2", "m3"):
        presence.join("large", member, member, member)
    presence.join("small", "bob", "r", "m4")
    assert list(presence.waiting) == ["large", "small"]

    assert presence.take_newcomers("large", 2) == ["m1", "m2"]
    assert list(presence.waiting) == ["small", "large"]
    assert presence.take_newcomers("small", 2) == ["m4"]
    presence.leave("large", "m3", "m3", "m3")
    assert list(presence.waiting) == []


def test_the_state_follows_every_change() -> None:
    """The kept text is made anew after joins and leaves, with ids that need escapes."""
    presence: Presence[str] = Presence()
    assert state(presence, "t") == {}
    presence.join("t", 'a"\\é', "r1", "m1")
    assert state(presence, "t") == {'a"\\é': metas("r1")}
    presence.join("t", 'a"\\é', "r2", "m2")
    presence.join("t", "b", "r3", "m3")
    assert state(presence, "t") == {'a"\\é': metas("r1", "r2"), "b": metas("r3")}
    presence.leave("t", 'a"\\é', "r1", "m1")
    assert state(presence, "t") == {'a"\\é': metas("r2"), "b": metas("r3")}


def test_an_unknown_leave_is_ignored() -> None:
    """A leave of an absent member changes nothing."""
    presence: Presence[str] = Presence()
    presence.leave("t", "bob", "r1", "m1")
    presence.join("t", "bob", "r1", "m1")
    presence.flush()
    presence.leave("t", "bob", "r9", "m1")

    assert not presence.dirty
    assert presence.flush() == []


def test_a_lost_difference_is_repeated_by_the_next_flush() -> None:
    """It is repeated as it is by then, because a client may have received it or not."""
    presence: Presence[str] = Presence()
    for number in (1, 2, 3):
        presence.join("t", f"id{number}", f"r{number}", f"m{number}")
    (joined,) = presence.flush()
    presence.leave("t", "id1", "r1", "m1")
    (left,) = presence.flush()
    presence.restore("t", joined.joins, joined.leaves)
    presence.restore("t", left.joins, left.leaves)
    presence.leave("t", "id2", "r2", "m2")

    assert presence.dirty
    (change,) = presence.flush()
    assert change.joins == {"id3": metas("r3")}
    assert change.leaves.keys() == {"id1", "id2"}
    assert presence.flush() == []


def test_a_lost_difference_of_an_empty_topic_is_repeated() -> None:
    """Its last leave is published, and then the topic is forgotten."""
    presence: Presence[str] = Presence()
    presence.join("t", "bob", "r1", "m1")
    presence.flush()
    presence.leave("t", "bob", "r1", "m1")
    (left,) = presence.flush()
    presence.restore("t", left.joins, left.leaves)

    assert presence.flush() == [Change("t", {}, {"bob": metas("r1")})]
    assert presence.flush() == []
    assert state(presence, "t") == {}
