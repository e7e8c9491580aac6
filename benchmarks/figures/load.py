"""HTTP clients in a process of their own, which request one path and classify the results.

    python -m benchmarks.figures.load HOST PORT PATH USERS PAUSE_MS

Half of the users keep their connection for many requests, half open a new one for each. Each line on standard
input is answered by a line with the counts since the last one.

The kernel tells whether a request without an answer arrived before the server's FIN: on one machine, sent
bytes are in the peer's queue at once, so a connection that is still ESTABLISHED after the send had not been
closed by the server when the request arrived.
"""

from __future__ import annotations

import heapq
import json
import os
import select
import socket
import sys
import time
from collections import Counter
from typing import Any

ESTABLISHED = 1
KEPT = 50
"""Requests on one kept connection."""


class User:
    def __init__(self, crowd: Crowd, keeps: bool) -> None:
        self.crowd = crowd
        self.keeps = keeps
        self.sock: socket.socket | None = None
        self.left = 0
        self.early = False
        """The current request arrived before the server's FIN."""
        self.waiting = False
        self.buffer = b""

    def ask(self) -> None:
        if self.sock is None:
            sock = self.sock = socket.socket()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                sock.connect(
                    self.crowd.address
                )  # on loopback the kernel connects at once, before the server accepts
            except OSError:
                self.crowd.counts["refused"] += 1
                self.drop()
                return
            sock.setblocking(False)
            self.crowd.users[sock.fileno()] = self
            self.crowd.poll.register(sock, select.EPOLLIN)
            self.left = KEPT if self.keeps else 1
        self.left -= 1
        self.buffer = b""
        try:
            self.sock.send(self.crowd.requests[self.left == 0])
        except OSError:
            self.crowd.counts["closed before"] += 1
            self.drop()
            return
        info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        self.early = info[0] == ESTABLISHED
        self.waiting = True

    def readable(self) -> None:
        assert self.sock is not None
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            if self.waiting:
                self.crowd.counts["lost" if self.early else "closed before"] += 1
            self.drop()
            return
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
            return
        self.waiting = False
        status = head[9:12].decode()
        self.crowd.note(status)
        if b"connection: close" in head.lower() or not self.left:
            self.drop()
        else:
            self.crowd.later(self)

    def drop(self) -> None:
        if self.sock is not None:
            if self.crowd.users.pop(self.sock.fileno(), None) is not None:
                self.crowd.poll.unregister(self.sock)
            self.sock.close()
            self.sock = None
        self.waiting = False
        self.crowd.later(self)


class Crowd:
    def __init__(self, host: str, port: int, path: str, users: int, pause: float) -> None:
        self.address = (host, port)
        line = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n"
        self.requests = ((line + "\r\n").encode(), (line + "Connection: close\r\n\r\n").encode())
        self.pause = pause
        self.poll = select.epoll()
        self.users: dict[int, User] = {}
        self.counts: Counter[str] = Counter()
        self.last_good = time.monotonic()
        self.longest_gap = 0.0
        self.timers: list[tuple[float, int, User]] = []
        self.number = 0
        for index in range(users):
            self.later(User(self, keeps=bool(index % 2)))

    def later(self, user: User) -> None:
        self.number += 1
        heapq.heappush(self.timers, (time.monotonic() + self.pause, self.number, user))

    def note(self, status: str) -> None:
        self.counts[status] += 1
        if status == "200":
            now = time.monotonic()
            self.longest_gap = max(self.longest_gap, now - self.last_good)
            self.last_good = now

    def run(self) -> None:
        self.poll.register(0, select.EPOLLIN)
        typed = b""
        while True:
            wait = 1.0 if not self.timers else max(0.0, self.timers[0][0] - time.monotonic())
            for number, _ in self.poll.poll(wait):
                if number == 0:
                    data = os.read(0, 65536)
                    if not data:
                        return
                    *lines, typed = (typed + data).split(b"\n")
                    for _line in lines:
                        self.report()
                elif (user := self.users.get(number)) is not None:
                    user.readable()
            while self.timers and self.timers[0][0] <= time.monotonic():
                heapq.heappop(self.timers)[2].ask()

    def report(self) -> None:
        told: dict[str, Any] = {"counts": dict(self.counts), "gap": self.longest_gap}
        self.counts.clear()
        self.longest_gap, self.last_good = 0.0, time.monotonic()
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    Crowd(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5]) / 1000).run()
