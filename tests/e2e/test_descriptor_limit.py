"""A server with few file descriptors, and one client that takes all of them."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import psutil
import trio

from tests.e2e.harness import LONG, Home, open_server, write_plugin

LIMIT = 400
CLIENTS = 450

PLUGIN = """
import tangram, trio

plugin = tangram.Plugin()


@plugin.register_service()
async def read_files(state):
    while True:
        files = [open(__file__) for _ in range(20)]
        await trio.sleep(0.02)
        for file in files:
            file.close()
"""


class LimitedHome(Home):
    """A home whose server may open ``LIMIT`` descriptors, of which the soft limit allows a part at first."""

    def command(self, *arguments: str) -> list[str]:
        script = f'ulimit -Sn 200; ulimit -Hn {LIMIT}; exec "$@"'
        return ["sh", "-c", script, "sh", *super().command(*arguments)]


async def test_idle_connections_leave_descriptors_for_plugins(home: Home, tmp_path: Path) -> None:
    """Idle connections take neither the plugins' descriptors nor the place of clients that send requests.

    The soft limit is raised to the hard one, the bound on connections fits it, and one log line is written.
    """
    limited = LimitedHome(tmp_path / "limited")
    write_plugin(limited.site, "reader", PLUGIN)
    with ExitStack() as stack:
        async with open_server(limited, "reader") as server:
            process = psutil.Process(server.process.pid)
            soft, _ = process.rlimit(psutil.RLIMIT_NOFILE)
            for _ in range(CLIENTS):
                stack.enter_context(socket.create_connection(("127.0.0.1", limited.port), timeout=LONG))
                await trio.lowlevel.checkpoint()
            for _ in range(5):
                assert (await server.get("/-/healthz"))["status"] == "ok"
                await trio.sleep(0.2)
            descriptors = process.num_fds()

    assert soft == LIMIT
    assert descriptors < LIMIT
    assert "child crashed" not in server.log
    assert server.log.count("without a request closed at the bound") == 1
    assert server.log.count("max_connections does not fit the limit on open files") == 1
