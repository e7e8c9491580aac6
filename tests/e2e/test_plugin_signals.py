"""Plugins that change signal handlers: the server stays stoppable and names the plugin."""

from __future__ import annotations

import os
import signal

import pytest
import trio

from tests.e2e.harness import Home, is_alive, open_server, wait_until
from tests.machine_slack import open_lateness

HEAD = """
import os, signal, sys, time
import trio
import tangram

router = tangram.APIRouter()
plugin = tangram.Plugin(routers=[router])
"""

AT_IMPORT = f"{HEAD}\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"

IN_A_SERVICE = f"""{HEAD}
@plugin.register_service()
async def service(state: tangram.BackendState) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)
    await trio.sleep_forever()
"""

IN_A_HANDLER = f"""{HEAD}
@router.get("/touch")
async def touch() -> str:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return "done"
"""

BY_THE_BACK_DOOR = f"""{HEAD}
import _signal

@plugin.register_service()
async def service(state: tangram.BackendState) -> None:
    _signal.signal(signal.SIGTERM, ignore)
    await trio.sleep_forever()

def ignore(*_: object) -> None:
    pass
"""

BLOCKED = f"""{HEAD}
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
"""

WAYS = {
    "at import": AT_IMPORT,
    "in a service": IN_A_SERVICE,
    "in a handler": IN_A_HANDLER,
    "by the back door": BY_THE_BACK_DOOR,
}


@pytest.mark.parametrize("source", WAYS.values(), ids=WAYS)
async def test_a_plugin_cannot_take_a_signal_of_the_server(home: Home, source: str) -> None:
    """SIGTERM stops the server in order, and one warning names the plugin and its line."""
    home.install("rude", source)
    async with open_server(home, "rude") as server:
        if source is IN_A_HANDLER:
            await server.get("/touch")
        await server.wait_line("signal handler of a plugin ignored")
        status = await server.stop()

    (warning,) = server.events("signal handler of a plugin ignored")
    assert status == 0
    assert (warning["plugin"], warning["signal"]) == ("rude", "SIGTERM")
    assert source is BY_THE_BACK_DOOR or "rude.py" in warning["where"]


EXISTING = {
    "at import": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "in a service": """
@plugin.register_service()
async def service(state: tangram_core.BackendState) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    await asyncio.sleep(3600)
""",
}


@pytest.mark.parametrize("source", EXISTING.values(), ids=EXISTING)
async def test_an_existing_plugin_cannot_take_a_signal_of_the_server(home: Home, source: str) -> None:
    """The same holds for plugins that were written for ``tangram_core``."""
    head = "import asyncio, signal\nimport tangram_core\n\nplugin = tangram_core.Plugin()\n"
    (home.site / "rude.py").write_text(f"{head}\n{source}\n")
    home.announce("rude", "rude:plugin", group="tangram_core.plugins")
    async with open_server(home, "rude") as server:
        await server.wait_line("signal handler of a plugin ignored")
        assert await server.stop() == 0

    (warning,) = server.events("signal handler of a plugin ignored")
    assert (warning["plugin"], warning["signal"]) == ("rude", "SIGTERM")


async def test_a_plugin_that_blocks_a_signal_does_not_block_the_stop(home: Home) -> None:
    """Another thread of the server still takes the signal."""
    home.install("rude", BLOCKED)
    async with open_server(home, "rude") as server:
        assert await server.stop() == 0


async def test_a_broken_pipe_does_not_end_the_server(home: Home) -> None:
    """``signal.signal(SIGPIPE, SIG_DFL)``, common in scripts, would end it at a closed socket."""
    home.install("rude", f"{HEAD}\nsignal.signal(signal.SIGPIPE, signal.SIG_DFL)\n")
    async with open_server(home, "rude") as server:
        os.kill(server.process.pid, signal.SIGPIPE)
        assert (await server.request("GET", "/-/healthz")).status_code == 200
        assert await server.stop() == 0

    assert server.events("signal handler of a plugin ignored", signal="SIGPIPE", plugin="rude")


