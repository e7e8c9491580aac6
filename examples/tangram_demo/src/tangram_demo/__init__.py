"""The plugin of the page at ``/``: metrics of the machine, and a counter of commands.

=====================  ================================================================================
``to:demo:metrics``    once a second: a ``Metrics``
``to:demo:count``      a ``Count``, after each command
``from:demo:command``  a push of a browser, which is counted
=====================  ================================================================================
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Annotated, Final

import trio

import tangram
from tangram_demo.commands import CommandCount, CommandCounter, Count
from tangram_demo.host import Info, Meter, Sample, read_info

PERIOD: Final = 1.0
"""Seconds between two samples."""

KEPT: Final = 600
"""Samples that are kept: those of ten minutes."""


@dataclass
class Demo:
    """The data that services write and routes read; each start of the plugin creates it."""

    commands: CommandCount
    info: Info = field(default_factory=read_info)
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=KEPT))


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics(Sample):
    """A sample and the number of commands, as browsers receive them."""

    count: int


class Metric(Enum):
    CPU = "cpu"
    MEMORY = "memory"
    LOAD = "load"


router = tangram.APIRouter(prefix="/demo", tags=["demo"])


@router.get("/info")
async def info(state: tangram.BackendState) -> Info:
    """Describe the machine that this server runs on."""
    demo = state.get(Demo)
    return demo.info


@router.get("/history")
async def history(
    state: tangram.BackendState,
    limit: Annotated[int, tangram.Query(ge=1, le=KEPT)] = 60,
) -> list[Sample]:
    """List the newest samples, the oldest first."""
    demo = state.get(Demo)
    return list(demo.samples)[-limit:]


@router.get("/history/{metric}")
async def history_of(
    metric: Metric,
    state: tangram.BackendState,
    limit: Annotated[int, tangram.Query(ge=1, le=KEPT)] = 60,
) -> list[float]:
    """List the newest values of one metric, the oldest first."""
    demo = state.get(Demo)
    return [getattr(sample, metric.value) for sample in list(demo.samples)[-limit:]]


@router.get("/count")
async def count(state: tangram.BackendState) -> dict[str, int]:
    """Return the number of commands since the start of the plugin."""
    demo = state.get(Demo)
    return {"count": demo.commands.count}


@asynccontextmanager
async def lifespan(state: tangram.BackendState) -> AsyncIterator[None]:
    state.put(Demo(commands=CommandCount(counted.publish)))
    yield


plugin = tangram.Plugin(routers=[router], lifespan=lifespan)
channel = plugin.channel("demo", description="The load of the machine")
metrics = channel.sends("metrics", Metrics)
counted = channel.sends("count", Count)


@plugin.register_service()
async def publish_metrics(state: tangram.BackendState) -> None:
    """Measure once a second, keep the sample for the routes, and publish it."""
    demo = state.get(Demo)
    meter = Meter()
    due = trio.current_time()
    while True:
        # Measured from the last due time, so that pauses do not add up; missed samples are skipped.
        due = max(due + PERIOD, trio.current_time())
        await trio.sleep_until(due)
        sample = meter.read()
        demo.samples.append(sample)
        message = Metrics(**asdict(sample), count=demo.commands.count)
        # Without Redis this sample is lost; the next one replaces it, so the plugin need not crash.
        with suppress(tangram.BrokerUnavailable):
            await metrics.publish(message)


@plugin.register_service()
async def count_commands(state: tangram.BackendState, *, task_status: trio.TaskStatus[None]) -> None:
    """Count the commands of browsers, until cancelled; the start is over when none is missed."""
    demo = state.get(Demo)
    counter = CommandCounter(
        name="DemoCommands",
        redis_url=state.config.core.redis_url,
        channels=["from:demo:command"],
        initial_state=demo.commands,
    )
    await counter.subscribe()
    task_status.started()
    try:
        await trio.sleep_forever()
    finally:
        await counter.cleanup()
