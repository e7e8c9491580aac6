"""Several workers below one parent, as processes."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter

import psutil
import pytest
import trio

from tests.e2e.harness import LONG, Home, Server, open_process, wait_gone, wait_until
from tests.e2e.polling import polling

pytestmark = pytest.mark.slow


def configure(home: Home, *, workers: int = 2, more: str = "") -> None:
    home.configure(["tangram_e2e"], extra=more)
    text = home.config.read_text().replace("[server]\n", f"[server]\nworkers = {workers}\n")
    home.config.write_text(text)


def workers_of(server: Server) -> list[psutil.Process]:
    return [one for one in server.children() if "-P" in one.cmdline()[:2]]  # its guard is a shell


async def pids(server: Server, *, among: int = 2) -> set[int]:
    """Return the processes that answer."""
    found: Counter[int] = Counter()
    with trio.move_on_after(LONG):
        while len(found) < among:
            found[(await server.get("/e2e/ping"))["pid"]] += 1
    return set(found)


async def wait_event(server: Server, event: str, *, times: int = 1) -> None:
    await server.wait_line(event, times=times)


async def test_two_workers_serve_survive_and_are_replaced(home: Home) -> None:
    """A killed worker is restarted; SIGHUP replaces both without a refused or reset connection."""
    configure(home)
    async with open_process(home) as server:
        await wait_event(server, "all workers ready")
        first = await pids(server)
        assert first == {one.pid for one in workers_of(server)}
        answer = await server.request("GET", "/-/metrics")
        assert re.search(r'node;desc="[^"]+\.[12]"', answer.headers["server-timing"])

        victim = min(first)
        psutil.Process(victim).kill()
        await wait_event(server, "worker ready", times=3)
        (crash,) = server.events("child crashed")
        assert "SIGKILL" in crash["cause"]
        second = await pids(server)
        assert second - first
        assert victim not in second

        async with polling(server, "/e2e/ping") as polls:
            for times in (1, 2):
                server.process.send_signal(signal.SIGHUP)
                await wait_event(server, "rolling restart over", times=times)
        assert polls.good
        assert (polls.refused, polls.reset, polls.other) == (0, 0, [])
        third = await pids(server)
        assert not third & second

        home.configure(["nonesuch"], core="strict = true")  # the first new worker refuses it
        server.process.send_signal(signal.SIGHUP)
        await wait_event(server, "configuration rejected")
        assert await pids(server) == third

        below = server.children()
        assert await server.stop() == 0
        await wait_gone(below)
        for line in server.err:
            record = json.loads(line)  # each is whole
            assert "worker" in record or record["logger"] != "tangram.app"


async def test_nothing_outlives_a_killed_parent(home: Home) -> None:
    """Workers and broker are killed with it."""
    configure(home)
    async with open_process(home) as server:
        await wait_event(server, "all workers ready")
        below = server.children()
        server.process.kill()
        await server.wait_end()
        await wait_gone(below)

        assert len(below) >= 3


async def test_a_mistake_in_a_plugin_ends_the_start_with_its_message(home: Home) -> None:
    """As with one process: status 2 or 1, a line, and no traceback."""
    home.configure(["nonesuch"], core="strict = true")
    home.config.write_text(home.config.read_text().replace("[server]\n", "[server]\nworkers = 2\n"))
    async with open_process(home) as server:
        status = await server.wait_end(within=LONG)

        assert status == 1
        assert "tangram: [core] strict = true, and not every plugin can be loaded" in server.log
        assert "Traceback" not in server.log


async def test_a_message_reaches_the_browsers_of_all_workers(home: Home) -> None:
    """The workers share the broker of the parent, also after it was killed and restarted."""
    configure(home)
    async with open_process(home) as server:
        await wait_event(server, "all workers ready")
        server.broker().kill()

        async def all_back() -> bool:
            ready = [one for one in server.events("tangram ready") if one["ready"] == 2]
            return len({one["worker"] for one in ready}) == 2

        await wait_until(all_back)
        assert len(await pids(server)) == 2


STUBBORN = """
import trio
import tangram

plugin = tangram.Plugin()


@plugin.register_service()
async def stay(state: tangram.BackendState) -> None:
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(60)
"""


async def test_a_second_sigint_ends_all_workers_at_once(home: Home) -> None:
    """Each reports the task that goes on, and the status is 130."""
    home.install("stubborn", STUBBORN)
    home.configure(["stubborn"])
    home.config.write_text(home.config.read_text().replace("[server]\n", "[server]\nworkers = 2\n"))
    async with open_process(home) as server:
        await wait_event(server, "all workers ready")
        below = server.children()
        server.process.send_signal(signal.SIGINT)
        await wait_event(server, "stop requested", times=3)
        await trio.sleep(0.7)  # a repetition sooner than half a second counts as the first
        server.process.send_signal(signal.SIGINT)
        status = await server.wait_end(within=LONG)
        await wait_gone(below)

        assert status == 130
        assert server.log.count("the stop was cut short by a second SIGINT") == 2
