"""The server under test, real and with fakes, and the promises that it breaks."""

from __future__ import annotations

import threading

import attrs
import pytest
import structlog
import trio
from trio.testing import MockClock

import tangram
from tangram.errors import PluginNotFound
from tangram.supervision import Child
from tangram.testing import InvariantBroken, open_broker, open_tangram
from tangram.testing.run.server import TangramEnded
from tests.app.helpers import Journal, make_plugin


async def test_a_whole_server_runs_on_fakes_without_real_time(autojump_clock: MockClock) -> None:
    """A server boots, serves, restarts and stops by a virtual clock."""
    async with open_tangram([make_plugin(Journal())], fakes=True) as running:
        answer = await running.http.get("/probe/value")
        token = await tangram.fetch_token(running.url, "probe")
        async with running.open_socket() as socket:
            channel = await socket.join("probe", token=token.token)
            event = await channel.receive()
        await running.server.restart()
        again = await running.http.get("/probe/value")

        assert answer.json()["value"] == 42
        assert event.name == "tick"
        assert again.json()["value"] == 42
    assert running.status == 0


async def test_an_error_of_the_block_leaves_without_a_group(autojump_clock: MockClock) -> None:
    """An assertion of the test is not hidden in a group of exceptions."""
    with pytest.raises(AssertionError, match="mine"):
        async with open_tangram(fakes=True):
            raise AssertionError("mine")


async def test_a_failed_test_names_the_plugins_that_were_left_stopped(autojump_clock: MockClock) -> None:
    """The reply to a push says ``quarantined``, and the note has the cause and the line."""
    plugin = tangram.Plugin()
    channel = plugin.channel("desk")

    @channel.receives("ask", dict)
    async def ask(message: dict[str, object]) -> None: ...

    @plugin.register_service()
    async def tide(state: tangram.BackendState) -> None:
        raise OSError("no table")

    with pytest.raises(tangram.Refused, match="quarantined") as raised:
        async with (
            open_tangram([plugin], {"supervisor": {"plugin_restarts": 0}}, fakes=True) as running,
            running.join("desk") as joined,
        ):
            await joined.push("ask", {})

    (note,) = raised.value.__notes__
    assert note.startswith("beside it, plugin 'plugin' was left stopped: OSError: no table at ")
    assert note.endswith(".tide")


@pytest.mark.slow
async def test_a_thread_left_behind_breaks_an_invariant(autojump_clock: MockClock) -> None:
    """The message has the name of the thread."""
    over = threading.Event()
    plugin = tangram.Plugin()

    @plugin.register_service()
    async def careless(state: tangram.BackendState) -> None:
        threading.Thread(target=over.wait, name="left behind").start()

    try:
        with pytest.raises(InvariantBroken, match=r"nothing_left_alive: 1 more threads .*left behind"):
            async with open_tangram([plugin], fakes=True):
                pass
    finally:
        over.set()


async def test_a_server_that_does_not_start_raises_its_status(autojump_clock: MockClock) -> None:
    """A core part that fails in the first boot ends the server with status 1."""

    def wrap(child: Child) -> Child:
        async def fail() -> None:
            raise ValueError("no bus today")

        return attrs.evolve(child, run=fail) if child.name == "bus" else child

    with pytest.raises(TangramEnded) as caught:
        async with open_tangram(fakes=True, wrap=wrap):
            raise AssertionError("not reached")

    assert caught.value.status == 1


async def test_a_plugin_that_cannot_be_loaded_is_an_error(autojump_clock: MockClock) -> None:
    """A server would run without a misspelt plugin; a test does not."""
    with pytest.raises(PluginNotFound, match="tangram_example_publich"):
        async with open_tangram(["tangram_example_publich"], fakes=True):
            pass


async def test_a_table_without_a_plugin_is_an_error(autojump_clock: MockClock) -> None:
    """A plugin object has the test's name for it; a table of another name is a mistake."""
    with pytest.raises(ValueError, match=r"\[plugins.my_plugin\] is for none .* 'plugin': set plugin.name"):
        async with open_tangram([tangram.Plugin()], {"plugins.my_plugin": {"interval": 1}}, fakes=True):
            pass


@pytest.mark.slow
async def test_the_password_of_redis_is_a_secret() -> None:
    """A log record with it breaks the invariant."""
    password = "long-and-never-told"
    with open_broker(password=password) as redis:
        with pytest.raises(InvariantBroken, match="no_secret_in_logs: the log record 'hello'"):
            async with open_tangram(config={"core": {"redis_url": redis.url}}):
                structlog.get_logger().info("hello", broker=redis.url)


async def test_a_test_may_break_connections_to_a_port_in_memory(autojump_clock: MockClock) -> None:
    """A connected browser gets the end and comes back, and no child crashes."""
    async with open_tangram(fakes=True, memory_port=True) as running, running.open_socket() as client:
        assert running.port is not None
        assert running.port.reset() == 1
        with trio.fail_after(5):
            while client.connections < 2:  # noqa: ASYNC110 - the client tells nobody
                await trio.sleep(0.01)

        assert client.server_codes == []
        assert [event.child for event in running.events if event.kind == "crashed"] == []
