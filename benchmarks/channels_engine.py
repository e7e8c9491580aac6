"""CPU a delivery and a push of the native engine, without Redis: hub, outboxes, pump, kernel.

    python benchmarks/channels_engine.py [--quick] [--clients 100] [--size 200]

Fan-out: the server process delivers batches into its own hub at a rate, as the bus would; clients in a
process of their own read and count. Inbound: the clients push, the server publishes to nowhere and answers.
Memory: what a joined idle client costs the server, resident. CPU is what the operating system says the
server process used (/proc/PID/stat). The same sends by a loop over the same sockets are the lower limit
that is printed beside.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
SECRET = "a secret that is long enough for everybody"
TOPIC = "bench:all"


class ChannelSettings:
    """The defaults of ``[channel]``."""

    id_length = 8
    max_backlog = 262_144
    max_message = 16 * 1024 * 1024
    conflate: tuple[str, ...] = ()
    max_joins = 100
    idle_timeout = 900.0
    presence = False
    push_replies = True
    jwt_expiration_secs = 2_592_000
    token_rate = token_burst = join_rate = join_burst = upgrade_rate = upgrade_burst = 1e9


class Settings:
    """The defaults of ``[server]``."""

    max_header_bytes = 32768
    max_headers = 100
    max_body = 2 * 1024 * 1024
    header_timeout = 10.0
    idle_timeout = 75.0
    write_timeout = 10.0
    max_connections = 10000
    max_connections_per_address = 0
    access_log = False


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    """There is no application behind this server."""
    raise NotImplementedError


async def lines_of(stream: Any) -> Any:
    """Lines of a Trio stream."""
    rest = b""
    async for chunk in stream:
        rest += chunk
        *lines, rest = rest.split(b"\n")
        for line in lines:
            yield line


async def fan_out(channels: Any, command: dict[str, Any]) -> None:
    """Deliver at a rate, in batches, as the bus does."""
    import trio

    payload = b'{"x":"' + b"x" * (command["size"] - 8) + b'"}'
    channel = b"to:" + TOPIC.encode() + b":news"
    began = trio.current_time()
    sent = 0
    while sent < command["messages"]:
        due = min(command["messages"], int((trio.current_time() - began) * command["rate"]) + 1)
        if due > sent:
            channels.deliver([(channel, payload)] * (due - sent))
            sent = due
        await trio.sleep(command["gap"])


async def serve() -> None:
    """The server process: commands on stdin, answers on stdout."""
    import trio

    from tangram.transports.channels import Channels
    from tangram.transports.listeners import open_listeners
    from tangram.transports.native import serve_native

    def publish(_channel: str, _payload: bytes, done: Any) -> None:
        if done is not None:
            done(1)

    channels = Channels(ChannelSettings(), SECRET, publish)
    held = open_listeners("127.0.0.1", 0)
    run = partial(serve_native, refuse, held, Settings(), grace=lambda: 1.0, channels=channels)
    async with trio.open_nursery() as nursery:
        await nursery.start(channels.run)
        await nursery.start(run)
        print(held[0].port, flush=True)
        async for line in lines_of(trio.lowlevel.FdStream(os.dup(0))):
            command = json.loads(line)
            if command["do"] == "fan":
                await fan_out(channels, command)
            print(json.dumps({"cpu": time.process_time(), "rss": memory(os.getpid())}), flush=True)
        nursery.cancel_scope.cancel()


def memory(pid: int) -> int:
    """Resident bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def masked(data: bytes) -> bytes:
    """A text frame of a client, with a mask of zeros."""
    size = len(data)
    head = bytes((0x81, 0x80 | size)) if size < 126 else bytes((0x81, 0xFE)) + size.to_bytes(2, "big")
    return head + b"\x00\x00\x00\x00" + data


def open_client(port: int, token: str) -> socket.socket:
    """Connect and join."""
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(
        b"GET /websocket?vsn=2.0.0 HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        + masked(json.dumps(["1", "1", TOPIC, "phx_join", {"token": token}]).encode())
    )
    data = b""
    while b"phx_reply" not in data:
        data += client.recv(65536)
    return client


