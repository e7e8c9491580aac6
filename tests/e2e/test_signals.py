"""INT and TERM stop the server in order, HUP restarts it, KILL leaves no process."""

from __future__ import annotations

import signal
from contextlib import suppress

import httpx
import pytest
import trio

from tests.e2e.harness import Home, open_process, open_server, wait_gone, wait_until
from tests.e2e.polling import polling
from tests.machine_slack import open_lateness


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_ends_in_order(home: Home, number: signal.Signals) -> None:
    """The process ends with status 0 within ``shutdown_timeout`` and leaves no child."""
    async with open_server(
        home, "tangram_e2e", "tangram_demo", extra="[supervisor]\nshutdown_timeout = 5.0\n"
    ) as server:
        below = server.children()
        with open_lateness(server.process.pid) as late:
            begun = trio.current_time()
            status = await server.stop(number)
            took = trio.current_time() - begun
        await wait_gone(below)

        assert status == 0
        assert took < 5.0 + late.allowed
        assert below


async def test_ends_during_boot(home: Home) -> None:
    """A stop that comes before the server is ready is obeyed as well."""
    home.configure(["tangram_e2e"], core='log_level = "DEBUG"')
    async with open_server(home, "tangram_e2e") as warm:
        await warm.stop()
    for delay in (0.1, 0.25, 0.4):
        async with open_process(home) as server:
            await trio.sleep(delay)
            below = server.children()
            status = await server.stop()
            await wait_gone(below)

            # The latter before Python itself was up.
            assert status in {0, -signal.SIGTERM}, server.lines


async def test_kill_leaves_no_process(home: Home) -> None:
    """A server killed with SIGKILL takes its broker with it."""
    async with open_server(home, "tangram_e2e") as server:
        below = server.children()
        server.process.kill()
        await server.wait_end()
        await wait_gone(below)

        assert below


async def test_hangup_restarts_with_the_file_read_again(home: Home) -> None:
    """HUP starts a new incarnation from the changed file and refuses no connection."""
    async with open_server(home, "tangram_e2e") as server:
        before = await server.get("/e2e/ping")
        missing = await server.request("GET", "/demo/info")
        home.configure(["tangram_e2e", "tangram_demo"])
        async with polling(server, "/e2e/ping") as polls:
            server.process.send_signal(signal.SIGHUP)

            async def demo_answers() -> bool:
                return bool((await server.get("/demo/info"))["host"])

            await wait_until(demo_answers)
            await polls.wait_good(10)
        after = await server.get("/e2e/ping")

        assert missing.status_code == 404
        assert after["pid"] == before["pid"]
        assert after["born"] > before["born"]
        assert polls.refused == 0
        assert polls.reset == 0
        assert polls.other == []


async def test_hangup_with_a_bad_file_keeps_the_old_one(home: Home) -> None:
    """A bad file is told with its faults, and the server goes on as it was."""
    async with open_server(home, "tangram_e2e") as server:
        home.config.write_text("[server]\nprot = 1\n")
        server.process.send_signal(signal.SIGHUP)
        await server.wait_line("server.prot")

        async def answers() -> bool:
            return bool((await server.get("/e2e/ping"))["born"])

        await wait_until(answers)

        assert server.process.returncode is None


async def test_ends_during_a_clean_restart(home: Home) -> None:
    """A stop during the drain of a restart ends the server without a new incarnation."""
    settings = "[supervisor]\nshutdown_timeout = 10.0\n"  # of which a drain takes half
    async with open_server(home, "tangram_e2e", extra=settings) as server, trio.open_nursery() as nursery:

        async def ask() -> None:
            with suppress(httpx.HTTPError):  # cut off by the end
                await server.request("GET", "/e2e/slow", params={"seconds": 30})

        nursery.start_soon(ask)
        await server.wait_line("slow request begins")
        server.process.send_signal(signal.SIGHUP)
        await server.wait_line("planned restart")
        status = await server.stop()

        assert status == 0
        assert server.log.count("tangram ready") == 1
