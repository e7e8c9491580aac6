"""Looking below exception groups."""

from tangram.groups import all_leaves_are, first_leaf, leaves, unwrap_single

KEY, OS, TYPE = KeyError("k"), OSError("o"), TypeError("t")
NESTED = ExceptionGroup("outer", [ExceptionGroup("inner", [KEY, OS]), TYPE])


def test_leaves_come_in_order() -> None:
    """Nested groups are flattened in order; an exception alone is its own leaf."""
    assert list(leaves(NESTED)) == [KEY, OS, TYPE]
    assert list(leaves(KEY)) == [KEY]
    assert first_leaf(NESTED) is KEY
    assert first_leaf(OS) is OS


def test_only_groups_of_one_are_unwrapped() -> None:
    """A group of several says more than one of its members, and stays."""
    several = ExceptionGroup("two", [KEY, OS])

    assert unwrap_single(ExceptionGroup("", [ExceptionGroup("", [KEY])])) is KEY
    assert unwrap_single(ExceptionGroup("", [several])) is several
    assert unwrap_single(OS) is OS


def test_every_leaf_is_judged() -> None:
    """One leaf of another kind is enough for a no."""
    assert all_leaves_are(ExceptionGroup("", [KEY, ExceptionGroup("", [KEY])]), KeyError)
    assert all_leaves_are(NESTED, LookupError, OSError, TypeError)
    assert not all_leaves_are(NESTED, KeyError)
    assert all_leaves_are(KEY, LookupError)
