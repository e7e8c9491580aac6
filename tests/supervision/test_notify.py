from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio

from tangram.supervision import Notifier


def test_without_systemd_nothing_is_sent() -> None:
    """Without systemd nothing is sent, and nothing fails."""
    assert Notifier({}).ready() is False
    assert Notifier({"NOTIFY_SOCKET": "vsock:2:1"}).ready() is False
    assert Notifier({"NOTIFY_SOCKET": "/nowhere/at/all"}).stopping() is False


@pytest.mark.parametrize("abstract", [False, True])
def test_ready_and_stopping(tmp_path: Path, *, abstract: bool) -> None:
    """READY and STOPPING reach the socket, named or abstract."""
    name = f"@tangram-test-{tmp_path.name}-{id(tmp_path)}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:] if abstract else name)
        notifier = Notifier({"NOTIFY_SOCKET": name})
        assert notifier.ready("two plugins")
        assert notifier.stopping()

        assert sock.recv(100) == b"READY=1\nSTATUS=two plugins"
        assert sock.recv(100) == b"STOPPING=1"


async def test_watchdog_comes_from_the_loop(tmp_path: Path, autojump_clock: object) -> None:
    """A keep-alive message is sent in each half of the allowed time, for this process only."""
    environ = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "7"}
    assert Notifier(environ, pid=8).watchdog_interval is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(environ["NOTIFY_SOCKET"])
        sock.setblocking(False)
        with trio.move_on_after(2.5):
            await Notifier(environ, pid=7).run()

        assert [sock.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        with pytest.raises(BlockingIOError):
            sock.recv(100)
