"""One incarnation leaves nothing to the next one, and nothing behind."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import tangram
from tangram.client import Channel
from tangram.errors import Refused
from tangram.gateway.pump import CLOSE_TIME
from tangram.testing import RunningTangram, open_tangram
from tests.app.helpers import Journal, make_plugin
from tests.machine_slack import open_lateness

pytestmark = pytest.mark.slow

FREELY = {"supervisor": {"root_restarts": 1000, "plugin_restarts": 1000, "backoff_initial": 0.0}}
mark: contextvars.ContextVar[int] = contextvars.ContextVar("mark", default=0)


async def crash(running: RunningTangram, child: str) -> None:
    count = running.server.ready_count
    running.crash(child)
    await running.wait_ready(count + 1)


async def test_context_variables_are_fresh_in_each_incarnation() -> None:
    """A context variable that a service sets is unset after a restart, and in its sibling."""
    seen: list[int] = []
    plugin = tangram.Plugin()

    @plugin.register_service(priority=1)
    async def first(state: tangram.BackendState) -> None:
        seen.append(mark.get())
        mark.set(7)
        await trio.sleep_forever()

    @plugin.register_service(priority=2)
    async def second(state: tangram.BackendState) -> None:
        seen.append(mark.get())
        await trio.sleep_forever()

    async with open_tangram([plugin], FREELY) as running:
        await crash(running, "plugin:plugin")
        await crash(running, "web")

    assert seen == [0] * 6


async def test_state_and_attributes_are_fresh_in_each_incarnation() -> None:
    """An attribute that a plugin sets on the state does not exist in the next incarnation."""
    seen: list[bool] = []

    @asynccontextmanager
    async def lifespan(state: tangram.BackendState) -> AsyncIterator[None]:
        seen.append(hasattr(state, "mine"))
        setattr(state, "mine", "mine")  # noqa: B010 - code without type checks
        yield

    async with open_tangram([tangram.Plugin(lifespan=lifespan)], FREELY) as running:
        await crash(running, "bus")

    assert seen == [False, False]


async def once(*parts: str, reload: bool = False) -> int:
    """Return how often a temporary service runs in a server whose parts crash one by one."""
    runs = 0
    plugin = tangram.Plugin()

    @plugin.register_service(restart="temporary")
    async def import_all(state: tangram.BackendState) -> None:
        nonlocal runs
        runs += 1

    async with open_tangram([plugin], FREELY, fakes=True, memory_port=True) as running:
        for part in parts:
            await crash(running, part)
        if reload:
            await running.server.reload()
    return runs


@pytest.mark.parametrize("part", ["plugin:plugin", "web", "state", "broker"])
async def test_a_crash_does_not_start_a_temporary_service_again(autojump_clock: object, part: str) -> None:
    """It runs once for each start of the server, even if the broker's crash makes a new host."""
    assert await once(part, "broker") == 1


async def test_a_reload_starts_temporary_services_again(autojump_clock: object) -> None:
    """A reload counts as a start for temporary services: the plugin may be another one."""
    assert await once("broker", reload=True) == 2


async def test_an_error_in_a_clean_up_is_no_crash() -> None:
    """A plugin that raises while it is being stopped costs no restart and no charge."""
    plugin = tangram.Plugin()
    stops = 0

    @plugin.register_service()
    async def rude(state: tangram.BackendState) -> None:
        nonlocal stops
        try:
            await trio.sleep_forever()
        finally:
            stops += 1
            raise ConnectionError("the client of another library raises when it is closed")

    async with open_tangram([plugin], FREELY) as running:
        await running.server.restart()
        await crash(running, "web")
        tree = running.server.tree
        assert tree is not None
        assert tree.incarnation.supervisor is not None
        shown = {child.name: child for child in tree.incarnation.supervisor.statistics().children}

    assert stops == 3
    assert [event.child for event in running.events if event.kind == "restarting"] == ["web"]
    assert shown["plugin:plugin"].restarts == 0
    assert running.status == 0


async def test_tear_down_runs_although_the_server_was_cancelled() -> None:
    """A lifespan is left after a crash, a planned restart and a stop."""
    journal = Journal()
    async with open_tangram([make_plugin(journal)], FREELY) as running:
        await crash(running, "web")
        await running.server.restart()

    assert journal.lines.count("probe lifespan in") == journal.lines.count("probe lifespan out") == 3
    assert journal.lines[-1] == "probe lifespan out"


def tasks() -> Counter[str]:
    root = trio.lowlevel.current_root_task()
    waiting = [root] if root is not None else []
    names: Counter[str] = Counter()
    while waiting:
        task = waiting.pop()
        names[task.name] += 1
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return names


Seen = tuple[Counter[str], int, int, int]


