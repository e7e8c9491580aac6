"""A server under test starts or ends, under all plugins and cancellations."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from socket import socket

import pytest
import trio
from trio.testing import MockClock

import tangram
from tangram.testing import InvariantBroken, RunningTangram, open_tangram
from tests.app.helpers import Journal, make_plugin

DEAF = """
import tangram, trio
from trio.testing import MockClock
from tangram.testing import InvariantBroken, open_tangram
from tangram.chaos.conformance import check_plugin

plugin = tangram.Plugin()

@plugin.register_service()
async def deaf(state, *, task_status):
    {started}
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()

@plugin.register_service()
async def deafer(state):
    while {ever}:
        try:
            with trio.CancelScope(shield=True):
                await trio.sleep_forever()
        except trio.Cancelled:
            continue
    await trio.sleep_forever()

async def checked():
    await check_plugin(plugin, fakes=True)

async def opened():
    async with open_tangram([plugin], fakes=True):
        raise ValueError("not reached")

async def cancelled():
    with trio.move_on_after(5):
        async with open_tangram([plugin], fakes=True):
            await trio.sleep_forever()

try:
    trio.run({how}, clock=MockClock(autojump_threshold=0))
except InvariantBroken as error:
    print(error)
"""

GUARD_SECONDS = 60.0
"""Real seconds: a run takes one, and a run that hangs must fail."""


def run_deaf(**words: str) -> str:
    """Return the output of a process that tests the plugin, which could hang this one."""
    command = [sys.executable, "-c", DEAF.format(**words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=GUARD_SECONDS, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "started"),
    [("checked", False), ("opened", False), ("cancelled", False), ("cancelled", True)],
)
def test_a_shielded_service_is_ended_and_named(how: str, started: bool) -> None:
    """Also before its start is over, and where the test is cancelled meanwhile."""
    told = run_deaf(how=how, started="task_status.started()" if started else "", ever="False")

    assert "nobody_is_stubborn" in told
    assert "did not end by itself, because of deaf, at <string>:" in told


@pytest.mark.slow
def test_a_service_with_endless_shields_is_ended_and_named() -> None:
    """It gets an exception that it does not expect instead of a cancellation."""
    told = run_deaf(how="cancelled", started="task_status.started(); return", ever="True")

    assert "did not end by itself, because of deafer, at <string>:" in told


async def test_a_cancelled_block_stays_cancelled(autojump_clock: MockClock) -> None:
    """Where every invariant holds, the timeout is the test's own; the server stops in order."""
    journal = Journal()
    with trio.move_on_after(5) as limit:
        async with open_tangram([make_plugin(journal)], fakes=True) as running, running.open_socket():
            await trio.sleep_forever()

    assert limit.cancelled_caught
    assert (running.ended, running.status) == (True, 0)
    assert journal.lines[-1] == "probe lifespan out"


async def test_a_cancelled_first_start_stays_cancelled(autojump_clock: MockClock) -> None:
    """The same holds where the server was not up yet."""
    seen: list[RunningTangram] = []
    plugin = tangram.Plugin()

    @plugin.register_service()
    async def slow(_state: tangram.BackendState, *, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(20)
        task_status.started()

    with trio.move_on_after(5) as limit:
        async with open_tangram([plugin], fakes=True, on_server=seen.append):
            raise AssertionError("not reached")

    assert limit.cancelled_caught
    assert seen[0].ended


@pytest.mark.slow
async def test_a_leak_of_a_cancelled_block_is_reported(autojump_clock: MockClock) -> None:
    """A leak counts also after a timeout, alone or in a nursery."""
    leaked: list[socket] = []
    plugin = tangram.Plugin()

    @plugin.register_service()
    async def careless(_state: tangram.BackendState) -> None:
        leaked.append(socket())
        await trio.sleep_forever()

    async def run_out_of_time() -> None:
        with trio.move_on_after(5):
            async with open_tangram([plugin], fakes=True), trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                await trio.sleep_forever()

    try:
        with pytest.raises(InvariantBroken, match="nothing_left_alive: 1 more descriptors"):
            await run_out_of_time()
    finally:
        for one in leaked:
            one.close()


async def test_a_server_serves_until_its_block_is_left(autojump_clock: MockClock) -> None:
    """A cancellation of the block reaches the server after the clean-up of the block."""

    @asynccontextmanager
    async def cleaned_up(running: RunningTangram) -> AsyncIterator[None]:
        try:
            yield
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await trio.sleep(1)
                answers.append((await running.http.get("/probe/value")).status_code)

    answers: list[int] = []
    with trio.move_on_after(5):
        async with open_tangram([make_plugin(Journal())], fakes=True) as running, cleaned_up(running):
            await trio.sleep_forever()

    assert answers == [200]


async def test_an_error_of_a_cancelled_block_is_raised(autojump_clock: MockClock) -> None:
    """The block's own exception counts more than its cancellation."""

    async def clean_up_badly() -> None:
        with trio.move_on_after(5):
            async with open_tangram(fakes=True):
                try:
                    await trio.sleep_forever()
                finally:
                    raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await clean_up_badly()
