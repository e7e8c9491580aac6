"""A real broker of a test: starts, kills, freezes, passwords, and its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from tangram.broker.embedded import _QUIET_PORTS
from tangram.testing import InvariantBroken, RealBroker, free_port, open_broker
from tangram.testing.fakes.ports import _own_ports, is_listening, listeners

pytestmark = pytest.mark.slow


def ping(broker: RealBroker, **options: float) -> bool:
    with redis.Redis.from_url(broker.url, **options) as client:
        return bool(client.ping())


def test_a_killed_broker_restarts_empty_at_its_address() -> None:
    """A started broker answers; a killed one does not listen; a restart has the same URL."""
    with open_broker() as broker:
        with redis.Redis.from_url(broker.url) as client:
            client.set("a", "b")
        first = broker.pid
        broker.kill()
        silent = not is_listening(broker.port)
        broker.start()
        with redis.Redis.from_url(broker.url) as client:
            kept = client.get("a")

        assert ping(broker)
        assert silent
        assert broker.pid != first
        assert kept is None
    assert broker.pid is None
    assert not is_listening(broker.port)


def test_a_frozen_broker_answers_after_a_thaw() -> None:
    """A frozen broker does not answer, a thawed one does."""
    with open_broker() as broker:
        broker.freeze()
        with pytest.raises(redis.TimeoutError):
            ping(broker, socket_timeout=0.05)
        broker.thaw()

        assert ping(broker, socket_timeout=60.0)


def test_a_password_may_change_between_two_starts() -> None:
    """The URL has the password; a client with the old one is refused after the change."""
    with open_broker(password="pa:ss") as broker:
        old = broker.url
        assert ping(broker)
        broker.kill()
        broker.password = "other"
        broker.start()

        assert ping(broker)
        with redis.Redis.from_url(old) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_misuse_is_an_error_with_advice() -> None:
    """A second start, and a freeze before a start, raise and say what to do."""
    with open_broker() as broker:
        with pytest.raises(RuntimeError, match="kill it first"):
            broker.start()
        broker.kill()
        with pytest.raises(RuntimeError, match="start it first"):
            broker.freeze()


def test_a_listener_on_its_port_breaks_an_invariant() -> None:
    """A listener on its port after its end is a leak of the test."""
    with socket.socket() as stranger, pytest.raises(InvariantBroken, match="nothing_left"):  # noqa: PT012 - the block must raise as a whole
        with open_broker(start=False) as broker:
            stranger.bind(("127.0.0.1", broker.port))
            stranger.listen()


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """A killed test run leaves no broker behind."""
    port = free_port()
    code = (
        "import time; from tangram.testing import open_broker\n"
        f"with open_broker(port={port}): print('up', flush=True); time.sleep(600)"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environ)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"up\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    deadline = time.monotonic() + 60
    while is_listening(port) and time.monotonic() < deadline:
        time.sleep(0.01)

    assert not is_listening(port)


def test_a_free_port_is_not_given_to_outgoing_connections() -> None:
    """The port lies below the range that Linux uses for outgoing connections."""
    ports = {free_port() for _ in range(50)}

    assert max(ports) < 32768
    assert len(ports) > 40


def test_processes_of_one_run_draw_from_different_ports() -> None:
    """So no two of them are given the same port, which a server binds later."""
    alone = _own_ports({})
    shares = [
        set(_own_ports({"PYTEST_XDIST_WORKER": f"gw{number}", "PYTEST_XDIST_WORKER_COUNT": "3"}))
        for number in range(3)
    ]

    assert set().union(*shares) == set(alone)
    assert sum(map(len, shares)) == len(alone)
    for other in ("master", "gw3"):
        assert _own_ports({"PYTEST_XDIST_WORKER": other, "PYTEST_XDIST_WORKER_COUNT": "3"}) == alone


def test_the_broker_of_a_server_takes_no_port_of_a_test() -> None:
    """A server under test starts its broker while ports that were given are not bound yet."""
    assert set(_own_ports({})).isdisjoint(_QUIET_PORTS)


def test_a_port_is_not_given_twice_in_a_row() -> None:
    """Two servers of one test have different ports before either is bound."""
    ports = [free_port() for _ in range(500)]

    assert len(set(ports)) == 500


def test_a_listener_is_shown_with_its_processes() -> None:
    """Sockets that do not listen are left out."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            found = listeners(port)

        assert found == {os.fstat(listener.fileno()).st_ino: {os.getpid()}}
    assert not listeners(port)
