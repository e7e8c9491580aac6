"""Note an exception that a service of an existing plugin raises before it first waits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from tangram.plugins.first_steps import FirstSteps
from tangram.plugins.service import Service
from tangram.task_status import RelayedStatus

__all__ = ["noting_first_step"]


@contextmanager
def noting_first_step(
    status: trio.TaskStatus[None], steps: FirstSteps, service: Service
) -> Iterator[RelayedStatus[None]]:
    """Hand out a status for a service in the block, and note an error of its first step.

    Args:
        status: gets the report of the start.
        steps: gets the exception, if the task has not waited since the report.
        service: the service.
    """
    waited = asyncio.Event()
    loop = asyncio.get_running_loop()

    def started(_value: None) -> None:
        # The loop runs callbacks in their order: this one after the present step, before the task's next one.
        loop.call_soon(waited.set)

    noted = RelayedStatus(status, on_started=started, repeatable=True)
    try:
        yield noted
    except BaseException as error:
        if not waited.is_set():
            steps.fail(service, error)
        raise
