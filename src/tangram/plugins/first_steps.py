"""Tell a failed start of a plugin from a crash of one that runs.

A service has begun once it waits for the first time after the report of its start; a service without
``task_status`` reports it before its first line. So a service that raises at its first line has not begun.

The supervisor alone cannot decide this: the report, the crash and the end of the plugin's start are handled
in several tasks, which Trio runs in random order. The exception is therefore noted in the step in which it is
raised, before any other task can run. The next service, and the report of the plugin's start, read the note.
"""

from __future__ import annotations

from collections.abc import Iterable

import trio

from tangram.errors import BadMessage
from tangram.groups import all_leaves_are
from tangram.plugins.service import Service

__all__ = ["FirstSteps"]


class FirstSteps:
    """The first steps of a plugin's services, within one start of the plugin.

    Args:
        waiting: the names of the services whose start takes time. The other ones start at once.
    """

    def __init__(self, waiting: Iterable[str] = ()) -> None:
        self.failed = False
        """Whether a service has raised in its first step."""
        self._waiting = set(waiting)
        self._ended = False

    @property
    def complete(self) -> bool:
        """Whether all starts that take time are over, and no service has failed at once."""
        return not self._waiting and not self.failed

    def note_start(self, service: str) -> None:
        """Note that a service reports its start now."""
        self._waiting.discard(service)
        # Trio clears this attribute whenever it runs a task again, so that it marks the present step.
        trio.lowlevel.current_task().custom_sleep_data = self

    def note_error(self, service: Service, error: BaseException) -> None:
        """Note an exception of a service; called in the task of the service, at once."""
        if trio.lowlevel.current_task().custom_sleep_data is self:
            self.fail(service, error)

    def fail(self, service: Service, error: BaseException) -> None:
        """Note an exception that a service has raised in its first step, if that ends the plugin."""
        # A message that cannot be read is dropped, and its service is called again. The crash of a temporary
        # service is logged, and the plugin goes on without it.
        ends = service.restart != "temporary" and not all_leaves_are(error, BadMessage)
        if ends and not self._ended:
            self.failed = True

    async def check(self) -> None:
        """Wait for the cancellation if a service has failed in its first step.

        The crash of that service is on its way: the stop that follows it, or the time limit of the start,
        ends this wait.
        """
        if self.failed:
            await trio.sleep_forever()

    async def end(self) -> None:
        """End the start, unless a service has failed; then wait as `check` does.

        Later first steps decide nothing: a service may be called again when its node holds a lease again.
        """
        await self.check()
        self._ended = True
