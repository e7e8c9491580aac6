"""Mutants without a text in the sources: planted in process, found by an invariant."""

from __future__ import annotations

import contextvars
import socket
from collections.abc import Sequence
from typing import Any

import pytest
import structlog
import trio
from trio.testing import MockClock

import tangram
from tangram.bus import resp
from tangram.chaos import campaign, observers
from tangram.chaos.campaign import Campaign, run_campaign
from tangram.gateway.channels import Channels
from tangram.http.listeners import HeldSocket
from tangram.supervision import SupervisionEvent, event_logging, runner
from tangram.testing import InvariantBroken, StepFailed, open_tangram, run_every_step
from tangram.testing.faults.catalogue import base
from tests.app.helpers import Journal, make_plugin


async def caught(faults: Sequence[str], duration: float = 1.0) -> set[str]:
    """Return the invariants that a short campaign finds broken."""
    found: Campaign = await run_campaign(
        [make_plugin(Journal())], duration=duration, faults=faults, fakes=True
    )
    return {one.invariant for one in found.broken}


async def test_rule_10_an_event_that_is_logged_twice(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: each event goes to the log twice. Caught by each_crash_logged_once."""

    def twice(event: SupervisionEvent) -> None:
        event_logging.log_event(event)
        event_logging.log_event(event)

    monkeypatch.setattr(runner, "log_event", twice)

    assert "each_crash_logged_once" in await caught(["crash_plugin"])


@pytest.mark.slow
async def test_d5_a_connection_that_is_not_closed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: the bus forgets its connection when it ends. Caught by nothing_left_alive."""
    kept = []

    class Careless(resp.Link):
        def __init__(self, stream: trio.abc.Stream) -> None:
            super().__init__(stream)
            self.extra = socket.socketpair()
            kept.append(self.extra)

    monkeypatch.setattr(resp, "Link", Careless)
    try:
        assert "nothing_left_alive" in await caught(["crash_bus"])
    finally:
        for pair in kept:
            for one in pair:
                one.close()


@pytest.mark.slow
async def test_held_sockets_that_an_incarnation_closes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: an incarnation accepts on the root's own socket and closes it.

    A refused connection, or a server that does not come back, catches it.
    """
    monkeypatch.setattr(HeldSocket, "dup", lambda held: held.listener)
    # It restarts ten times a second for as long as anything waits for it.
    for module, bound in ((base, "READY_SECONDS"), (campaign, "REST_SECONDS"), (observers, "HEARD_SECONDS")):
        monkeypatch.setattr(module, bound, 3.0)

    found = await caught(["crash_web"], duration=0.5)

    assert found & {"no_connection_refused", "comes_to_rest"}


async def test_a_secret_in_the_log(autojump_clock: MockClock) -> None:
    """Mutant: the operator's token is logged. Caught by no_secret_in_logs."""
    with pytest.raises(InvariantBroken, match="no_secret_in_logs"):
        async with open_tangram(fakes=True) as running:
            structlog.get_logger().info("hello", headers=running.operator)


def test_rule_1_a_stop_that_takes_longer_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the channels' clean-up shields itself too long. Caught by stops_within_bound."""
    run = Channels.run

    async def stubborn(self: Channels, **more: Any) -> None:
        try:
            await run(self, **more)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(14.0)

    monkeypatch.setattr(Channels, "run", stubborn)

    with pytest.raises(StepFailed, match="stops_within_bound"):
        run_every_step(kinds=["stop"], most=4)


async def test_a_task_that_outlives_the_server(autojump_clock: MockClock) -> None:
    """Mutant: a service starts a system task. Caught by nothing_left_alive."""
    plugin = tangram.Plugin()

    @plugin.register_service()
    async def escape(state: tangram.BackendState) -> None:
        trio.lowlevel.spawn_system_task(trio.sleep_forever, context=contextvars.copy_context())

    with pytest.raises(InvariantBroken, match="nothing_left_alive: 1 more tasks"):
        async with open_tangram([plugin], fakes=True):
            await trio.sleep(0.1)
