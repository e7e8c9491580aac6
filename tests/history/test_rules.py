"""Which topics have a history, and which messages are kept."""

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.history import History, Rules
from tangram.history.rules import STAMPS, Rule
from tangram.testing.fakes.valkey.globs import matches

SMALL, LARGE = History(size=1), History(size=9)


def test_the_first_rule_that_matches_counts() -> None:
    """The operator's rules come before those of plugins, each in its order."""
    rules = Rules.of([Rule("flights:eu", SMALL)], [{"flights:*": LARGE}, {"flights:us": SMALL}])

    assert rules.find("flights:eu") is SMALL
    assert rules.find("flights:us") is LARGE
    assert rules.find("flights:a:b") is LARGE
    assert rules.find("flights") is None
    assert not Rules()


@pytest.mark.parametrize("topic", ["admin", "phoenix"])
def test_topics_of_the_server_have_no_history(topic: str) -> None:
    """Commands and lists of the server itself are never kept."""
    assert Rules([Rule("*", SMALL)]).find(topic) is None


@pytest.mark.parametrize("event", ["phx_error", "phx_reply", "presence_diff", "presence_state"])
def test_events_of_a_connection_are_not_kept(event: str) -> None:
    """A replay of presence or of the protocol's own events would be wrong."""
    assert Rules([Rule("*", SMALL)]).place(f"to:demo:{event}") is None


def test_a_channel_is_read_as_topic_and_event() -> None:
    """The last colon separates the two, and other channels have no place."""
    rules = Rules([Rule("*", SMALL)])

    assert rules.place(b"to:a:b:n") == ("a:b", "n", SMALL)
    assert rules.place("to:a:n") == ("a", "n", SMALL)
    assert rules.place("from:a:n") is None
    assert rules.place(b"to:\xff:n") is None
    assert rules.publishing("to:a:n", b"") is None


@given(st.text("ab:*?[]\\^-", max_size=8), st.text("ab:?[]\\^-", max_size=8))
def test_redis_and_this_process_agree_on_a_pattern(pattern: str, topic: str) -> None:
    """A message that a rule matches is received by the recorder, so none is left unrecorded."""
    rules = Rules([Rule(pattern, SMALL)])
    escaped = "".join(f"[{c}]" if c in "?[" else c for c in pattern)

    assert (rules.find(topic) is not None) == fnmatch.fnmatchcase(topic, escaped)
    if rules.find(topic) is not None:
        assert any(matches(one, f"to:{topic}:event".encode()) for one in rules.redis_patterns())
    assert rules.redis_patterns()[0] == STAMPS


def test_other_rules_have_another_digest() -> None:
    """The digest tells Redis that histories may lack messages because the rules have changed."""
    assert Rules([Rule("a", SMALL)]).digest != Rules([Rule("a", LARGE)]).digest
    assert Rules([Rule("a", SMALL)]).digest == Rules([Rule("a", History(size=1))]).digest
