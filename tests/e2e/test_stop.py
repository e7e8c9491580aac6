"""SIGTERM in every state ends the process in time, with status 0 and without a child."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import psutil
import pytest
import trio

from tests.e2e.harness import (
    LONG,
    Home,
    Server,
    open_process,
    open_server,
    wait_gone,
    wait_until,
    write_plugin,
)
from tests.machine_slack import open_lateness

BOUND = 2.0
"""``shutdown_timeout`` of these servers, in seconds."""
MORE = 1.0
"""Seconds that a stop may take beyond its bound."""
LIMITS = f"[supervisor]\nshutdown_timeout = {BOUND}\n"

HANGS_AT_START = """
import trio, tangram
plugin = tangram.Plugin()

@plugin.register_service()
async def hangs(state, *, task_status):
    print("hangs at start", flush=True)
    await trio.sleep_forever()
"""

CRASHES = """
import trio, tangram
plugin = tangram.Plugin()

@plugin.register_service()
async def crashes(state):
    await trio.sleep(0.05)
    raise RuntimeError("as always")
"""

STARTS_ONCE = """
import trio, tangram
plugin = tangram.Plugin()
born = 0

@plugin.register_service()
async def starts_once(state, *, task_status):
    global born
    born += 1
    if born > 1:
        print("starts again", flush=True)
        await trio.sleep_forever()
    task_status.started()
    await trio.sleep(0.1)
    raise RuntimeError("once")
"""

ENDS_SLOWLY = """
import trio, tangram
plugin = tangram.Plugin()

@plugin.register_service(priority=2)
async def crashes(state):
    await trio.sleep(0.1)
    raise RuntimeError("once")

@plugin.register_service(priority=1)
async def ends_slowly(state):
    try:
        await trio.sleep_forever()
    finally:
        print("ends slowly", flush=True)
        with trio.move_on_after(0.8, shield=True):
            await trio.sleep_forever()
"""

STUBBORN = """
import trio, tangram
plugin = tangram.Plugin()

@plugin.register_service(stop_timeout=0.3)
async def never_ends(state):
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()
"""

LEFT_BEHIND = """
import trio, tangram
plugin = tangram.Plugin()

@plugin.register_service(priority=1, stop_timeout=0.2)
async def never_ends(state):
    await trio.to_thread.run_sync(__import__("time").sleep, 60)

@plugin.register_service(priority=2)
async def crashes(state):
    await trio.sleep(0.5)
    raise RuntimeError("once")
"""

LARGE = """
import tangram
router = tangram.APIRouter(prefix="/large")
plugin = tangram.Plugin(routers=[router])

@router.get("/answer")
async def large() -> tangram.Response:
    return tangram.Response(bytes(32 * 1024 * 1024))
"""

BLOCKS = """
import time, tangram
plugin = tangram.Plugin()

@plugin.register_service()
async def blocks(state):
    print("blocks the loop", flush=True)
    while True:
        time.sleep({nap})
"""

UNHEARD = """
import os, trio, tangram
router = tangram.APIRouter(prefix="/unheard")
plugin = tangram.Plugin(routers=[router])
lost = trio.Event()
lives = 0

@router.get("/lose")
async def lose_the_reader() -> None:
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(reader)
    os.close(writer)
    lost.set()

@plugin.register_service()
async def crashes_once(state):
    global lives
    lives += 1
    os.write(1, b"life %d\\n" % lives)  # print would become a record of the lost log
    if lives == 1:
        await lost.wait()
        raise RuntimeError("once")
    await trio.sleep_forever()
"""

THREADS = """
import time, trio, tangram
plugin = tangram.Plugin()

@plugin.register_service(stop_timeout=0.3)
def never_ends(state):
    print("in a thread", flush=True)
    while True:
        time.sleep(0.1)

@plugin.register_service()
def obeys(state):
    while True:
        trio.from_thread.check_cancelled()
        time.sleep(0.02)
