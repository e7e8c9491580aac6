"""The root's sockets."""

from __future__ import annotations

import os
import socket

import pytest

from tangram.errors import AddressError
from tangram.http.listeners import HeldSocket, close_listeners, open_listeners


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
    with pytest.raises(AddressError, match=r"192\.0\.2\.1.*not an address of this machine"):
        open_listeners("192.0.2.1", 0)


def test_name_that_does_not_exist() -> None:
    """A name without an address is told with the setting to change."""
    with pytest.raises(AddressError, match=r"'no\.such\.invalid'.*\[channel\] host"):
        open_listeners("no.such.invalid", 0, setting="[channel] host")


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
