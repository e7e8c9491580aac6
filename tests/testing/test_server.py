"""The server under test: real and with fakes, and what is found when it does not keep its promises."""

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
    """With fakes a server boots, serves HTTP and channels, restarts and stops under a virtual clock."""
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


async def test_what_the_block_raises_comes_out_as_it_is(autojump_clock: MockClock) -> None:
    """An assertion of the test is not hidden in a group of exceptions."""
    with pytest.raises(AssertionError, match="mine"):
        async with open_tangram(fakes=True):
            raise AssertionError("mine")


@pytest.mark.slow
async def test_a_thread_that_a_plugin_leaves_behind_is_told(autojump_clock: MockClock) -> None:
    """A plugin that leaves a thread behind breaks the invariant, by name."""
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


async def test_a_server_that_does_not_come_up_is_told_with_its_status(autojump_clock: MockClock) -> None:
    """A core part that fails at first boot ends the server with status 1."""

    def wrap(child: Child) -> Child:
        async def fail() -> None:
            raise ValueError("no bus today")

        return attrs.evolve(child, run=fail) if child.name == "bus" else child

    with pytest.raises(TangramEnded) as caught:
        async with open_tangram(fakes=True, wrap=wrap):
            raise AssertionError("not reached")

    assert caught.value.status == 1


async def test_a_plugin_that_cannot_be_loaded_is_no_test_of_it(autojump_clock: MockClock) -> None:
    """A server would run without a misspelt plugin; a test of it does not."""
    with pytest.raises(PluginNotFound, match="tangram_example_publich"):
        async with open_tangram(["tangram_example_publich"], fakes=True):
            pass


async def test_a_table_for_no_plugin_is_told(autojump_clock: MockClock) -> None:
    """A plugin that is given as an object has a name of the test's; a table for another name is a mistake."""
    with pytest.raises(ValueError, match=r"\[plugins.my_plugin\] is for none .* 'plugin': set plugin.name"):
        async with open_tangram([tangram.Plugin()], {"plugins.my_plugin": {"interval": 1}}, fakes=True):
            pass


@pytest.mark.slow
async def test_the_password_of_redis_is_a_secret() -> None:
    """Whoever logs it breaks the invariant."""
    password = "long-and-never-told"
    with open_broker(password=password) as redis:
        with pytest.raises(InvariantBroken, match="no_secret_in_logs: the log record 'hello'"):
            async with open_tangram(config={"core": {"redis_url": redis.url}}):
                structlog.get_logger().info("hello", broker=redis.url)


async def test_connections_to_the_port_in_memory_break_when_a_test_says_so(autojump_clock: MockClock) -> None:
    """A browser that is connected hears the end, and comes back; nobody else has crashed by it."""
    async with open_tangram(fakes=True, memory_port=True) as running, running.open_socket() as client:
        assert running.port is not None
        assert running.port.reset() == 1
        with trio.fail_after(5):
            while client.connections < 2:  # noqa: ASYNC110 - the client tells nobody
                await trio.sleep(0.01)

        assert client.server_codes == []
        assert [event.child for event in running.events if event.kind == "crashed"] == []
