"""Names on Redis."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.bus.topics import (
    escape_glob,
    from_channel,
    parse_from,
    parse_to,
    to_channel,
)
from tests.bus.valkeyglob import matches

text = st.text(max_size=20)
no_colon = text.filter(lambda value: ":" not in value)


@given(topic=text, event=no_colon)
def test_a_name_is_parsed_to_its_topic_and_event(topic: str, event: str) -> None:
    """A topic may hold colons, an event may not; both directions agree."""
    assert parse_to(to_channel(topic, event).encode("utf-8", "surrogatepass")) == (topic, event)
    assert parse_from(from_channel(topic, event).encode("utf-8", "surrogatepass")) == (topic, event)


@given(st.binary(max_size=30))
def test_no_name_raises(channel: bytes) -> None:
    """Any bytes are either a topic and an event, or None."""
    parsed = parse_to(b"to:" + channel)

    assert parsed is None or to_channel(*parsed).encode() == b"to:" + channel


def test_the_last_colon_separates_topic_and_event() -> None:
    """The topic may hold colons; the event may be empty."""
    assert parse_to(b"to:weather:wind:update") == ("weather:wind", "update")
    assert parse_to(b"to:obs:x:") == ("obs:x", "")
    assert parse_to(b"to:a:b") == ("a", "b")


@pytest.mark.parametrize("name", [to_channel, from_channel])
def test_an_event_with_a_colon_is_refused(name: Callable[[str, str], str]) -> None:
    """It would be read as the event of another topic."""
    with pytest.raises(ValueError, match="the event 'staff:delete' holds a colon"):
        name("my-plugin", "staff:delete")


def test_other_names_are_none() -> None:
    """A name without an event, with another prefix or with bytes that are not UTF-8 is None."""
    for channel in (b"to:system", b"to:", b"", b"from:a:b", b"TO:a:b", b"to:\xff:x"):
        assert parse_to(channel) is None
    assert parse_from(b"to:a:b") is None


@given(st.text(alphabet="ab*?[]\\^-:", max_size=8), st.text(alphabet="ab*?[]\\^-:", max_size=8))
def test_an_escaped_name_matches_only_itself(name: str, other: str) -> None:
    """A name from outside cannot read another channel."""
    assert matches(escape_glob(name), name)
    assert matches(escape_glob(name), other) == (name == other)
