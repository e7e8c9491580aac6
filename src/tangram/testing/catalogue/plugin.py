"""Faults of plugins and of the server's parts: they raise, return, hang, flood."""

from __future__ import annotations

from contextlib import suppress

import trio

from tangram.errors import BrokerUnavailable
from tangram.testing.catalogue.base import Chaos, fault, must_answer, publishes
from tangram.testing.faults import InjectedFault

__all__ = ["crash"]

REQUESTS = 5
"""Asked while everything restarts."""

FLOOD = 5000
"""Messages that a plugin publishes without a pause: some seconds of a busy map."""

REAL_SECONDS = 10.0
"""The longest that a fault may take on a real server: past that it is left out, and its reason told."""

LATE = 1.3
"""Of a child's stop time: it is stubborn, and far from the three stop times after which the server gives up.
"""

GARBAGE = (
    (b"to:tangram-chaos-fault", b"{}"),
    (b"to::", b"{}"),
    (b"to:tangram-chaos-fault:phx_close", b"{}"),
    (b"to:tangram-chaos-fault:\xff\xfe", b"{}"),
    (b"to:tangram-chaos-fault:n", b"\xff\x00 no json"),
    (b"to:tangram-chaos-fault:n", b""),
    (b"to:tangram-chaos-fault:n", b"[" * 10_000),
)
"""What no browser should be shown, and no hub should be hurt by: no event, a reserved one, no text, no JSON.
"""


async def crash(chaos: Chaos, child: str, error: BaseException | None = None) -> int:
    """Crash a child and wait until that is told; how many events there were before."""
    mark = len(chaos.tangram.events)
    chaos.tangram.crash(child, error)
    await chaos.tangram.wait_event("crashed", child, after=mark)
    return mark


@fault(counts="bus")
async def crash_bus(chaos: Chaos) -> None:
    """An exception in the bus."""
    await crash(chaos, "bus")


@fault(counts="web")
async def crash_web(chaos: Chaos) -> None:
    """An exception in the web."""
    await crash(chaos, "web")


@fault(counts="channels")
async def crash_channels(chaos: Chaos) -> None:
    """An exception in the channels."""
    await crash(chaos, "channels")


@fault(counts="plugin")
async def crash_plugin(chaos: Chaos) -> None:
    """An exception in a plugin, after it was ready."""
    await crash(chaos, chaos.any_plugin())


@fault(counts="plugin")
async def crash_group_of_three(chaos: Chaos) -> None:
    """Three exceptions at once in a plugin: one crash; the first leaf is its cause, the others beside it."""
    errors = [InjectedFault("the first"), ValueError("the second"), KeyError("the third")]
    child = chaos.any_plugin()
    mark = await crash(chaos, child, ExceptionGroup("three at once", errors))
    event = await chaos.tangram.wait_event("crashed", child, after=mark)
    assert "the first" in (event.cause or ""), f"the first leaf is the cause, it was {event.cause!r}"
    others = () if event.crash is None else event.crash.others
    assert len(others) == 2, f"two should stand beside the cause, there were {others!r}"


@fault(counts="plugin")
async def crash_in_cleanup(chaos: Chaos) -> None:
    """A plugin crashes, and its siblings raise from their clean-up: one crash all the same."""
    chaos.tangram.ports.break_cleanup("channels")
    await crash(chaos, chaos.any_plugin())


@fault(counts=("plugin", "plugin"))
async def crash_at_start(chaos: Chaos) -> None:
    """A plugin crashes, and raises again in its next start: a start that fails counts as another crash."""
    child = chaos.any_plugin()
    chaos.tangram.ports.break_start(child)
    mark = await crash(chaos, child)
    await chaos.wait_events("crashed", child, 2, after=mark)


@fault(counts=("plugin", "plugin"))
async def never_ready(chaos: Chaos) -> None:
    """A plugin crashes, and its next start never says that it is ready: it is given up after its start time,
    which counts as another crash.
    """
    child = chaos.any_plugin()
    seconds = chaos.affordable(chaos.tangram.ports.children[child].start_timeout, REAL_SECONDS)
    chaos.tangram.ports.hang_start(child)
    mark = await crash(chaos, child)
    await chaos.wait_events("crashed", child, 2, after=mark, seconds=seconds + REAL_SECONDS)


