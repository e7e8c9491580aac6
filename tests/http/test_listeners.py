"""The root's sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tangram.errors import AddressError
from tangram.http.listeners import HeldSocket, close_listeners, inherited_listeners, open_listeners
from tangram.testing import free_port


def connect(held: HeldSocket) -> socket.socket:
    return socket.create_connection((held.host, held.port), timeout=5)


def test_port_zero_is_one_port_for_all_families() -> None:
    """Port 0 gives one free port, the same for each address that the name stands for."""
    held = open_listeners("", 0)
    ports = {one.port for one in held}
    close_listeners(held)

    assert len(ports) == 1
    assert ports != {0}


def test_a_name_is_bound_in_all_available_families() -> None:
    """localhost is bound on IPv4, and on IPv6 where the machine has it."""
    held = open_listeners("localhost", 0)
    hosts = {one.host for one in held}
    close_listeners(held)

    assert "127.0.0.1" in hosts
    assert hosts <= {"127.0.0.1", "::1"}


def test_a_port_in_use_is_named() -> None:
    """A port in use is told with the address and the setting to change."""
    held = open_listeners("127.0.0.1", 0)
    try:
        with pytest.raises(
            AddressError, match=rf"127\.0\.0\.1:{held[0].port}: another program.*\[server\] port"
        ):
            open_listeners("127.0.0.1", held[0].port)
    finally:
        close_listeners(held)


def test_address_of_another_machine() -> None:
    """An address that this machine does not have is told as such."""
    with pytest.raises(
        AddressError, match=r"192\.0\.2\.1.*not an address of this machine; change \[server\] host"
    ):
        open_listeners("192.0.2.1", 0)


def test_name_that_does_not_exist() -> None:
    """A name without an address is told with the setting to change."""
    with pytest.raises(AddressError, match=r"'no\.such\.invalid'.*\[channel\] host"):
        open_listeners("no.such.invalid", 0, section="channel")


def test_closing_a_dup_refuses_no_client() -> None:
    """Clients that connect between two incarnations wait in the kernel's queue."""
    held = open_listeners("127.0.0.1", 0)[0]
    held.dup().close()
    client = connect(held)
    twin = held.dup()
    twin.setblocking(True)
    served, _ = twin.accept()
    served.sendall(b"hello")

    assert client.recv(5) == b"hello"
    for one in (client, served, twin, held):
        one.close()


def test_sockets_do_not_reach_child_processes() -> None:
    """Neither the held socket nor its twin is inherited by a child process."""
    held = open_listeners("127.0.0.1", 0)[0]
    twin = held.dup()
    inherited = [os.get_inheritable(held.listener.fileno()), os.get_inheritable(twin.fileno())]
    twin.close()
    held.close()

    assert inherited == [False, False]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["::", "*", "", "[::]"])
def test_all_addresses_are_those_of_both_families(host: str) -> None:
    """Each notation of all addresses listens on IPv4, and on IPv6 where the machine has it."""
    held = open_listeners(host, 0)
    hosts = {one.host for one in held}
    close_listeners(held)

    assert hosts == ({"0.0.0.0", "::"} if has_ipv6() else {"0.0.0.0"})


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_brackets_around_an_address_are_ignored() -> None:
    """``[::1]``, as in a URL, is ``::1``."""
    held = open_listeners("[::1]", 0)
    close_listeners(held)

    assert [one.host for one in held] == ["::1"]


def test_a_list_of_addresses_shares_one_port(tmp_path: Path) -> None:
    """Several addresses and a Unix socket are opened together; the first one has a port."""
    held = open_listeners(f"unix:{tmp_path}/t.sock, 127.0.0.1, 127.0.0.2", 0)
    hosts = [one.host for one in held]
    ports = {one.port for one in held[:2]}
    close_listeners(held)

    assert hosts == ["127.0.0.1", "127.0.0.2", f"unix:{tmp_path}/t.sock"]
    assert len(ports) == 1


