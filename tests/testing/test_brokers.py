"""A real broker of a test's own: its lives, its password, and its end."""

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

from tangram.testing import InvariantBroken, RealBroker, free_port, open_broker
from tangram.testing.fakes.ports import is_listening

pytestmark = pytest.mark.slow


def ping(broker: RealBroker, **options: float) -> bool:
    with redis.Redis.from_url(broker.url, **options) as client:
        return bool(client.ping())


def test_it_is_killed_and_comes_back_at_its_address() -> None:
    """It answers once it is started; killed nobody listens; started again it is the same URL, empty."""
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


def test_it_stands_still_and_goes_on() -> None:
    """Frozen it answers nothing, thawed it answers."""
    with open_broker() as broker:
        broker.freeze()
        with pytest.raises(redis.TimeoutError):
            ping(broker, socket_timeout=0.05)
        broker.thaw()

        assert ping(broker, socket_timeout=5.0)


def test_a_password_may_change_between_two_lives() -> None:
    """Its URL holds the password; who knows the old one alone is refused afterwards."""
    with open_broker(password="pa:ss") as broker:
        old = broker.url
        assert ping(broker)
        broker.kill()
        broker.password = "other"
        broker.start()

        assert ping(broker)
        with redis.Redis.from_url(old) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_misuse_is_told() -> None:
    """Two lives at once, and freezing none, are told with what to do."""
    with open_broker() as broker:
        with pytest.raises(RuntimeError, match="kill it first"):
            broker.start()
        broker.kill()
        with pytest.raises(RuntimeError, match="start it first"):
            broker.freeze()


def test_somebody_at_its_port_in_the_end_breaks_an_invariant() -> None:
    """What listens at its port after its end is left behind by the test."""
    with socket.socket() as stranger, pytest.raises(InvariantBroken, match="nothing_left"):  # noqa: PT012
        with open_broker(start=False) as broker:
            stranger.bind(("127.0.0.1", broker.port))
            stranger.listen()


def test_it_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """A test run that is killed leaves no broker behind."""
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
    deadline = time.monotonic() + 5
    while is_listening(port) and time.monotonic() < deadline:
        time.sleep(0.01)

    assert not is_listening(port)


def test_a_free_port_is_not_given_to_outgoing_connections() -> None:
    """Its port lies below those that Linux gives to whoever connects: nobody else gets it by chance."""
    ports = {free_port() for _ in range(50)}

    assert max(ports) < 32768
    assert len(ports) > 40
