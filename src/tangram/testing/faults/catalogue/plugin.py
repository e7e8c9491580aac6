"""Faults of plugins and of the server's parts: they raise, return, hang, or flood."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import attrs
import trio

from tangram.errors import BrokerUnavailable
from tangram.supervision import SupervisionEvent
from tangram.testing.faults.catalogue.base import Chaos, fault
from tangram.testing.faults.catalogue.witness import expect_delivery, must_answer
from tangram.testing.injection.child_faults import InjectedFault, StruckAlready

__all__ = ["crash"]

REQUESTS: Final = 5
"""Requests in flight at the crash, and as many again while everything restarts."""

IN_FLIGHT: Final = 0.02
"""Seconds between two of the later requests: they come before, in and after the gap of some 10 ms."""

REQUEST_SECONDS: Final = 5.0
"""Seconds within which each request is answered: none is refused, so the slowest waits for the restart."""

FLOOD: Final = 5000
"""Messages that a plugin publishes without a pause: some seconds of a busy map."""

REAL_SECONDS: Final = 10.0
"""The longest that a fault may take on a real server; a longer one is skipped with its reason."""

LATE: Final = 1.3
"""Share of a child's stop time: the child is late, but far from the three stop times after which the
server gives up.
"""

GARBAGE: Final = (
    (b"to:tangram-chaos-fault", b"{}"),
    (b"to::", b"{}"),
    (b"to:tangram-chaos-fault:phx_close", b"{}"),
    (b"to:tangram-chaos-fault:\xff\xfe", b"{}"),
    (b"to:tangram-chaos-fault:n", b"\xff\x00 no json"),
    (b"to:tangram-chaos-fault:n", b""),
    (b"to:tangram-chaos-fault:n", b"[" * 10_000),
)
"""Channels and payloads that are no valid message: no event, a reserved one, no text, no JSON."""


async def crash(chaos: Chaos, child: str, error: BaseException | None = None) -> int:
    """Crash a child, wait for its event, and return how many events there were before."""
    mark = len(chaos.tangram.events)
    chaos.tangram.crash(child, error)
    await chaos.wait_crash(child, after=mark)
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
    """Three exceptions at once in a plugin: one crash, whose cause is the first leaf."""
    errors = [InjectedFault("the first"), ValueError("the second"), KeyError("the third")]
    child = chaos.any_plugin()
    mark = await crash(chaos, child, ExceptionGroup("three at once", errors))
    event = await chaos.wait_crash(child, after=mark)
    assert "the first" in (event.cause or ""), f"the first leaf should be the cause, it was {event.cause!r}"
    others = () if event.crash is None else event.crash.others
    assert len(others) == 2, f"two should stand beside the cause, there were {others!r}"


@fault(counts="plugin")
async def crash_in_cleanup(chaos: Chaos) -> None:
    """A plugin crashes, and the clean-up of a stopped sibling raises: one crash all the same.

    Under ``one_for_one``, where no sibling is stopped, the plugin's own clean-up raises.
    """
    ports, child = chaos.tangram.ports, chaos.any_plugin()
    alone = chaos.tangram.server.config.supervisor.strategy == "one_for_one"
    raising = child if alone else "channels"
    ports.find(raising)
    ports.break_cleanup(raising)
    with ports.disarming("cleanup", raising):
        mark = await crash(chaos, child)
        await chaos.wait_events("crashed" if alone else "stopped", raising, 1, after=mark)
    ended = [one for one in chaos.tangram.events[mark:] if one.child == raising and _has_ended(one)]
    cause = ended[0].cause or ""
    assert "raised in the clean-up" in cause, f"{raising!r} raised in its clean-up, the cause is {cause!r}"


def _has_ended(event: SupervisionEvent) -> bool:
    return event.kind in {"crashed", "stopped"}


@fault(counts=("plugin", "plugin"))
async def crash_at_start(chaos: Chaos) -> None:
    """A plugin crashes, and raises in its next start: that counts as another crash."""
    child = chaos.any_plugin()
    with chaos.tangram.ports.disarming("start", child):
        chaos.tangram.ports.break_start(child)
        mark = await crash(chaos, child)
        await chaos.wait_events("crashed", child, 2, after=mark)


@fault(counts=("plugin", "plugin"))
async def never_ready(chaos: Chaos) -> None:
    """A plugin crashes, and its next start never becomes ready: it is given up in time.

    That counts as another crash.
    """
    child = chaos.any_plugin()
    seconds = chaos.affordable(chaos.tangram.ports.children[child].start_timeout, REAL_SECONDS)
    with chaos.tangram.ports.disarming("ready", child):
        chaos.tangram.ports.hang_start(child)
        mark = await crash(chaos, child)
        await chaos.wait_events("crashed", child, 2, after=mark, seconds=seconds + REAL_SECONDS)


@fault(counts="plugin")
async def plugin_returns(chaos: Chaos) -> None:
    """A plugin returns, though it should run for ever: that is a crash."""
    child = chaos.any_plugin()
    mark = len(chaos.tangram.events)
    chaos.tangram.ports.end(child)
    await chaos.wait_crash(child, after=mark)


@fault()
async def stop_late(chaos: Chaos) -> None:
    """A plugin ignores its cancellation past its stop time: it is logged with its line.

    No second incarnation starts beside it.
    """
    child = chaos.any_plugin()
    tangram = chaos.tangram
    limit = tangram.ports.children[child].stop_timeout
    seconds = chaos.affordable(LATE * limit, REAL_SECONDS)
    tree = tangram.server.tree
    if tree is None or tree.incarnation.supervisor is None:
        raise StruckAlready("everything is between two incarnations just now")
    tangram.stubborn_allowed.add(child)
    mark = len(tangram.events)
    with tangram.ports.disarming("cancel", child):
        tangram.ports.ignore_cancel(child, seconds)
        await tree.incarnation.supervisor.restart_child(child)
    event = await tangram.wait_event("stubborn", child, after=mark)
    assert event.where, f"{child} was stubborn, but its event has no line"


@attrs.define
class _Answers:
    """Outcomes of requests that came beside a crash."""

    statuses: list[int] = attrs.field(factory=list)
    cut: int = 0
    """Requests whose connection ended without an answer."""


@fault(counts="plugin")
async def requests_during_restart(chaos: Chaos) -> None:
    """A plugin crashes: requests during the restart that follows are answered 200.

    Requests that are in flight at the crash may be cut.
    """
    child = chaos.any_plugin()
    before, after = _Answers(), _Answers()
    async with trio.open_nursery() as nursery:
        for _ in range(REQUESTS):
            nursery.start_soon(_ask, chaos, before)
        await crash(chaos, child)
        for _ in range(REQUESTS):
            nursery.start_soon(_ask, chaos, after)
            await trio.sleep(IN_FLIGHT)
    wrong = [status for status in before.statuses + after.statuses if status != 200]
    assert not wrong, f"requests during the restart were answered {wrong}, not 200"
    assert not after.cut, f"{after.cut} of {REQUESTS} that came after the crash were cut"
    await must_answer(chaos)


async def _ask(chaos: Chaos, answers: _Answers) -> None:
    import httpx

    try:
        # A new connection: one that is kept alive may end before the request begins.
        answer = await chaos.tangram.http.get(
            "/-/healthz", timeout=REQUEST_SECONDS, headers={"connection": "close"}
        )
    except httpx.TransportError:
        answers.cut += 1
    else:
        answers.statuses.append(answer.status_code)


@fault(counts=("plugin", "bus"))
async def crash_during_restart(chaos: Chaos) -> None:
    """A plugin crashes, and the bus while everything restarts: two crashes, one tree."""
    mark = await crash(chaos, chaos.any_plugin())
    if chaos.tangram.server.config.supervisor.strategy == "one_for_all":
        await chaos.wait_events("started", "bus", 1, after=mark)
    await _crash_as_soon_as_it_runs(chaos, "bus")
    await chaos.tangram.wait_event("crashed", "bus", after=mark)


async def _crash_as_soon_as_it_runs(chaos: Chaos, child: str) -> None:
    with trio.fail_after(REAL_SECONDS):
        while True:  # the fault port is open one step after the event
            with suppress(StruckAlready):
                chaos.tangram.crash(child)
                return
            await trio.lowlevel.checkpoint()


@fault(counts=("plugin", "channels"))
async def two_at_once(chaos: Chaos) -> None:
    """A plugin and the channels crash in the same step of the loop: each restarts once."""
    mark = len(chaos.tangram.events)
    both = (chaos.any_plugin(), "channels")
    for child in both:
        chaos.tangram.ports.find(child)
    for child in both:
        chaos.tangram.crash(child)
    for child in both:
        await chaos.wait_crash(child, after=mark)


@fault()
async def planned_restart(chaos: Chaos) -> None:
    """The operator restarts everything: nothing crashes, and no budget is charged."""
    tree, mark = chaos.tangram.server.tree, len(chaos.tangram.events)
    assert tree is not None
    charged = tree.window.used(trio.current_time())
    await chaos.tangram.server.restart()
    again = {event.child for event in chaos.tangram.events[mark:] if event.kind == "started"}
    missing = {"state", "bus", "channels", "web"} - again
    assert not missing, f"everything should begin anew, but {sorted(missing)} did not"
    # Crashes charged before may have left the window meanwhile.
    now = tree.window.used(trio.current_time())
    assert not chaos.alone or now <= charged, f"a planned restart was charged: {charged} before, {now} after"


@fault()
async def plugin_flood(chaos: Chaos) -> None:
    """A plugin publishes 5,000 messages without a pause: other clients are served.

    Messages beyond the bus buffer are refused. A browser receives the others in order, and requests are
    answered meanwhile.
    """
    tree = chaos.tangram.server.tree
    assert tree is not None
    ended = 0

    def count(_outcome: int | BrokerUnavailable) -> None:
        nonlocal ended
        ended += 1

    async with expect_delivery(chaos):
        assert tree.incarnation.bus is not None
        for number in range(FLOOD):
            try:
                tree.incarnation.bus.publish_nowait("to:tangram-chaos-flood:n", b'{"n":%d}' % number, count)
            except BrokerUnavailable as refused:
                count(refused)
            if number % 500 == 0:
                await trio.lowlevel.checkpoint()
        await must_answer(chaos)
    assert ended == FLOOD, f"of {FLOOD} messages {ended} were accepted or refused"


@fault()
async def plugin_garbage(chaos: Chaos) -> None:
    """A plugin publishes invalid messages: they are dropped, and the next good one arrives."""
    tree = chaos.tangram.server.tree
    assert tree is not None
    async with expect_delivery(chaos, meanwhile=1, lossless=True):
        assert tree.incarnation.bus is not None
        for channel, payload in GARBAGE:
            await tree.incarnation.bus.publish(channel, payload)
