"""The plugin of the end-to-end tests: publishes, receives, answers, crashes on command."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

import tangram
from tangram_e2e.surgery import raise_in_task

born = 0  # lifespans entered in this process: outlives the incarnations, as module globals do


@dataclass
class Heard:
    """Messages that the `Subscriber` received, and the events that report them."""

    redis_client: Any
    events: list[dict[str, str]] = field(default_factory=list)


class Ear(tangram.Subscriber[Heard]):
    async def message_handler(self, event: str, payload: str, pattern: str, state: Heard) -> None:
        heard = {"event": event, "payload": payload, "pattern": pattern}
        state.events.append(heard)
        await state.redis_client.publish("to:e2e:heard", json.dumps(heard))


@dataclass
class E2E:
    """The objects of one incarnation of the plugin."""

    number: int
    heard: Heard
    wounds: trio.MemorySendChannel[str]
    orders: trio.MemoryReceiveChannel[str]


@asynccontextmanager
async def lifespan(state: tangram.BackendState) -> AsyncIterator[None]:
    global born  # noqa: PLW0603 - counted over incarnations
    born += 1
    state.put(E2E(born, Heard(state.redis_client), *trio.open_memory_channel[str](10)))
    yield


@dataclass
class Order:
    item: str
    count: int


router = tangram.APIRouter(prefix="/e2e")
plugin = tangram.Plugin(routers=[router], lifespan=lifespan)


@router.get("/ping")
async def ping(state: tangram.BackendState) -> dict[str, int]:
    return {"born": state.get(E2E).number, "pid": os.getpid()}


@router.get("/slow")
async def slow(seconds: float) -> dict[str, float]:
    """An answer that takes its time; standard output tells when it begins."""
    sys.stdout.write("slow request begins\n")
    sys.stdout.flush()
    await trio.sleep(seconds)
    return {"seconds": seconds}


@router.get("/heard")
async def heard(state: tangram.BackendState) -> list[dict[str, str]]:
    events: list[dict[str, str]] = state.get(E2E).heard.events
    return events


@router.get("/client")
async def client(request: tangram.Request) -> dict[str, str | None]:
    """Return the address of the client and the scheme, as plugins see them."""
    return {"client": request.client[0] if request.client else None, "scheme": request.scope["scheme"]}


@router.get("/redis-url")
async def redis_url(state: tangram.BackendState) -> dict[str, str | None]:
    return {"url": state.config.core.redis_url}


@router.get("/typed/{number}")
async def typed(number: int, *, flag: bool = False) -> dict[str, Any]:
    return {"number": number, "flag": flag}


@router.post("/orders")
async def orders(order: Order) -> Order:
    return order


@router.post("/publish")
async def publish(order: Order, state: tangram.BackendState) -> dict[str, int]:
    """Publish ``to:e2e:order`` now: for tests that ask whether messages flow."""
    message = json.dumps({"item": order.item, "count": order.count})
    return {"receivers": await state.redis_client.publish("to:e2e:order", message)}


@router.get("/raise")
async def fail() -> None:
    raise LookupError("planted in a route")


@router.post("/crash")
async def crash(task: str, state: tangram.BackendState) -> dict[str, str]:
    """Crash the service ``victim``, or the task of that name, once this is answered."""
    await state.get(E2E).wounds.send(task)
    return {"task": task}


@router.get("/page")
async def page() -> tangram.HTMLResponse:
    """An empty page of the server's own origin, for scripts to run in."""
    return tangram.HTMLResponse(
        "<!doctype html><meta charset=utf-8><title>e2e</title><link rel=icon href=data:,>"
    )


@router.get("/phoenix/{version}")
def phoenix(version: str, state: tangram.BackendState) -> tangram.Response:
    """Serve the unmodified ES module of npm's ``phoenix`` from the configured path."""
    path = Path(state.config.plugins["tangram_e2e"]["phoenix"][version])
    return tangram.Response(path.read_bytes(), media_type="text/javascript")


@plugin.register_service(priority=1)
async def beat(state: tangram.BackendState) -> None:
    """Publish twenty times a second to all members."""
    n = 0
    while True:
        n += 1
        with suppress(tangram.BrokerUnavailable):
            message = json.dumps({"n": n, "born": state.get(E2E).number})
            await state.redis_client.publish("to:e2e:beat", message)
            await state.redis_client.publish("to:e2e:bytes", b"\x00\x01\xff")
        await trio.sleep(0.05)


@plugin.register_service(priority=2)
async def listen(state: tangram.BackendState, *, task_status: trio.TaskStatus[None]) -> None:
    ear = Ear("Ear", state.config.core.redis_url, ["from:e2e:*"], state.get(E2E).heard)
    await ear.subscribe()
    task_status.started()
    try:
        await trio.sleep_forever()
    finally:
        await ear.cleanup()


@plugin.register_service(priority=3)
async def victim(state: tangram.BackendState) -> None:
    """Wait for ``/e2e/crash``, then raise, or make another task raise."""
    async for task in state.get(E2E).orders:
        await trio.sleep(0.05)  # the answer is out by then
        if task == "victim":
            raise RuntimeError("planted in a service")
        raise_in_task(task, RuntimeError(f"planted in {task}"))
