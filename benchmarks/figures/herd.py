"""Many channel clients in one process, which reconnect like phoenix.js.

They use raw sockets on epoll.

    python -m benchmarks.figures.herd HOST PORT TOPIC COUNT

Each client connects, joins TOPIC and notes the times of messages. After a disconnect it reconnects after 10
ms, and then with the delays of phoenix.js. Standard input takes requests, one JSON object a line; each is
answered by one line:

    {"do": "joined", "cuts": N}   once all are members, after N disconnects: since when, and how
    {"do": "first", "after": T, "cuts": N}  once each has had a message after T and after its last disconnect:
                                  when (time.monotonic(), which all processes of a machine share)
"""

from __future__ import annotations

import heapq
import http.client
import json
import os
import select
import socket
import sys
import time
from collections import Counter, deque
from typing import Any

from benchmarks.figures.sockets import join_frame, masked, upgrade

LADDER = (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0)
"""Seconds before each attempt to reconnect: phoenix.js' reconnectAfterMs."""
REJOIN = 1.0
"""Seconds after phx_error: the first of phoenix.js' rejoinAfterMs."""


class Client:
    def __init__(self, herd: Herd) -> None:
        self.herd = herd
        self.sock: socket.socket | None = None
        self.joined = False
        self.attempt = 0
        self.ref = 0
        self.cut_at = 0.0
        self.arrivals: deque[float] = deque(maxlen=20_000)
        self.buffer = b""
        self.upgraded = False

    def connect(self) -> None:
        self.buffer, self.upgraded = b"", False
        sock = self.sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        error = sock.connect_ex(self.herd.address)
        if error not in (0, 115):  # EINPROGRESS
            self.cut("refused")
            return
        self.herd.watch(self, select.EPOLLOUT)

    def writable(self) -> None:
        assert self.sock is not None
        if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.cut("refused")
            return
        try:
            self.sock.send(self.herd.upgrade)
        except OSError:
            self.cut("reset")
            return
        self.herd.change(self, select.EPOLLIN)

    def readable(self) -> None:
        assert self.sock is not None
        try:
            data = self.sock.recv(262144)
        except BlockingIOError:
            return
        except OSError:
            self.cut("reset")
            return
        if not data:
            self.cut("1006")
            return
        self.buffer += data
        if not self.upgraded:
            head, end, rest = self.buffer.partition(b"\r\n\r\n")
            if not end:
                return
            if b" 101 " not in head.split(b"\r\n", 1)[0]:
                self.cut(head.split(b" ", 2)[1].decode())
                return
            self.buffer, self.upgraded, self.attempt = rest, True, 0
            self.join()
        self.take_frames()

    def join(self) -> None:
        self.ref += 1
        self.send(join_frame(self.herd.topic, self.herd.token, self.ref))

    def send(self, data: bytes) -> None:
        assert self.sock is not None
        try:
            self.sock.send(data)
        except OSError:
            self.cut("reset")

    def take_frames(self) -> None:
        data = self.buffer
        start = 0
        now = time.monotonic()
        while len(data) - start >= 2:
            opcode, size, at = data[start] & 15, data[start + 1], start + 2
            if size == 126:
                size, at = int.from_bytes(data[at : at + 2], "big"), at + 2
            elif size == 127:
                size, at = int.from_bytes(data[at : at + 8], "big"), at + 8
            if len(data) < at + size:
                break
            payload = data[at : at + size]
            start = at + size
            if opcode == 8:
                self.send(masked(8, payload[:2]))
                if self.sock is not None:
                    self.cut(str(int.from_bytes(payload[:2], "big")))
                return
            if opcode == 9:
                self.send(masked(10, payload))
            else:
                self.take(payload, now)
        self.buffer = data[start:]

    def take(self, payload: bytes, now: float) -> None:
        if b'"phx_reply"' in payload:
            if b'"ok"' in payload and not self.joined:
                self.joined = True
                self.herd.count_joined(now)
            elif b'"error"' in payload:
                self.herd.later(REJOIN, self.join)
        elif b'"phx_error"' in payload:
            self.herd.errors += 1
            self.herd.later(REJOIN, self.join)
        elif b'"presence_' not in payload:
            self.arrivals.append(now)

    def first_after(self, moment: float) -> float | None:
        """Return the time of the first message after ``moment`` and after the last disconnect."""
        return next((at for at in self.arrivals if at > max(moment, self.cut_at)), None)

    def cut(self, why: str) -> None:
        """Count the cause of a disconnect, and reconnect."""
        if self.sock is not None:
            self.herd.forget(self)
            self.sock.close()
            self.sock = None
        self.herd.count_cut(self, why)
        self.joined = False
        self.cut_at = time.monotonic()
        delay = LADDER[min(self.attempt, len(LADDER) - 1)]
        self.attempt += 1
        self.herd.later(delay, self.connect)