@fault(counts="plugin")
async def plugin_returns(chaos: Chaos) -> None:
    """A plugin returns, though it should run for ever: that is a crash."""
    child = chaos.any_plugin()
    mark = len(chaos.tangram.events)
    chaos.tangram.ports.end(child)
    await chaos.tangram.wait_event("crashed", child, after=mark)


@fault()
async def stop_late(chaos: Chaos) -> None:
    """A plugin ignores its cancellation past its stop time: it is named with the line it stands on, and
    nobody is started beside it.
    """
    child = chaos.any_plugin()
    tangram = chaos.tangram
    limit = tangram.ports.children[child].stop_timeout
    seconds = chaos.affordable(LATE * limit, REAL_SECONDS)
    tangram.stubborn_allowed.add(child)
    tangram.ports.ignore_cancel(child, seconds)
    tree = tangram.server.tree
    assert tree is not None
    assert tree.incarnation is not None
    mark = len(tangram.events)
    await tree.incarnation.restart_child(child)
    event = await tangram.wait_event("stubborn", child, after=mark)
    assert event.where, f"{child} was stubborn, and nobody says where it stands"


@fault(counts="plugin")
async def requests_during_restart(chaos: Chaos) -> None:
    """A plugin crashes; while everything restarts, requests go on being answered."""
    await crash(chaos, chaos.any_plugin())
    for _ in range(REQUESTS):
        with suppress(Exception):  # what is in flight in a crash may be cut
            await chaos.tangram.http.get("/-/readyz", timeout=2.0)
    await must_answer(chaos)


@fault(counts=("plugin", "bus"))
async def crash_during_restart(chaos: Chaos) -> None:
    """A plugin crashes, and the bus while everything restarts: two crashes, and one tree in the end."""
    mark = await crash(chaos, chaos.any_plugin())
    if chaos.tangram.server.config.supervisor.strategy == "one_for_all":
        await chaos.tangram.wait_event("started", "bus", after=mark)
    await _crash_as_soon_as_it_runs(chaos, "bus")
    await chaos.tangram.wait_event("crashed", "bus", after=mark)


async def _crash_as_soon_as_it_runs(chaos: Chaos, child: str) -> None:
    with trio.fail_after(REAL_SECONDS):
        while child not in chaos.tangram.ports.names:  # the port is there a step later
            await trio.lowlevel.checkpoint()
    chaos.tangram.crash(child)


@fault(counts=("plugin", "channels"))
async def two_at_once(chaos: Chaos) -> None:
    """A plugin and the channels crash in the same step of the loop: two crashes, one restart of each."""
    mark = len(chaos.tangram.events)
    child = chaos.any_plugin()
    chaos.tangram.crash(child)
    chaos.tangram.crash("channels")
    for one in (child, "channels"):
        await chaos.tangram.wait_event("crashed", one, after=mark)


@fault()
async def planned_restart(chaos: Chaos) -> None:
    """The operator restarts everything: no crash, and no window is charged."""
    await chaos.tangram.server.restart()


@fault()
async def plugin_flood(chaos: Chaos) -> None:
    """A plugin publishes 5,000 messages without a pause: what cannot be kept is refused, who reads gets the
    rest in order, and requests are answered meanwhile.
    """
    tree = chaos.tangram.server.tree
    assert tree is not None
    async with publishes(chaos):
        assert tree.bus is not None
        for number in range(FLOOD):
            with suppress(BrokerUnavailable):
                tree.bus.publish_nowait("to:tangram-chaos-flood:n", b'{"n":%d}' % number)
            if number % 500 == 0:
                await trio.lowlevel.checkpoint()
        await must_answer(chaos)


@fault()
async def plugin_garbage(chaos: Chaos) -> None:
    """A plugin publishes what is no message: it is dropped, and who is joined gets the next good one."""
    tree = chaos.tangram.server.tree
    assert tree is not None
    async with publishes(chaos, meanwhile=1):
        assert tree.bus is not None
        for channel, payload in GARBAGE:
            await tree.bus.publish(channel, payload)