async def settled(wanted: Seen | None = None) -> Seen:
    """Look until that is seen, or until three looks in a row see the same."""
    seen = [await look()]
    with trio.move_on_after(30):
        while seen[-1] != wanted and (wanted is not None or seen[-3:] != [seen[-1]] * 3):
            seen.append(await look())
    return seen[-1]


async def look() -> Seen:
    """Return the tasks, threads, file descriptors and asyncio tasks."""
    await trio.sleep(0.1)
    gc.collect()
    threads = [one for one in threading.enumerate() if not one.name.startswith("Trio thread")]
    running = [one for one in gc.get_objects() if isinstance(one, asyncio.Task) and not one.done()]
    return tasks(), len(threads), sum(1 for _ in Path("/proc/self/fd").iterdir()), len(running)  # noqa: ASYNC240 - reads /proc, which does not block


async def test_nothing_is_left_after_restarts() -> None:
    """Crashes and restarts with a connected client leave no task, thread or descriptor."""
    plugin = make_plugin(Journal())

    @plugin.register_service()
    async def remember(state: tangram.BackendState) -> None:
        await state.redis_client.set("born", "yes")  # opens an asyncio loop in each incarnation
        await trio.sleep_forever()

    async with open_tangram([plugin], FREELY) as running, running.open_socket() as socket:
        token = (await tangram.fetch_token(running.url, "probe")).token
        channel = await socket.join("probe", token=token)
        await crash(running, "web")
        await rejoined(channel, 2)
        before = await settled()
        joins = channel.joins
        for number, part in enumerate(("plugin:probe", "bus", "channels", "web", "state")):
            await crash(running, part)
            await rejoined(channel, joins + 2 * number + 1)
            await running.server.restart()
            await rejoined(channel, joins + 2 * number + 2)
        after = await settled(before)

    assert after == before


async def rejoined(channel: Channel, times: int) -> None:
    with trio.fail_after(60):
        while channel.joins < times:
            await channel.receive()


async def test_a_restart_does_not_wait_for_clients_that_do_not_answer() -> None:
    """WebSockets of the old incarnation are closed beside the start of the new one."""
    async with open_tangram([make_plugin(Journal())], FREELY) as running:
        port = int(running.url.rsplit(":", 1)[1])
        clients = [await open_unanswering(port) for _ in range(5)]
        for restart in (
            running.server.restart,
            lambda: crash(running, "web"),
            lambda: crash(running, "channels"),
        ):
            with open_lateness() as late:
                began = trio.current_time()
                await restart()
                took = trio.current_time() - began
            # So long a close that is not answered would have been waited for.
            assert took < CLOSE_TIME + late.allowed
        for stream in clients:
            await stream.aclose()


async def open_unanswering(port: int) -> trio.SocketStream:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(
        b"GET /websocket HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    await stream.receive_some(4096)
    return stream


@pytest.mark.parametrize("part", ["web", "channels", "plugin:probe"])
async def test_clients_of_the_old_incarnation_are_closed_with_1012_without_leave_events(
    part: str,
) -> None:
    """After a crash each client is closed with 1012, and new members get no leave events."""
    async with open_tangram([make_plugin(Journal())], FREELY) as running:
        token = (await tangram.fetch_token(running.url, "probe")).token
        received: list[str] = []
        async with running.open_socket(reconnect=False) as old:
            channel = await old.join("probe", token=token)
            await channel.receive()
            await crash(running, part)
            async with running.open_socket() as new:
                admin = await tangram.fetch_token(running.url, "admin", bearer=operator(running))
                watcher = await new.join("admin", token=admin.token)
                with trio.fail_after(30):
                    async for _ in channel:  # until the connection is closed
                        pass
                with trio.move_on_after(0.3):
                    while True:
                        received.append((await watcher.receive()).name)
            assert old.close_code == 1012

    assert "channel.leave" not in received
    assert "channel.remove" not in received


def operator(running: RunningTangram) -> str:
    return running.operator["authorization"].removeprefix("Bearer ")


async def test_messages_on_an_old_connection_are_ignored() -> None:
    """A message that a client sends to an incarnation that has ended is not published."""
    async with open_tangram([make_plugin(Journal())], FREELY) as running:
        token = (await tangram.fetch_token(running.url, "probe")).token
        async with running.open_socket(reconnect=False) as old:
            channel = await old.join("probe", token=token)
            await crash(running, "web")
            tree = running.server.tree
            assert tree is not None
            assert tree.incarnation.state is not None
            async with tree.incarnation.state.subscribe("from:probe:*") as published:
                with pytest.raises((tangram.ChannelClosed, trio.TooSlowError, Refused)), trio.fail_after(2):
                    await channel.push("hello", {})
                with trio.move_on_after(0.3) as nothing:
                    await anext(published)

    assert nothing.cancelled_caught