class Bench:
    """The server process and its clients."""

    def __init__(self, clients: int) -> None:
        from tangram.channels.tokens import Claims, mint

        command = [sys.executable, __file__, "--serve"]
        self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.server.stdout is not None
        self.port = int(self.server.stdout.readline())
        token = mint(Claims("me", TOPIC, 4_000_000_000), SECRET)
        before = self.ask({"do": "look"})["rss"]
        self.clients = [open_client(self.port, token) for _ in range(clients)]
        time.sleep(0.2)
        self.per_client = (self.ask({"do": "look"})["rss"] - before) / clients
        self.poll = select.epoll()
        self.by_number = {client.fileno(): client for client in self.clients}
        for client in self.clients:
            client.setblocking(False)
            self.poll.register(client, select.EPOLLIN)

    def ask(self, command: dict[str, Any]) -> dict[str, float]:
        """One command, and its answer."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(command).encode() + b"\n")
        self.server.stdin.flush()
        answer: dict[str, float] = json.loads(self.server.stdout.readline())
        return answer

    def read(self, total: int) -> int:
        """Read until ``total`` bytes have come, or nothing comes for two seconds."""
        got = 0
        while got < total:
            ready = self.poll.poll(2.0)
            if not ready:
                break
            for number, _ in ready:
                got += len(self.by_number[number].recv(1 << 20))
        return got

    def fan(self, messages: int, rate: float, size: int) -> tuple[float, bool]:
        """CPU us a delivery, and whether every byte arrived."""
        before = self.ask({"do": "look"})["cpu"]
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        command = {"do": "fan", "messages": messages, "rate": rate, "size": size, "gap": 0.002}
        self.server.stdin.write(json.dumps(command).encode() + b"\n")
        self.server.stdin.flush()
        payload = b'{"x":"' + b"x" * (size - 8) + b'"}'
        text = len(b'[null,null,"' + TOPIC.encode() + b'","news",' + payload + b"]")
        frame = text + (2 if text < 126 else 4)
        total = frame * messages * len(self.clients)
        got = self.read(total)
        used = json.loads(self.server.stdout.readline())["cpu"] - before
        return used / (messages * len(self.clients)) * 1e6, got == total

    def push(self, messages: int) -> float:
        """CPU us a message that a client pushes and the server answers, in batches of 20."""
        frame = masked(json.dumps(["1", "2", TOPIC, "command", {"go": True, "x": "x" * 100}]).encode()) * 20
        before = self.ask({"do": "look"})["cpu"]
        answer = 0
        sent = 0
        while sent < messages:
            for client in self.clients[:10]:
                client.sendall(frame)
                sent += 20
            if not answer:
                time.sleep(0.1)
                answer = self.read(1)
            self.read(1)
        time.sleep(0.2)
        while self.poll.poll(0.3):
            self.read(1)
        return (self.ask({"do": "look"})["cpu"] - before) / sent * 1e6

    def close(self) -> None:
        """End the server."""
        self.server.kill()
        self.server.wait()


def floor(clients: int, size: int, messages: int) -> float:
    """CPU us of one ``send`` on such sockets, by a loop that does nothing else."""
    pairs = []
    listener = socket.create_server(("127.0.0.1", 0), backlog=clients)
    for _ in range(clients):
        near = socket.create_connection(listener.getsockname())
        pairs.append((near, listener.accept()[0]))
    data = b"x" * size
    used = 0.0
    for _ in range(messages):
        before = time.process_time()
        for near, _ in pairs:
            near.send(data)
        used += time.process_time() - before
        for _, far in pairs:
            far.recv(1 << 20)
    for near, far in pairs:
        near.close()
        far.close()
    listener.close()
    return used / (clients * messages) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a second a figure")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        import trio

        trio.run(serve)
        return
    seconds = 1 if options.quick else 5
    bench = Bench(options.clients)
    print(f"a joined idle client: {bench.per_client / 1024:.1f} KiB resident")
    print(f"one send by a loop: {floor(options.clients, options.size, 50 * seconds):.1f} us")
    for rate in (500, 2000):
        used, whole = bench.fan(rate * seconds, rate, options.size)
        arrived = "all arrived" if whole else "NOT all arrived"
        print(f"{options.clients} clients x {rate}/s: {used:.2f} us CPU a delivery, {arrived}")
    print(f"pushes in batches of 20: {bench.push(2000 * seconds):.1f} us CPU each")
    bench.close()


if __name__ == "__main__":
    main()
