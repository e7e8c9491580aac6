"""Two real servers with the same ``cluster.node`` on one Redis."""

from __future__ import annotations

import signal
from pathlib import Path

from tangram.testing import open_broker
from tests.e2e.harness import Home, Server, open_process, run_tangram

TAKEN = "another server of this cluster is called 'twin'"
SECRET = "the same secret on every node of this cluster"


async def test_the_second_one_does_not_start_and_a_killed_one_does(tmp_path: Path) -> None:
    """A second server ends with status 1 and one line; after SIGKILL the name is free at once."""
    with open_broker() as redis:

        def home(name: str) -> Home:
            made = Home(tmp_path / name)
            extra = f'[channel]\njwt_secret = "{SECRET}"\n[cluster]\nnode = "twin"'
            made.configure(core=f'redis_url = "{redis.url}"', extra=extra)
            return made

        async with open_process(home("first")) as first:
            await first.wait_ready()
            await refuse(home("second"), first)
            first.send(signal.SIGKILL)
            await first.wait_end()
        async with open_process(home("third")) as third:
            await third.wait_ready()
            await refuse(home("fourth"), third)
            assert await third.stop() == 0


async def refuse(home: Home, owner: Server) -> None:
    """Start a server that must not start, while the owner of the name goes on."""
    refused = await run_tangram(home)

    assert refused.process.returncode == 1
    lines = [line for line in refused.lines if TAKEN in line and not line.startswith("{")]
    assert len(lines) == 1
    assert f"process {owner.process.pid} on " in lines[0]
    assert "cluster.node" in lines[0]
    assert "Traceback" not in refused.log
    assert not refused.events("tangram ready")
    await owner.wait_line("server with the name of this node refused")
    assert (await owner.request("GET", "/-/readyz")).status_code == 200
