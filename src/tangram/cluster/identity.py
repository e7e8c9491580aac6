"""The name of a node: which of two servers may use it, without I/O.

1. Redis keeps one record for each name, with the run that owns it. The beat of any other run changes nothing
   while the record lasts.
2. A run whose beat is refused asks the owner. A server that is alive answers at once.
3. An answer shows that another server uses the name: this one must end. The newer one is refused so, and the
   cluster goes on undisturbed.
4. Without an answer within `ANSWER_TIME` the owner is dead, and this run takes the name from it. So a server
   that was killed starts again at once, and need not wait until its last record expires. A run that looks
   much later asks again: it was stopped itself, and may have missed the answer.
5. The take names the owner. If another run was faster it changes nothing, and the next beat is refused again.
6. A run that was taken for dead, because it was stopped or cut off from Redis, is refused when it comes back.
   It asks, too, and ends. So the name stays with the run that owns the record, and never changes to and fro.
7. A run that does not own its name must not act by it: it takes no lease and removes no member of a topic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Final

__all__ = ["ANSWER_TIME", "HERE", "WHO", "Identity", "NameStep"]

ANSWER_TIME: Final = 0.5
"""Seconds for the owner of a name to answer.

Longer than an event loop is blocked without a report, and short enough for a restart. A server that is
blocked for longer loses its name, and ends when it goes on.
"""
LATE: Final = 1.0
"""Seconds after which the silence of an owner proves nothing: this server itself may have been stopped."""
WHO: Final = "who"
"""The kind of change that asks the owner of a name."""
HERE: Final = "here"
"""The kind of change that answers."""


class NameStep(Enum):
    """The next step of a run after its beat."""

    GO_ON = "go on"
    """The name is its own."""
    ASK = "ask"
    """Publish `Identity.question`; then report it by `Identity.asked`, or the failure by `interrupted`."""
    WAIT = "wait"
    """The question is on its way."""
    TAKE = "take"
    """Take the name from the owner, which is dead."""
    END = "end"
    """Another server uses the name."""


class Identity:
    """The name of one run.

    Args:
        node: the name.
        run: the random name of this run.
        place: where this server runs, in words for its operator.
    """

    def __init__(self, node: str, run: str, place: str = "") -> None:
        self.owns = False
        """Whether Redis has accepted the last beat."""
        self.owner = ""
        """The run that owns the name, as the last refused beat has told."""
        self.rival = ""
        """The place of the other server, once it has answered."""
        self._node = node
        self._run = run
        self._place = place
        self._question = ""
        """The owner that was asked."""
        self._until = math.inf

    def beaten(self, now: float, before: str) -> NameStep:
        """Take the answer to a beat, and return the next step.

        Args:
            now: the time.
            before: the run that owned the name before the beat; empty for none.
        """
        self.owns = before in {"", self._run}
        if self.owns:
            self.owner = self._question = self.rival = ""
            return NameStep.GO_ON
        if before != self._question or now > self._until + LATE:
            # The answer may come before the report that the question is published.
            self.owner, self._question, self.rival, self._until = before, before, "", math.inf
            return NameStep.ASK
        if self.rival:
            return NameStep.END
        return NameStep.TAKE if now >= self._until else NameStep.WAIT

    @property
    def question(self) -> Mapping[str, str]:
        """The change that asks the owner."""
        return {"what": WHO, "node": self._node, "run": self.owner, "place": self._place}

    def asked(self, now: float) -> None:
        """Note that the question is published."""
        self._until = now + ANSWER_TIME

    def interrupted(self) -> None:
        """Ask again: the question was not published, or its answer may have been missed."""
        self._question = ""

    def heard(self, change: Mapping[str, str]) -> Mapping[str, str] | None:
        """Take a change of any node; return the answer to a question to this run."""
        if change.get("node") != self._node:
            return None
        run, place = change.get("run", ""), change.get("place", "")
        if change.get("what") == WHO and run == self._run:
            return {"what": HERE, "node": self._node, "run": run, "place": self._place}
        if change.get("what") == HERE and run == self._question:
            self.rival = place or "an unknown place"
        return None