def test_an_error_closes_the_addresses_before_it(tmp_path: Path) -> None:
    """If one address of a list cannot be opened, no other one stays open."""
    with pytest.raises(AddressError, match=r"192\.0\.2\.1"):
        open_listeners("127.0.0.1, 192.0.2.1", port := free_port())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


def test_a_unix_socket_is_deleted_at_the_end_and_replaced_after_a_kill(tmp_path: Path) -> None:
    """A file that a killed server left behind is no obstacle; one in use is, with advice about the host."""
    path = tmp_path / "t.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    (held,) = open_listeners(f"unix:{path}", 0)

    with pytest.raises(AddressError, match=r"t\.sock: another program listens there; change \[server\] host"):
        open_listeners(f"unix:{path}", 0)
    assert path.stat().st_mode & 0o777 == 0o666
    held.close()
    assert not path.exists()


def test_a_unix_socket_does_not_replace_another_file(tmp_path: Path) -> None:
    """A regular file is not deleted, and a missing folder is named."""
    path = tmp_path / "notes.txt"
    path.write_text("keep")

    with pytest.raises(AddressError, match=r"notes\.txt: another program"):
        open_listeners(f"unix:{path}", 0)
    assert path.read_text() == "keep"
    with pytest.raises(AddressError, match=r"its folder does not exist; change \[server\] host"):
        open_listeners(f"unix:{tmp_path}/none/t.sock", 0)


INHERIT = """
import os, socket, sys
from tangram.http.listeners import inherited_listeners
os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), sys.argv[1]
try:
    held = inherited_listeners(os.environ)
    print([(one.host, one.port) for one in held], "LISTEN_FDS" in os.environ, os.get_inheritable(3))
except Exception as error:
    print(type(error).__name__, error)
"""


def inherit(count: int, listener: socket.socket) -> str:
    """Run a process whose descriptor 3 is ``listener``, as systemd does."""
    script = f"import os, sys; os.dup2({listener.fileno()}, 3); os.execv(sys.executable, sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", script, sys.executable, "-c", INHERIT, str(count)],
        capture_output=True,
        text=True,
        pass_fds=[listener.fileno()],
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_sockets_of_systemd_are_used() -> None:
    """LISTEN_FDS names listening sockets; other descriptors are an error that says what was expected."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert inherit(1, listener) == f"[('127.0.0.1', {port})] False False"
    with socket.socket() as idle:
        assert "does not listen: expected ListenStream=" in inherit(1, idle)


def test_sockets_for_another_process_are_ignored() -> None:
    """LISTEN_PID of another process means that the variables were inherited by mistake."""
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "2", "OTHER": "x"}

    assert inherited_listeners(environ) == []
    assert environ == {"OTHER": "x"}


SUCCESSOR = """
import os, sys
from tangram.http.listeners import close_listeners, hand_over, open_configured
from tangram.config import Config
if sys.argv[1] == "first":
    from tangram.http.listeners import open_listeners
    # The copies must not replace a socket whose place they take.
    held = open_listeners("127.0.0.1,unix:" + sys.argv[2], 0)
    print([(one.host, one.port) for one in held], flush=True)
    hand_over(held[::-1], os.environ)
    os.execv(sys.executable, [sys.executable, sys.orig_argv[1], sys.orig_argv[2], "second", sys.argv[2]])
held = open_configured(Config(), os.environ)
held.reverse()
print([(one.host, one.port) for one in held], [os.get_inheritable(one.listener.fileno()) for one in held])
close_listeners(held)
print(os.path.exists(sys.argv[2]), "LISTEN_FDNAMES" in os.environ)
"""


@pytest.mark.slow
def test_a_program_hands_its_sockets_to_its_successor(tmp_path: Path) -> None:
    """The same sockets go on, none is inherited further, and a Unix socket's file is deleted at the end."""
    command = [sys.executable, "-c", SUCCESSOR, "first", str(tmp_path / "t.sock")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after, end = done.stdout.splitlines()

    assert after == f"{before} [False, False]"
    assert end == "False False"
