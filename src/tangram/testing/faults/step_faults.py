"""Injections at one step of a server's tasks, by a Trio instrument that counts steps."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final, Literal

import trio

from tangram.supervision import CURRENT_CHILD_TASK
from tangram.supervision.child_task import ChildTask
from tangram.testing.checks.census import UNDER_TEST
from tangram.testing.injection.child_faults import InjectedFault, NothingToStrike
from tangram.testing.injection.io_faults import OPERATIONS, Operation
from tangram.testing.run.server import RunningTangram

__all__ = ["HARMLESS_FAULTS", "KINDS", "StepFault", "StepInstrument", "children_in_state"]

StepFault = Literal["cancel", "crash", "drop", "kill", "reset", "stop", "dial", "send", "receive"]

KINDS: Final[tuple[StepFault, ...]] = ("cancel", "crash", "drop", "kill", "reset", "stop", *OPERATIONS)
"""The kinds of injection.

- ``cancel``: the cancel scope of the child in whose task the step is.
- ``crash``: an exception in the nearest child of the tree.
- ``drop``: every connection to the broker breaks.
- ``kill``: the broker ends.
- ``reset``: every connection to the web port breaks.
- ``stop``: the whole server is stopped.
- ``dial``, ``send``, ``receive``: the next such operation towards the broker raises.
"""

HARMLESS_FAULTS: Final[frozenset[str]] = frozenset({"drop", "reset", *OPERATIONS})
"""Kinds that must not crash a part of the core: connections come and go."""


class StepInstrument(trio.abc.Instrument):
    """Counts the steps of the server's tasks, and injects something at one of them."""

    def __init__(
        self, kind: StepFault | None, at: int, scope: str | None = None, left_out: Collection[str] = ()
    ) -> None:
        self.kind = kind
        self.at = at
        self.count = 0
        self.struck = ""
        """The task in which it struck; empty until then."""
        self.struck_at = 0
        self.left_out = set(left_out)
        """Children that are in quarantine also without an injection."""
        self._events_before = 0
        self._starting: set[str] | None = None
        """Children that were being started when it struck; None where it struck in the first boot."""
        self.server: RunningTangram | None = None
        self._scope = scope
        self._files: dict[str, bool] = {}

    def watch(self, server: RunningTangram) -> None:
        self.server = server
        if self.kind in OPERATIONS:
            server.faulty_dial.fails = self._fails

    def _fails(self, operation: Operation) -> bool:
        """Return whether an operation of the bus fails: the first one from the step on."""
        if operation != self.kind or self.struck or self.count < self.at:
            return False
        self._note(trio.lowlevel.current_task())
        return True

    def _note(self, task: trio.lowlevel.Task) -> None:
        assert self.server is not None
        self._events_before = len(self.server.events)
        self.left_out.update(children_in_state(self.server, "quarantined"))
        if self.server.server.ready_count:
            self._starting = set(children_in_state(self.server, "starting"))
        life = task.context.get(CURRENT_CHILD_TASK)
        self.struck = f"task {task.name} of {'the root' if life is None else life.child}"
        self.struck_at = self.count

    def excuses(self, child: str) -> bool:
        """Return whether a child may be in quarantine after this injection.

        It may where it was struck in the one start that an incarnation gives it and has had no other
        since.
        """
        if child in self.left_out:
            return True
        assert self.server is not None
        for event in self.server.events[self._events_before :]:
            if event.kind == "restarting":
                return False
            if event.kind == "quarantined" and event.child == child:
                return self._starting is None or child in self._starting
        return False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.server is None or task.context.get(UNDER_TEST) is not self.server:
            return
        if self._scope is not None and not self._in_scope(task, self._scope):
            return
        self.count += 1
        # Where there is no target (a task outside of all children, a broker that is not up), the next step is
        # taken.
        if self.kind is not None and not self.struck and self.count >= self.at and self._strike(task):
            self._note(task)

    def _in_scope(self, task: trio.lowlevel.Task, scope: str) -> bool:
        """Return whether a task stands below the child, or runs code of its plugin."""
        life = below = task.context.get(CURRENT_CHILD_TASK)
        while life is not None:
            if life.child == scope:
                return True
            life = life.supervisor.parent
        if below is None or below.child != "web":
            return False
        # A request handler runs in the task of its connection, below the web child.
        return any(self._owned(frame.f_code.co_filename, scope) for frame, _ in task.iter_await_frames())

    def _owned(self, filename: str, scope: str) -> bool:
        known = self._files.get(filename)
        if known is None:
            assert self.server is not None
            tree = self.server.server.tree
            owner = None if tree is None else tree.plugins.owner_of(filename)
            known = self._files[filename] = owner is not None and scope == f"plugin:{owner}"
        return known

    def _strike(self, task: trio.lowlevel.Task) -> bool:
        server = self.server
        assert server is not None
        life = task.context.get(CURRENT_CHILD_TASK)
        if self.kind in OPERATIONS:
            return False  # struck by `_fails`
        if self.kind == "stop":
            server.stop()
        elif self.kind == "reset":
            return server.port is not None and server.port.reset() > 0
        elif self.kind in {"drop", "kill"}:
            return self._strike_broker(server)
        elif self.kind == "crash":
            return self._crash(server, life)
        elif life is None or life.trio_task is None:
            return False
        else:
            server.out_of_turn.add(life.child)
            life.scope.cancel()
        return True

    def _strike_broker(self, server: RunningTangram) -> bool:
        broker = server.memory
        assert broker is not None
        if not broker.statistics().up:
            return False
        (broker.drop if self.kind == "drop" else broker.kill)()
        return True

    def _crash(self, server: RunningTangram, life: ChildTask | None) -> bool:
        """Crash the child itself, or the nearest one above it that has a fault port."""
        while life is not None:
            try:
                server.crash(life.child, InjectedFault(f"at step {self.count}"))
            except NothingToStrike:
                life = life.supervisor.parent
            else:
                return True
        return False


def children_in_state(server: RunningTangram, *states: str) -> Iterator[str]:
    """Yield the children in one of these states, those of nested supervisors included."""
    root = server.server.root
    tops = [] if root is None else [root.statistics()]
    while tops:
        for child in tops.pop().children:
            tops += child.nested
            if child.state in states:
                yield child.name
