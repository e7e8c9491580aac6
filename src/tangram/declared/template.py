"""Names of topics with parameters: ``flights:{area}``.

1. A parameter stands for one or more characters, none of which is a colon.
2. A template knows neither events nor members, and does no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import attrs

from tangram.errors import PluginError

__all__ = ["TopicTemplate", "parse_template"]

_NAME: Final = re.compile(r"\{([^{}]*)\}")
MAX_TOPIC: Final = 255
"""Bytes of a topic's name, as of the protocol."""


@attrs.frozen
class TopicTemplate:
    """The name of a topic, or of many topics that differ in their parameters."""

    text: str
    names: tuple[str, ...]
    """The parameters, from left to right."""
    _pattern: re.Pattern[str] = attrs.field(eq=False, repr=False)
    glob: str = attrs.field(eq=False)
    """A pattern with ``*`` that matches all of these topics, and perhaps others."""

    def match(self, topic: str) -> dict[str, str] | None:
        """Return the parameters of a topic, or None if it has another form."""
        found = self._pattern.fullmatch(topic)
        return None if found is None else dict(zip(self.names, found.groups(), strict=True))

    def fill(self, parameters: Mapping[str, object]) -> str:
        """Return the topic with these parameters.

        Raises:
            TypeError: a parameter is missing, or has no place in the name.
            ValueError: a value cannot be a part of a topic's name.
        """
        if not self.names and not parameters:
            return self.text
        if parameters.keys() != set(self.names):
            raise TypeError(
                f"expected the parameters {', '.join(map(repr, self.names)) or 'none'} of "
                f"{self.text!r}, not {', '.join(map(repr, sorted(parameters))) or 'none'}"
            )
        topic = _NAME.sub(lambda found: _part(found[1], parameters[found[1]]), self.text)
        if len(topic.encode()) > MAX_TOPIC:
            raise ValueError(f"the topic {topic[:40]!r}... has more than {MAX_TOPIC} bytes")
        return topic


def _part(name: str, value: object) -> str:
    part = str(value)
    if not part or ":" in part:
        raise ValueError(f"expected {name} to be text without a colon and not empty, not {part!r}")
    return part


def parse_template(text: str) -> TopicTemplate:
    """Parse the name of a topic.

    Raises:
        PluginError: the name is malformed.
    """
    names = [found[1] for found in _NAME.finditer(text)]
    rest = _NAME.sub("", text)
    if not text or "{" in rest or "}" in rest or len(rest.encode()) > MAX_TOPIC:
        raise PluginError(f"expected a topic such as 'flights:{{area}}', not {text!r}")
    if "}{" in text:
        raise PluginError(f"expected text between the parameters of the topic {text!r}")
    if wrong := [name for name in names if not name.isidentifier()]:
        raise PluginError(f"expected {wrong[0]!r} in the topic {text!r} to be the name of a parameter")
    if len(set(names)) < len(names):
        raise PluginError(f"expected each parameter once in the topic {text!r}")
    texts = _NAME.split(text)[::2]
    return TopicTemplate(text, tuple(names), re.compile(_pattern_of(texts)), "*".join(texts))


def _pattern_of(texts: list[str]) -> str:
    """Return a regular expression in which each parameter ends before the next text."""
    first, *between = map(re.escape, texts)
    if not between:
        return first
    *inner, last = between
    return first + "".join(f"(?>([^:]+?){text})" for text in inner) + f"([^:]+?){last}"
