"""The plugin of a server under attack, which measures the loop.

The scenario installs this file into the server's folder. It blocks nothing: an instrument of Trio reads the
clock of the loop's thread.
"""

from __future__ import annotations

import gc
import time
from typing import Annotated, Any

import attrs
import trio

import tangram

router = tangram.APIRouter(prefix="/probe")
plugin = tangram.Plugin(routers=[router])


@attrs.define
class Pass:
    """One pass of the event loop: the steps of all tasks that were ready."""

    seconds: float = 0.0
    """CPU time of the loop's thread."""
    steps: int = 0
    longest_step: float = 0.0
    """Seconds of CPU of its longest step."""
    task: str = ""
    """The task of that step."""
    collector: float = 0.0
    """Seconds of CPU of the garbage collector."""


class PassTimer(trio.abc.Instrument):
    """Measures each pass of the loop, and keeps the longest.

    A pass is the time between two looks of the loop at its sockets: a client's bytes wait at most this long
    before the server learns of them. It is measured in CPU time of the loop's thread and not in real time,
    because another process on the same core delays the loop and does not block it.
    """

    def __init__(self) -> None:
        self.longest = Pass()
        self.starved: list[float] = []
        """Seconds by which each pass took longer than its CPU time: the thread was ready and did not run."""
        self._pass = Pass()
        self._began = self._step_began = time.thread_time()
        self._began_at = time.perf_counter()

    def collect(self, phase: str, info: dict[str, int]) -> None:
        """Measure the garbage collector, as one of its callbacks."""
        seconds = time.thread_time()
        self._pass.collector += seconds if phase == "stop" else -seconds

    def take(self) -> dict[str, Any]:
        """Return the longest pass so far and the 99th percentile of starvation, and begin anew."""
        longest, self.longest = self.longest, Pass()
        starved, self.starved = sorted(self.starved), []
        return {**attrs.asdict(longest), "starved": starved[len(starved) * 99 // 100] if starved else 0.0}

    def after_io_wait(self, timeout: float) -> None:
        self._pass = Pass()
        self._began = time.thread_time()
        self._began_at = time.perf_counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._step_began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        seconds = time.thread_time() - self._step_began
        current = self._pass
        current.steps += 1
        if seconds > current.longest_step:
            current.longest_step, current.task = seconds, task.name

    def before_io_wait(self, timeout: float) -> None:
        current = self._pass
        current.seconds = time.thread_time() - self._began
        self.starved.append(time.perf_counter() - self._began_at - current.seconds)
        if current.seconds > self.longest.seconds:
            self.longest = current


timer = PassTimer()


@router.get("/longest")
async def take_longest() -> dict[str, Any]:
    """Return the measurements of the loop since the last request."""
    return timer.take()


@router.post("/values")
async def count_values(body: Annotated[list[list[int]], tangram.Body()]) -> int:
    """Return the number of arrays in a body."""
    return len(body)


@plugin.register_service()
async def measure(state: Any) -> None:
    """Measure the loop until cancelled."""
    trio.lowlevel.add_instrument(timer)
    gc.callbacks.append(timer.collect)
    try:
        await trio.sleep_forever()
    finally:
        gc.callbacks.remove(timer.collect)
        trio.lowlevel.remove_instrument(timer)


@plugin.register_service()
async def echo(state: Any) -> None:
    """Publish every ``echo`` push to the members of its topic."""
    async for message in state.subscribe("from:*:echo"):
        topic = message.channel.removeprefix("from:").removesuffix(":echo")
        await state.publish(f"to:{topic}:echo", message.payload)
