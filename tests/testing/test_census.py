"""Each kind of thing that a plugin may leave behind is found, and named for what it is."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tangram import BackendState, Plugin
from tangram.testing import InvariantBroken, open_tangram
from tangram.testing.census import wait_nothing_left

Leak = Callable[[ExitStack, BackendState, Path], object]


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """What the plugin does not close is closed when the test is over."""
    with ExitStack() as stack:
        yield stack


def a_port(stack: ExitStack, state: BackendState, folder: Path) -> None:
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen()


def a_connection_to_redis(stack: ExitStack, state: BackendState, folder: Path) -> None:
    url = state.config.core.redis_url
    assert url is not None
    stack.enter_context(socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))))


def a_file(stack: ExitStack, state: BackendState, folder: Path) -> None:
    stack.enter_context((folder / "kept.txt").open("w"))


def a_pipe(stack: ExitStack, state: BackendState, folder: Path) -> None:
    for one in socket.socketpair():
        stack.enter_context(one)


def a_process(stack: ExitStack, state: BackendState, folder: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stack.enter_context(process)
    stack.callback(process.kill)


@pytest.mark.parametrize(
    ("leak", "told"),
    [
        (a_port, r"1 more ports than before: .*listens on port \d+"),
        (a_connection_to_redis, "1 more redis connections than before: .*connected to port"),
        (a_file, r"1 more files than before: .*kept\.txt"),
        (a_pipe, "2 more descriptors than before"),
        (a_process, "1 more processes than before: python"),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_what_a_plugin_leaves_behind_is_named(
    *,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    held: ExitStack,
    tmp_path: Path,
    leak: Leak,
    told: str,
) -> None:
    """A port, a connection to Redis, a file, a pipe and a process are each told as what they are."""
    monkeypatch.setattr(sys.modules[wait_nothing_left.__module__], "PATIENCE", 0.05)
    plugin = Plugin()

    @plugin.register_service()
    async def careless(state: Any) -> None:
        leak(held, state, tmp_path)
        await trio.sleep_forever()

    with pytest.raises(InvariantBroken, match=told):
        async with open_tangram([plugin], fakes=True):
            await trio.sleep(0.1)


async def test_a_plugin_that_closes_what_it_opens_leaves_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The same things, closed when the plugin stops, break nothing."""
    plugin = Plugin()

    @plugin.register_service()
    async def careful(state: BackendState) -> None:
        with ExitStack() as stack:
            for leak in (a_port, a_connection_to_redis, a_file, a_pipe, a_process):
                leak(stack, state, tmp_path)
            await trio.sleep_forever()

    async with open_tangram([plugin], fakes=True):
        await trio.sleep(0.1)
