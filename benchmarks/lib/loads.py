"""Loads for the servers: C programs on the other processors."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
from typing import Any

from benchmarks.lib.processes import GIVE_UP, LOAD_CPUS, Process, build, cpu_seconds, pinned

TOPIC = "bench"
CHANNEL = "to:bench:tick"
PATH = "/websocket?vsn=2.0.0"

EACH = 10_000_000
"""A push carries its client's number times this, plus the number of earlier pushes of the client."""
PUSHED = re.compile(rb'\{"n":(\d+)')

PATIENCE = 4.0
"""Seconds for a server to deliver the rest after the last message was published."""


class Clients:
    """Joined WebSocket clients in a process of their own."""

    def __init__(
        self,
        port: int,
        token: str,
        count: int,
        *,
        window: int = 32,
        path: str = PATH,
        topic: str = TOPIC,
        mode: str = "",
    ) -> None:
        """Connect and join ``count`` clients, ``window`` at a time.

        In the mode ``hold`` they join at ``join``, in ``recover`` they ask for the messages that they miss.
        """
        command = [str(build("clients")), str(port), path, topic, token, str(count), str(window)]
        self.count = count
        self.process = Process([*command, mode] if mode else command, cpus=LOAD_CPUS, pipes=True)
        self.joined = self.process.read_json()

    def join(self) -> dict[str, Any]:
        """Join all clients that were held, and return the seconds from the first join to the last reply."""
        return self.ask("join")

    def ask(self, command: str) -> dict[str, Any]:
        self.process.write_line(command)
        return self.process.read_json()

    def tell(self, command: str) -> None:
        self.process.write_line(command)

    def end(self) -> None:
        self.process.end()


def publish(redis_port: int, messages: int, rate: float, size: int, burst: int = 1) -> dict[str, Any]:
    """Publish ``messages`` of ``size`` bytes in ``rate`` bursts a second, until Redis has all."""
    command = [str(build("publish")), str(redis_port), CHANNEL, *map(str, (messages, rate, size, burst))]
    done = subprocess.run(
        pinned(command, LOAD_CPUS),
        check=True,
        capture_output=True,
        timeout=GIVE_UP + messages / burst / rate * 4,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def request(port: int, data: bytes, requests: int, connections: int) -> dict[str, Any]:
    """Send ``requests`` requests over ``connections`` connections, one at a time on each."""
    command = [str(build("http")), str(port), str(connections), str(requests)]
    done = subprocess.run(
        pinned(command, LOAD_CPUS), check=True, capture_output=True, input=data, timeout=300
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def count_disordered(heard: bytes) -> int:
    """Count pushes that Redis sent twice, or after a later one of the same client."""
    last: dict[int, int] = {}
    wrong = 0
    for number in map(int, PUSHED.findall(heard)):
        client, sequence = divmod(number, EACH)
        wrong += sequence <= last.get(client, -1)
        last[client] = max(sequence, last.get(client, -1))
    return wrong


class Listening:
    """A subscriber of ``from:bench:push``, which counts the pushes that arrived."""

    def __init__(self, redis_port: int) -> None:
        self.count = 0
        self._chunks: list[bytes] = []
        self._broken = False
        self._socket = socket.create_connection(("127.0.0.1", redis_port))
        self._socket.sendall(b"SUBSCRIBE from:bench:push\r\n")
        self._socket.recv(65536)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        rest = b""
        needle = b"from:bench:push\r\n"
        while data := self._socket.recv(1 << 20):
            self._chunks.append(data)
            data = rest + data
            self.count += data.count(needle)
            rest = data[-(len(needle) - 1) :]
        self._broken = True

    def wait(self, count: int, *, quiet: float = 3.0) -> None:
        """Return when *count* messages have arrived, or none has for *quiet* seconds."""
        before, since = self.count, time.monotonic()
        while self.count < count and time.monotonic() - since < quiet:
            time.sleep(0.02)
            if self.count != before:
                before, since = self.count, time.monotonic()
        if self._broken:
            raise RuntimeError("the broker closed the connection that counts: what was heard says nothing")

    def disordered(self) -> int:
        """Count the messages that came twice, or after a later one of their client."""
        return count_disordered(b"".join(self._chunks))

    def end(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(GIVE_UP)
        self._socket.close()


def wait_delivered(clients: Clients, pid: int, wanted: int, *, at_most: float = PATIENCE) -> dict[str, Any]:
    """Return the clients' report once they have *wanted* messages, or receive no more."""
    until = time.monotonic() + at_most
    report = clients.ask("report")
    before, cpu = -1, 0.0
    while report["messages"] < wanted and time.monotonic() < until:
        if report["messages"] == before and cpu_seconds(pid) - cpu < 0.02:
            break
        before, cpu = report["messages"], cpu_seconds(pid)
        time.sleep(0.3)
        report = clients.ask("report")
    return report
