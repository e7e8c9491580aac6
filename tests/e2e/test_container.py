"""The constraints of a container: process 1, read-only root, another account, no HOME, closed streams."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests.e2e.harness import LONG, Home, Server, open_process, open_server, wait_until
from tests.e2e.prepare import ROOT

UNSHARE: Final = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
ACCOUNT: Final = 10001


def may_unshare() -> bool:
    try:
        tried = subprocess.run([*UNSHARE, "true"], capture_output=True, timeout=LONG, check=False)
    except OSError:
        return False
    return tried.returncode == 0 and shutil.which("setpriv") is not None


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not may_unshare(), reason="this account may not make namespaces, or has no setpriv"),
]

SOURCE: Final = """
import errno, os, subprocess
from pathlib import Path
import tangram

router = tangram.APIRouter()
plugin = tangram.Plugin(routers=[router])


@router.get("/constraints")
async def constraints() -> dict[str, object]:
    failed = 0
    try:
        Path("/written").write_text("x")
    except OSError as error:
        failed = error.errno
    return {
        "uid": os.getuid(),
        "root": errno.errorcode.get(failed, "written"),
        "home": os.environ.get("HOME"),
        "init": Path("/proc/1/comm").read_text().strip(),
    }


@router.get("/orphan")
async def orphan() -> bool:
    subprocess.run(["sh", "-c", "sleep 0.1 & exit 0"], check=True, stdin=subprocess.DEVNULL)
    return True


@router.get("/processes")
async def processes() -> list[str]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        name, _, rest = stat.read_text().rpartition(")")
        found.append(f"{rest.split()[0]} {name.partition('(')[2]}")
    return found
"""


def closed_folder(path: Path) -> Path | None:
    """Return the outermost folder above ``path`` that another account may not enter."""
    for folder in reversed(path.parents):
        if not folder.stat().st_mode & 0o001:
            return folder
    return None


def exposed(paths: list[Path], keep: Path) -> str:
    """Return the shell commands that let another account reach these folders, in this mount namespace."""
    lines: list[str] = []
    hidden: dict[Path, list[tuple[Path, Path]]] = {}
    for number, path in enumerate(paths):
        closed = closed_folder(path)
        if closed is not None:
            kept = keep / str(number)
            lines.append(f"mkdir -p {kept} && mount --bind {path} {kept}")
            hidden.setdefault(closed, []).append((kept, path))
    for closed, found in hidden.items():
        lines.append(f"mount -t tmpfs -o mode=0755 tmpfs {closed}")
        lines += [f"mkdir -p {path} && mount --bind {kept} {path}" for kept, path in found]
    return "\n".join(lines)


class Container(Home):
    """Starts the server as an image would: see deploy/Dockerfile."""

    streams: str = ""
    """Redirections of the shell, such as ``<&- >&-``."""

    @property
    def environ(self) -> dict[str, str]:
        return {name: value for name, value in super().environ.items() if name != "HOME"}

    def command(self, *arguments: str) -> list[str]:
        needed = [Path(sys.base_prefix), Path(sys.prefix), ROOT]
        account = (
            f"setpriv --reuid {ACCOUNT} --regid {ACCOUNT} --clear-groups --no-new-privs --bounding-set=-all"
        )
        script = f"""
            set -e
            mount --make-rprivate /
            {exposed(needed, self.folder / "keep")}
            chown {ACCOUNT} {self.state.parent}
            mount --bind {self.state.parent} {self.state.parent}
            mount -o remount,bind,ro /
            exec {account} {shlex.join(super().command(*arguments))} {self.streams}
        """
        return [*UNSHARE, "sh", "-c", script]


@pytest.fixture
def container() -> Iterator[Container]:
    folder = Path(tempfile.mkdtemp(prefix="tangram-container-"))
    folder.chmod(0o755)
    container = Container(folder)
    container.state.parent.mkdir()
    container.install("constraints", SOURCE)
    yield container
    shutil.rmtree(folder, ignore_errors=True)


def init_of(server: Server) -> psutil.Process:
    (init,) = psutil.Process(server.process.pid).children()
    return init


@pytest.mark.parametrize("streams", ["", "<&- >&-"], ids=["streams", "stdin and stdout closed"])
async def test_a_hardened_container_runs(container: Container, streams: str) -> None:
    """Process 1, another account without HOME, a read-only root: it serves, restarts, reaps and stops."""
    container.streams = streams
    async with open_server(container, "constraints") as server:
        found = await server.get("/constraints")
        for _ in range(3):
            await server.get("/orphan")

        async def reaped() -> bool:
            processes = await server.get("/processes")
            return not any(one.startswith("Z") or "sleep" in one for one in processes)

        await wait_until(reaped)
        init = init_of(server)
        init.send_signal(signal.SIGHUP)
        await server.wait_ready(times=2)
        below = init.children(recursive=True)
        init.send_signal(signal.SIGTERM)
        status = await server.wait_end()

    assert (found["uid"], found["root"], found["home"]) == (ACCOUNT, "EROFS", None)
    assert found["init"].startswith(("python", "tangram"))
    assert status == 0
    assert not [one for one in below if one.is_running()]
    written = {path.name for path in container.state.rglob("*")}
    assert {"operator-token", "jwt-secret"} <= written


async def test_the_end_of_process_1_leaves_no_orphan(container: Container) -> None:
    """SIGKILL to process 1 ends the server and its broker with it: the kernel ends the whole namespace."""
    async with open_server(container, "constraints") as server:
        init = init_of(server)
        below = init.children(recursive=True)
        init.send_signal(signal.SIGKILL)
        await server.wait_end()

        async def gone() -> bool:
            return not [one for one in below if one.is_running()]

        await wait_until(gone)
    assert len(below) >= 2


async def test_without_a_place_for_the_state_the_operator_is_told(container: Container) -> None:
    """No HOME, no entry of the account and no configured folder: status 2, with the remedy."""
    container.configure(["constraints"])
    environ: Any = dict.fromkeys(("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), "")
    async with open_process(container, environ=environ) as server:
        status = await server.wait_end(within=LONG)

    assert status == 2
    assert "@ XDG_STATE_HOME" in server.log
