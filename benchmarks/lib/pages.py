"""A process of Node that writes lines of JSON about its pages, and takes commands in lines."""

from __future__ import annotations

import json
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

__all__ = ["NodePages", "open_pages"]

PagesT = TypeVar("PagesT", bound="NodePages")


class NodePages:
    """The pages in one process of Node.

    A derived class overrides ``take``, which is called with each line.

    Args:
        process: has pipes for its input and output.
    """

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.last: deque[bytes] = deque(maxlen=30)
        """The last lines, for the report of a wait that was in vain."""
        self._changed = trio.Event()
        self._ended = False

    def take(self, said: dict[str, Any]) -> None:
        """Take one line of the process."""
        raise NotImplementedError

    async def read(self) -> None:
        """Take the lines of the process until it ends."""
        assert self.process.stdout is not None
        rest = b""
        async for data in self.process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            self.last.extend(lines)
            for line in lines:
                self.take(json.loads(line))
            self._note_change()
        self._ended = True
        self._note_change()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def say(self, line: str) -> None:
        """Send a command."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(line.encode() + b"\n")

    async def wait(self, condition: Callable[[], bool], seconds: float = 40.0) -> None:
        """Return once the lines have made a condition true.

        Raises:
            AssertionError: the process has ended before, or it took longer than ``seconds``.
        """
        with trio.move_on_after(seconds):
            while not condition() and not self._ended:
                await self._changed.wait()
        assert condition(), list(self.last)


@asynccontextmanager
async def open_pages(make: Callable[[trio.Process], PagesT], *arguments: str) -> AsyncIterator[PagesT]:
    """Run Node with these arguments, and end it at the end of the block."""
    async with trio.open_nursery() as nursery:

        async def start(task_status: trio.TaskStatus[trio.Process]) -> None:
            pipe = subprocess.PIPE
            await trio.run_process(
                ["node", *arguments], stdin=pipe, stdout=pipe, check=False, task_status=task_status
            )

        pages = make(await nursery.start(start))
        nursery.start_soon(pages.read)
        yield pages
        nursery.cancel_scope.cancel()
