"""The plugin behind the page at ``/``: live host metrics, a few routes, and a counter of commands.

=====================  ================================================================================
``to:demo:metrics``    once a second, a :class:`~tangram_demo.host.Sample` and the count, as JSON
``to:demo:count``      ``{"count": n}``, after each command
``from:demo:command``  what a browser pushes: counted
=====================  ================================================================================
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Annotated

import trio

import tangram
from tangram_demo.commands import CommandCount, CommandCounter
from tangram_demo.host import Info, Meter, Sample, read_info

PERIOD = 1.0  # seconds between two samples
KEPT = 600  # samples: ten minutes


@dataclass
class Demo:
    """What the services write and the routes read; a new one each time the plugin is started."""

    commands: CommandCount
    info: Info = field(default_factory=read_info)
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=KEPT))


class Metric(Enum):
    CPU = "cpu"
    MEMORY = "memory"
    LOAD = "load"


router = tangram.APIRouter(prefix="/demo", tags=["demo"])


@router.get("/info")
async def info(state: tangram.BackendState) -> Info:
    """The machine that this server runs on."""
    demo: Demo = state.demo
    return demo.info


@router.get("/history")
async def history(
    state: tangram.BackendState,
    limit: Annotated[int, tangram.Query(ge=1, le=KEPT)] = 60,
) -> list[Sample]:
    """The newest samples, oldest first."""
    demo: Demo = state.demo
    return list(demo.samples)[-limit:]


@router.get("/history/{metric}")
async def history_of(
    metric: Metric,
    state: tangram.BackendState,
    limit: Annotated[int, tangram.Query(ge=1, le=KEPT)] = 60,
) -> list[float]:
    """The newest values of one metric, oldest first."""
    demo: Demo = state.demo
    return [getattr(sample, metric.value) for sample in list(demo.samples)[-limit:]]


@router.get("/count")
async def count(state: tangram.BackendState) -> dict[str, int]:
    """How many commands came since the plugin was started."""
    demo: Demo = state.demo
    return {"count": demo.commands.count}


@asynccontextmanager
async def lifespan(state: tangram.BackendState) -> AsyncIterator[None]:
    state.demo = Demo(commands=CommandCount(state.redis_client))
    yield
    del state.demo


plugin = tangram.Plugin(routers=[router], lifespan=lifespan)


@plugin.register_service()
async def publish_metrics(state: tangram.BackendState) -> None:
    """Measure once a second, keep it for the routes, and tell everyone on the topic."""
    demo: Demo = state.demo
    meter = Meter()
    due = trio.current_time()
    while True:
        due = max(
            due + PERIOD, trio.current_time()
        )  # by the clock, not by the pause; what was missed is not made up
        await trio.sleep_until(due)
        sample = meter.read()
        demo.samples.append(sample)
        message = json.dumps({**asdict(sample), "count": demo.commands.count})
        # Redis is away: the next sample is worth more than this one, and a crash would not bring it back.
        with suppress(tangram.BrokerUnavailable):
            await state.redis_client.publish("to:demo:metrics", message)


@plugin.register_service()
async def count_commands(state: tangram.BackendState) -> None:
    """Listen for commands from the browser, until cancelled."""
    demo: Demo = state.demo
    counter = CommandCounter(
        name="DemoCommands",
        redis_url=state.config.core.redis_url,
        channels=["from:demo:command"],
        initial_state=demo.commands,
    )
    await counter.subscribe()
    try:
        await trio.sleep_forever()
    finally:
        await counter.cleanup()