class Herd:
    def __init__(self, host: str, port: int, topic: str, count: int) -> None:
        self.address = (host, port)
        self.topic = topic
        self.token = self._fetch_token()
        self.upgrade = upgrade(port)
        self.poll = select.epoll()
        self.clients: dict[int, Client] = {}
        self.timers: list[tuple[float, int, Any]] = []
        self.number = 0
        self.members = 0
        self.cuts: Counter[str] = Counter()
        self.errors = 0
        self.all_joined = 0.0
        self.everybody = [Client(self) for _ in range(count)]
        self.pending: list[dict[str, Any]] = []

    def _fetch_token(self) -> str:
        connection = http.client.HTTPConnection(*self.address, timeout=10)
        body = json.dumps({"channel": self.topic})
        connection.request("POST", "/token", body, {"content-type": "application/json"})
        token: str = json.loads(connection.getresponse().read())["token"]
        connection.close()
        return token

    def watch(self, client: Client, events: int) -> None:
        assert client.sock is not None
        self.clients[client.sock.fileno()] = client
        self.poll.register(client.sock, events)

    def change(self, client: Client, events: int) -> None:
        assert client.sock is not None
        self.poll.modify(client.sock, events)

    def forget(self, client: Client) -> None:
        assert client.sock is not None
        if self.clients.pop(client.sock.fileno(), None) is not None:
            self.poll.unregister(client.sock)

    def later(self, delay: float, call: Any) -> None:
        self.number += 1
        heapq.heappush(self.timers, (time.monotonic() + delay, self.number, call))

    def count_joined(self, now: float) -> None:
        self.members += 1
        if self.members == len(self.everybody):
            self.all_joined = now

    def count_cut(self, client: Client, why: str) -> None:
        self.cuts[why] += 1
        if client.joined:
            self.members -= 1

    def run(self) -> None:
        self.poll.register(0, select.EPOLLIN)
        for client in self.everybody:
            client.connect()
        typed = b""
        while True:
            wait = 1.0 if not self.timers else max(0.0, self.timers[0][0] - time.monotonic())
            for number, events in self.poll.poll(min(wait, 1.0)):
                if number == 0:
                    data = os.read(0, 65536)
                    if not data:
                        return
                    *lines, typed = (typed + data).split(b"\n")
                    self.pending += [json.loads(line) for line in lines]
                elif (found := self.clients.get(number)) is not None:
                    if events & select.EPOLLIN or (
                        events & (select.EPOLLHUP | select.EPOLLERR) and found.upgraded
                    ):
                        found.readable()
                    else:
                        found.writable()
            while self.timers and self.timers[0][0] <= time.monotonic():
                call = heapq.heappop(self.timers)[2]
                if call.__self__.sock is not None or call.__name__ == "connect":
                    call()
            self.pending = [request for request in self.pending if not self.answer(request)]

    def answer(self, request: dict[str, Any]) -> bool:
        if self.members < len(self.everybody) or sum(self.cuts.values()) < request.get("cuts", 0):
            return False
        told: dict[str, Any] = {"joined_at": self.all_joined, "cuts": dict(self.cuts), "errors": self.errors}
        if request["do"] == "first":
            after = request["after"]
            first = [one.first_after(after) for one in self.everybody]
            if None in first:
                return False
            told["first"] = first
        self.errors = 0
        self.cuts.clear()
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        return True


if __name__ == "__main__":
    Herd(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])).run()
