"""Plugins that the tests of the composed server use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

import tangram
from tangram.errors import BrokerUnavailable
from tangram.testing import RunningTangram


class Journal:
    """The record of a plugin's calls, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)


def make_plugin(journal: Journal, name: str = "probe") -> tangram.Plugin:
    """Return a plugin with a lifespan, two services, a route, and a route that crashes one."""
    router = tangram.APIRouter(prefix=f"/{name}")
    crash = {"now": trio.Event()}

    @asynccontextmanager
    async def lifespan(state: tangram.BackendState) -> AsyncIterator[None]:
        journal(f"{name} lifespan in")
        try:
            yield
        finally:
            journal(f"{name} lifespan out")

    plugin = tangram.Plugin(routers=[router], lifespan=lifespan)
    plugin.name = name

    @router.get("/value")
    async def value(state: tangram.BackendState) -> dict[str, object]:
        return {"value": 42, "url": state.config.core.redis_url}

    @router.post("/crash")
    async def crash_now() -> dict[str, bool]:
        crash["now"].set()
        return {"crashing": True}

    @plugin.register_service(priority=1)
    async def ticker(state: tangram.BackendState) -> None:
        journal(f"{name} ticker in")
        try:
            while True:
                await state.redis_client.publish(f"to:{name}:tick", b'{"tick":1}')
                await trio.sleep(0.02)
        finally:
            journal(f"{name} ticker out")

    @plugin.register_service(priority=2)
    async def fragile(state: tangram.BackendState) -> None:
        journal(f"{name} fragile in")
        crash["now"] = trio.Event()
        try:
            await crash["now"].wait()
            raise ValueError("the fragile one broke")
        finally:
            journal(f"{name} fragile out")

    return plugin


def make_impatient(seen: list[RunningTangram]) -> tangram.Plugin:
    """Return a plugin that crashes during each outage of Redis.

    It checks the bus so often that it misses no outage.
    """
    plugin = tangram.Plugin()
    plugin.name = "impatient"

    @plugin.register_service()
    async def look(state: tangram.BackendState) -> None:
        while True:
            tree = seen[0].server.tree if seen else None
            if tree is not None and tree.incarnation.bus is not None and not tree.incarnation.bus.up:
                raise BrokerUnavailable("redis is away")
            await trio.sleep(0.005)

    return plugin
