from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.declared.template import parse_template
from tangram.errors import PluginError

PART = st.text(min_size=1, max_size=20).filter(lambda text: ":" not in text and "-" not in text)


@pytest.mark.parametrize(
    ("template", "topic", "parameters"),
    [
        ("clock", "clock", {}),
        ("clock", "clocks", None),
        ("flights:{area}", "flights:eu", {"area": "eu"}),
        ("flights:{area}", "flights:eu:secret", None),
        ("flights:{area}", "flights:", None),
        ("flights:{area}:{level}", "flights:eu:350", {"area": "eu", "level": "350"}),
        ("t-{a}-{b}", "t-1-2-3", {"a": "1", "b": "2-3"}),
        ("{any}", "x.y", {"any": "x.y"}),
        ("a.{b}", "axb", None),
        ("{line}", "a\nb", {"line": "a\nb"}),
    ],
)
def test_a_template_matches_topics(template: str, topic: str, parameters: dict[str, str] | None) -> None:
    """A parameter is any text without a colon, and nothing else is a pattern."""
    assert parse_template(template).match(topic) == parameters


@given(first=PART, second=PART)
def test_a_filled_template_matches_itself(first: str, second: str) -> None:
    """The parameters of a topic are those that it was made with."""
    template = parse_template("t:{first}-{second}")
    topic = template.fill({"first": first, "second": second})

    assert template.match(topic) == {"first": first, "second": second}


def test_a_topic_needs_its_parameters() -> None:
    """Missing and unknown parameters, and values that would be another topic, are refused."""
    template = parse_template("flights:{area}")

    assert template.fill({"area": 7}) == "flights:7"
    for wrong in ({}, {"areas": "eu"}, {"area": "eu", "level": 1}):
        with pytest.raises(TypeError, match="expected the parameters 'area'"):
            template.fill(wrong)
    for value in ("", "eu:secret"):
        with pytest.raises(ValueError, match="without a colon"):
            template.fill({"area": value})
    with pytest.raises(ValueError, match="more than 255 bytes"):
        template.fill({"area": "x" * 255})


@pytest.mark.parametrize("text", ["", "a:{b", "a}", "{a}{b}", "{a b}", "x:{a}:{a}", "x" * 256, "{a:int}"])
def test_a_malformed_name_is_refused(text: str) -> None:
    """The name of a channel is checked when the plugin is imported."""
    with pytest.raises(PluginError, match="expected"):
        parse_template(text)