"""


async def stopped(
    server: Server, number: signal.Signals = signal.SIGTERM, *, bound: float = BOUND + MORE
) -> int:
    """Send the signal; the exit status, once nothing is left and the bound is seen to be kept."""
    below = server.children()
    with open_lateness(server.process.pid) as late:
        begun = trio.current_time()
        status = await server.stop(number)
        took = trio.current_time() - begun
    await wait_gone(below)

    assert took <= bound + late.allowed, f"{took:.2f} s\n{server.log}"
    return status


@pytest.mark.parametrize(
    ("source", "line"),
    [
        pytest.param(HANGS_AT_START, "hangs at start", id="boot"),
        pytest.param(STARTS_ONCE, "starts again", id="start-of-a-restart"),
        pytest.param(ENDS_SLOWLY, "ends slowly", id="stop-of-a-restart"),
    ],
)
async def test_ends_in_order_while_it_starts_or_restarts(home: Home, source: str, line: str) -> None:
    """During boot, and in both halves of a restart, a stop is obeyed at once."""
    write_plugin(home.site, "busy", source)
    home.configure(["busy"], LIMITS)
    async with open_process(home) as server:
        await server.wait_line(line)
        assert server.children()
        assert await stopped(server) == 0


async def test_ends_in_order_during_a_back_off(home: Home) -> None:
    """A stop does not wait for the delay of a restart."""
    write_plugin(home.site, "busy", CRASHES)
    home.configure(["busy"], LIMITS + "backoff_initial = 30.0\nbackoff_max = 30.0\n")
    async with open_process(home) as server:
        await server.wait_line('"delay": (2|3)[0-9]')
        await trio.sleep(0.2)
        assert await stopped(server, bound=1.0) == 0


@contextmanager
def deaf_clients(home: Home, count: int, token: str) -> Iterator[None]:
    """Half ask for 32 MiB, half join a topic that is published to; none reads."""
    import base64

    from websockets.frames import Frame, Opcode

    clients = []
    for number in range(count):
        sock = socket.create_connection(("127.0.0.1", home.port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        clients.append(sock)
        host = f"Host: 127.0.0.1:{home.port}\r\n"
        if number % 2:
            sock.sendall(f"GET /large/answer HTTP/1.1\r\n{host}\r\n".encode())
            continue
        key = base64.b64encode(bytes(16)).decode()
        sock.sendall(
            f"GET /websocket HTTP/1.1\r\n{host}Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        sock.recv(4096)
        join = json.dumps(["1", "1", "e2e", "phx_join", {"token": token}]).encode()
        sock.sendall(Frame(Opcode.TEXT, join).serialize(mask=True))
    try:
        yield
    finally:
        for sock in clients:
            sock.close()


async def test_ends_in_order_with_clients_that_do_not_read(home: Home) -> None:
    """Clients that take nothing of their answers do not hold the stop up."""
    write_plugin(home.site, "large", LARGE)
    async with open_server(home, "tangram_e2e", "large", extra=LIMITS) as server:
        answer = await server.request("POST", "/token", json={"channel": "e2e"})
        with deaf_clients(home, 20, answer.json()["token"]):
            await trio.sleep(0.5)
            assert await stopped(server) == 0


async def test_a_stop_ends_a_plugin_that_ignores_it(home: Home) -> None:
    """Past its bound the stop logs the remaining tasks and ends process and broker."""
    write_plugin(home.site, "stubborn", STUBBORN)
    async with open_server(home, "stubborn", extra=LIMITS) as server:
        assert await stopped(server) == 0
        (told, *_) = server.events("child goes on although it was cancelled", child="never_ends")
        assert "in never_ends" in told["where"]
        assert "the stop has passed its limit" in server.log
        assert "in never_ends" in server.log.partition("the stop has passed its limit")[2]


@pytest.mark.parametrize(("nap", "number"), [(0.01, signal.SIGTERM), (3600, signal.SIGINT)])
async def test_a_stop_ends_a_blocked_loop(home: Home, nap: float, number: signal.Signals) -> None:
    """A stop past its bound ends a blocked loop, and logs the blocking line."""
    write_plugin(home.site, "blocks", BLOCKS.format(nap=nap))
    home.configure(["blocks"], LIMITS)
    async with open_process(home) as server:
        await server.wait_line("blocks the loop")
        assert await stopped(server, number) == 0
        assert "in blocks" in server.log.partition("the stop has passed its limit")[2]


async def test_a_closed_log_pipe_delays_neither_restart_nor_stop(home: Home) -> None:
    """With a closed log pipe a crash, SIGHUP and SIGTERM work as usual."""
    write_plugin(home.site, "unheard", UNHEARD)
    # Buffered as for users: output that Python could not flush must not change the exit status.
    environ = {"PYTHONUNBUFFERED": ""}
    async with open_server(home, "unheard", extra=LIMITS, environ=environ) as server:
        await server.request("GET", "/unheard/lose")
        await server.wait_line("life 2")
        server.send(signal.SIGHUP)
        await server.wait_line("life 3")
        assert await stopped(server) == 0


async def test_a_service_that_ignores_its_siblings_crash_ends_the_process(home: Home) -> None:
    """A service that ignores its cancellation ends the process with 70; the log names it."""
    write_plugin(home.site, "left", LEFT_BEHIND)
    async with open_server(home, "left", extra=LIMITS) as server:
        below = server.children()

        async def ended() -> bool:
            return server.process.poll() is not None

        await wait_until(ended)
        await wait_gone(below)

        assert server.process.returncode == 70
        (told,) = server.events("server ends: a cancelled child does not stop")
        assert told["child"] == "incarnation > plugin:left > never_ends"
        assert "in never_ends" in told["where"]


async def test_a_stop_ends_with_a_thread_still_running(home: Home) -> None:
    """A synchronous service that does not look up is told to stop, and abandoned."""
    write_plugin(home.site, "threads", THREADS)
    async with open_server(home, "threads", extra=LIMITS) as server:
        await server.wait_line("in a thread")
        assert await stopped(server) == 0
        (told,) = server.events("a thread that does not end was abandoned")
        assert told["service"] == "threads/never_ends"


async def test_an_abandoned_thread_is_counted_and_shown(home: Home) -> None:
    """A thread that outlives a restart is shown, and a warning is logged."""
    write_plugin(home.site, "threads", THREADS)
    async with open_server(home, "threads", extra=LIMITS) as server:
        await server.wait_line("in a thread")
        server.process.send_signal(signal.SIGHUP)
        await server.wait_ready(times=2)
        shown = (await server.get("/-/supervision"))["threads"]
        (plugin,) = await server.get("/-/plugins")

        assert shown["abandoned"] == 1
        assert [ghost["name"] for ghost in plugin["ghosts"]] == ["threads/never_ends"]
        assert any("time.sleep" in line or "never_ends" in line for line in plugin["ghosts"][0]["where"])
        (warned,) = server.events("a synchronous service is started beside its own thread that never ended")
        assert warned["service"] == "threads/never_ends"


async def test_a_full_root_window_ends_with_status_70(home: Home) -> None:
    """Too many crashes of the core end everything in order, with the story of the last ones."""
    settings = LIMITS + "root_restarts = 1\nbackoff_initial = 0.0\n"
    async with open_server(home, "tangram_e2e", extra=settings) as server:
        below = server.children()
        for count in (2, 3):
            with suppress(httpx.TransportError):  # on a slow machine the crash cuts the answer off
                await server.request("POST", "/e2e/crash", params={"task": "incarnation/web"})
            if count == 2:
                await server.wait_ready(times=count)
        status = await server.wait_end()
        await wait_gone(below)

        assert status == 70
        assert "planted in incarnation/web" in server.log


async def test_a_plugins_full_window_may_end_the_process(home: Home) -> None:
    """With ``exhausted = "exit"`` a plugin with too many crashes ends the process with 70."""
    write_plugin(home.site, "busy", CRASHES)
    home.configure(["busy"], LIMITS + 'exhausted = "exit"\nbackoff_initial = 0.0\n')
    async with open_process(home) as server:
        # It need never be ready: a slow machine starts the rest of it for longer than the plugin lives.
        await server.wait_line("as always")
        below = server.children()
        status = await server.wait_end(within=LONG)
        await wait_gone(below)

        assert status == 70


async def test_a_stop_at_any_moment_leaves_no_process(home: Home) -> None:
    """A stop at any moment of repeated crashes ends with status 0 and leaves no process."""
    write_plugin(home.site, "busy", CRASHES)
    settings = LIMITS + "plugin_restarts = 1000\nbackoff_initial = 0.0\n"
    for moment in (0.0, 0.03, 0.06, 0.09, 0.12):
        home.configure(["busy"], settings)
        async with open_process(home) as server:
            await server.wait_ready()
            await trio.sleep(moment)
            assert await stopped(server) == 0

    async def none_of_ours() -> bool:
        ours = [
            one
            for one in psutil.process_iter(["cmdline"])
            if str(home.folder) in " ".join(one.info["cmdline"] or [])
        ]
        return not ours

    await wait_until(none_of_ours)
