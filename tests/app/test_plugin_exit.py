"""``SystemExit`` in a plugin is a crash of that plugin, and does not end the server."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

import tangram
from tangram.testing import RunningTangram, open_tangram

STATUS = 4
"""An exit status that no code of tangram uses."""


class ExitOnce:
    """Calls ``sys.exit`` at the first call only, so that the plugin comes back."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == 1:
            sys.exit(STATUS)


def async_service(leave: ExitOnce) -> tangram.Plugin:
    plugin = tangram.Plugin()

    @plugin.register_service()
    async def service(state: tangram.BackendState) -> None:
        await trio.lowlevel.checkpoint()
        leave()
        await trio.sleep_forever()

    return plugin


def service_with_tasks(leave: ExitOnce) -> tangram.Plugin:
    plugin = tangram.Plugin()

    async def task() -> None:
        leave()

    @plugin.register_service()
    async def service(state: tangram.BackendState) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task)
            await trio.sleep_forever()

    return plugin


def threaded_service(leave: ExitOnce) -> tangram.Plugin:
    plugin = tangram.Plugin()

    @plugin.register_service()
    def service(state: tangram.BackendState) -> None:
        leave()
        while True:
            trio.from_thread.check_cancelled()
            time.sleep(0.01)

    return plugin


def lifespan(leave: ExitOnce) -> tangram.Plugin:
    @asynccontextmanager
    async def context(state: tangram.BackendState) -> AsyncIterator[None]:
        leave()
        yield

    return tangram.Plugin(lifespan=context)


SOURCES = {
    "async service": async_service,
    "task of a service": service_with_tasks,
    "threaded service": threaded_service,
    "lifespan": lifespan,
}


def crash_of(running: RunningTangram) -> str:
    crashes = [event.crash for event in running.events if event.kind == "crashed" and event.crash is not None]
    return crashes[-1].cause


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
async def test_sys_exit_is_a_crash_of_the_plugin(source: Callable[[ExitOnce], tangram.Plugin]) -> None:
    """The plugin is restarted, the crash names the exit status, and the server runs on."""
    leave = ExitOnce()
    async with open_tangram([source(leave)], fakes=True) as running:
        if source is lifespan:  # it did not start, and is in quarantine
            await running.http.post("/-/plugins/plugin/restart", headers=running.operator)
        else:
            with trio.fail_after(60):
                while leave.calls < 2:  # noqa: ASYNC110 - a service reports its second run to no event
                    await trio.sleep(0.01)
        (shown,) = (await running.http.get("/-/plugins", headers=running.operator)).json()

    assert shown["state"] == "running"
    assert leave.calls == 2
    assert f"SystemExit({STATUS})" in crash_of(running)
    assert running.status == 0


async def test_sys_exit_in_a_handler_costs_only_its_request() -> None:
    """The answer is 500 with the number of a log record, and the plugin goes on."""
    router = tangram.APIRouter()

    @router.get("/leave")
    async def leave() -> None:
        sys.exit(STATUS)

    @router.get("/leave-in-a-thread")
    def leave_in_a_thread() -> None:
        sys.exit(STATUS)

    @router.get("/stay")
    async def stay() -> str:
        return "here"

    async with open_tangram([tangram.Plugin(routers=[router])], fakes=True) as running:
        answers = [await running.http.get(path) for path in ("/leave", "/leave-in-a-thread", "/stay")]

    assert [answer.status_code for answer in answers] == [500, 500, 200]
    assert running.status == 0


@pytest.mark.filterwarnings("ignore:Exception in thread")  # pytest reports it, Python does not
async def test_sys_exit_in_a_thread_of_a_plugin_ends_that_thread_only() -> None:
    """Python itself ignores ``SystemExit`` in a thread."""
    plugin = tangram.Plugin()

    @plugin.register_service()
    async def service(state: tangram.BackendState) -> None:
        thread = threading.Thread(target=sys.exit, args=(STATUS,))
        thread.start()
        thread.join()
        await trio.sleep_forever()

    async with open_tangram([plugin], fakes=True) as running:
        assert (await running.http.get("/-/healthz")).status_code == 200

    assert running.status == 0


async def test_sys_exit_in_a_blueprint_costs_only_its_request() -> None:
    """A view of Quart that leaves is answered like one that fails."""
    from quart import Blueprint

    blueprint = Blueprint("leaving", __name__)

    @blueprint.get("/leave")
    async def leave() -> str:
        sys.exit(STATUS)

    plugin = tangram.Plugin(blueprints=[blueprint])
    async with open_tangram([plugin], fakes=True) as running:
        answer = await running.http.get("/leave")
        again = await running.http.get("/-/healthz")

    assert (answer.status_code, again.status_code, running.status) == (500, 200, 0)


async def test_sys_exit_in_authorize_refuses_the_topic() -> None:
    """The topic is refused as if the function had raised another exception."""

    async def authorize(topic: str, id: str, info: object) -> None:  # noqa: A002 - the name in the docs
        sys.exit(STATUS)

    async with open_tangram([tangram.Plugin(authorize=authorize)], fakes=True) as running:
        answer = await running.http.post("/token", json={"channel": "system"})
        again = await running.http.get("/-/healthz")

    assert (answer.status_code, again.status_code, running.status) == (503, 200, 0)
