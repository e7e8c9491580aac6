"""How the members of each topic are shown: as a list, as a number, or not at all.

1. The first rule whose pattern matches a topic counts. In a pattern ``*`` stands for any characters, colons
   included, and every other character for itself.
2. A topic without a rule has its list, however many members there are.
3. A topic above its limit shows a number, until its members are a tenth below the limit: a member that comes
   and goes at the limit must not cause a list for everyone each time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

__all__ = ["Mode", "PresenceRule", "PresenceRules", "is_over"]

Mode = Literal["full", "count", "none"]

_MAX_KNOWN: Final = 8192
"""Topics whose rule is remembered; all are forgotten at once when there are more."""


class PresenceRule(NamedTuple):
    """A pattern of topics, and how their members are shown."""

    pattern: str
    mode: Mode = "full"
    limit: int | None = 1000
    """Members above which a topic shows their number instead; None for never."""


class PresenceRules:
    """The rules of a server in order.

    Args:
        rules: the rules; the first that matches a topic counts.
    """

    def __init__(self, rules: Iterable[PresenceRule] = ()) -> None:
        self.rules = tuple(rules)
        self._patterns = [re.compile(_regex(rule.pattern), re.DOTALL) for rule in self.rules]
        self._known: dict[str, PresenceRule | None] = {}

    def tracks(self, topic: str) -> bool:
        """Return whether a topic has presence."""
        rule = self._find(topic)
        return rule is None or rule.mode != "none"

    def limit(self, topic: str) -> int | None:
        """Return the members above which a topic shows their number; None for never, 0 for always."""
        rule = self._find(topic)
        if rule is None:
            return None
        return 0 if rule.mode == "count" else rule.limit

    def _find(self, topic: str) -> PresenceRule | None:
        if not self.rules:
            return None
        try:
            return self._known[topic]
        except KeyError:
            pass
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        pairs = zip(self._patterns, self.rules, strict=True)
        found = next((rule for pattern, rule in pairs if pattern.fullmatch(topic)), None)
        self._known[topic] = found
        return found


def is_over(count: int, limit: int | None, *, counting: bool) -> bool:
    """Return whether a topic with ``count`` members shows their number.

    ``functions.lua`` of ``tangram.presence`` has the same rule.

    Args:
        count: the members.
        limit: the limit of the topic; None for none.
        counting: whether it shows the number already.
    """
    if limit is None:
        return False
    return count > (limit * 9 // 10 if counting else limit)


def _regex(pattern: str) -> str:
    return ".*".join(map(re.escape, pattern.split("*")))