async def test_an_alarm_without_a_handler_is_logged(home: Home) -> None:
    """The alarm of a plugin does not end the process; a plugin's own handler is called."""
    source = f"""{HEAD}
seen = []

@router.get("/alarm")
async def alarm() -> str:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    await trio.sleep(0.2)
    return "done"

@router.get("/handled")
async def handled() -> int:
    signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    await trio.sleep(0.2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    return len(seen)
"""
    home.install("rude", source)
    async with open_server(home, "rude") as server:
        await server.get("/alarm")
        assert await server.get("/handled") == 1
        await server.get("/alarm")
        assert await server.stop() == 0

    assert len(server.events("signal without a handler ignored", signal="SIGALRM")) == 2


async def test_a_forked_child_ends_at_sigterm(home: Home) -> None:
    """A child of ``os.fork`` has the default handlers, and runs no code of the server."""
    source = f"""{HEAD}
@router.get("/fork")
async def fork() -> int:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, b"x")
        while True:
            time.sleep(0.01)
    os.read(reader, 1)  # it runs
    os.close(reader)
    os.close(writer)
    return pid

@router.get("/reap")
async def reap(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
    home.install("forking", source)
    async with open_server(home, "forking") as server:
        pid = await server.get("/fork")
        os.kill(pid, signal.SIGTERM)
        assert await server.get(f"/reap?pid={pid}") == -signal.SIGTERM
        assert (await server.request("GET", "/-/healthz")).status_code == 200
        assert await server.stop() == 0

    assert "Traceback" not in server.log


DRAINING = f"""{HEAD}
@router.get("/slow")
async def slow() -> str:
    print("slow request begins", flush=True)
    await trio.sleep(90)
    return "late"
"""


async def test_a_second_sigint_during_the_drain_ends_the_process(home: Home) -> None:
    """The first begins the drain; one more, after 0.5 s, ends the process with status 130."""
    home.install("slow", DRAINING)
    limits = "[supervisor]\nshutdown_timeout = 60.0\n"  # of which a drain takes half
    async with open_server(home, "slow", extra=limits) as server, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(Exception):  # noqa: B017 - the connection breaks, whichever way
                await server.request("GET", "/slow")

        nursery.start_soon(ask)
        await server.wait_line("slow request begins")
        below = server.children()
        server.send(signal.SIGINT)
        await server.wait_line("stop requested")
        server.send(signal.SIGINT)  # a terminal and a program around the server send it twice
        await trio.sleep(0.7)
        assert server.process.returncode is None
        with open_lateness(server.process.pid) as late:
            begun = trio.current_time()
            server.send(signal.SIGINT)
            status = await server.wait_end()
            took = trio.current_time() - begun

        async def gone() -> bool:
            return not any(map(is_alive, below))

        await wait_until(gone)

    assert status == 130
    assert took < 2.0 + late.allowed
    assert below


class NohupHome(Home):
    """Starts the server with ignored signals, as ``nohup`` and a background job of a shell do."""

    def command(self, *arguments: str) -> list[str]:
        return ["sh", "-c", 'trap "" HUP INT; exec "$@"', "sh", *super().command(*arguments)]


async def test_signals_that_are_ignored_at_the_start_stay_ignored(home: Home) -> None:
    """With ``nohup`` a closing terminal neither restarts nor stops the server; SIGTERM does."""
    nohup = NohupHome(home.folder, port=home.port)
    async with open_server(nohup, "tangram_e2e") as server:
        server.send(signal.SIGHUP)
        server.send(signal.SIGINT)
        await trio.sleep(0.5)
        assert (await server.request("GET", "/-/healthz")).status_code == 200
        assert await server.stop(signal.SIGTERM) == 0

    assert server.log.count("tangram ready") == 1
    assert not server.events("planned restart")
