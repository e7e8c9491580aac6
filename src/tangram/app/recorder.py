"""The recorder of the tree, which outlives incarnations: the running one, and its rules."""

from __future__ import annotations

import random

import trio

from tangram.broker import EmbeddedBroker, ExternalBroker, SharedBroker
from tangram.history.recording import Recording
from tangram.history.rules import Rules

__all__ = ["RecorderPlace"]


class RecorderPlace:
    """Runs the recorder, and lets the parts of an incarnation find it."""

    def __init__(self) -> None:
        self._recording: Recording | None = None
        """The newest one, which may have ended."""

    def has_other_rules(self, rules: Rules) -> bool:
        """Return whether the newest recorder was started with other rules."""
        return self._recording is not None and self._recording.rules != rules

    def nudge(self) -> None:
        """Let the recorder take a step now if one is due; see ``Recording.nudge``."""
        if self._recording is not None:
            self._recording.nudge()

    async def run(
        self,
        broker: EmbeddedBroker | ExternalBroker | SharedBroker,
        rules: Rules,
        rng: random.Random,
        *,
        task_status: trio.TaskStatus[Recording],
    ) -> None:
        """Run a recorder until cancelled."""
        node = f"{rng.getrandbits(64):016x}"
        alone = isinstance(broker, EmbeddedBroker)
        self._recording = Recording(broker.server_url, rules, node, alone=alone)
        await self._recording.run(task_status=task_status)
