from __future__ import annotations

from tangram.channels.presence import Change, Presence


def metas(*refs: str) -> dict[str, list[dict[str, str]]]:
    return {"metas": [{"phx_ref": ref} for ref in refs]}


def test_all_joins_of_a_window_make_one_change() -> None:
    """A thousand joins between two flushes are one difference and one state."""
    presence: Presence[str] = Presence()
    for number in range(1000):
        presence.join("t", f"id{number}", f"ref{number}", f"m{number}")

    (change,) = presence.flush()
    assert len(change.joins) == len(change.state) == len(change.newcomers) == 1000
    assert change.leaves == {}
    assert presence.flush() == []


def test_two_sockets_of_one_id_are_one_key() -> None:
    """Metas are gathered under the external id, and the key ends with the last of them."""
    presence: Presence[str] = Presence()
    presence.join("t", "bob", "r1", "m1")
    presence.join("t", "bob", "r2", "m2")
    presence.flush()
    assert presence.state("t") == {"bob": metas("r1", "r2")}

    presence.leave("t", "bob", "r1", "m1")
    assert presence.flush() == [Change("t", {}, (), {}, {"bob": metas("r1")})]
    presence.leave("t", "bob", "r2", "m2")
    assert presence.state("t") == {}


def test_join_and_leave_in_one_window_cancel_out() -> None:
    """A member that joins and leaves between two flushes is not published."""
    presence: Presence[str] = Presence()
    presence.join("t", "bob", "r1", "m1")
    presence.leave("t", "bob", "r1", "m1")

    assert presence.flush() == []


def test_leave_and_join_again_in_one_window() -> None:
    """With a new ref both are published; with the same ref only the newcomer gets the state."""
    presence: Presence[str] = Presence()
    presence.join("t", "bob", "r1", "m1")
    presence.flush()
    presence.leave("t", "bob", "r1", "m1")
    presence.join("t", "bob", "r2", "m2")
    assert presence.flush() == [
        Change("t", {"bob": metas("r2")}, ("m2",), {"bob": metas("r2")}, {"bob": metas("r1")})
    ]

    presence.leave("t", "bob", "r2", "m2")
    presence.join("t", "bob", "r2", "m3")
    assert presence.flush() == [Change("t", {"bob": metas("r2")}, ("m3",), {}, {})]


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

    assert presence.flush() == [Change("t", {}, (), {}, {"bob": metas("r1")})]
    assert presence.flush() == []
    assert presence.state("t") == {}
