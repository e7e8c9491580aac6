"""Measure a delivery from the hub to the outbox, and a push from bytes to the bus.

    python benchmarks/hub.py [--quick]

Figures are process time, median of the runs, without sockets. The target is 1 us for each delivery.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib.report import Target, conclude

from tangram.channels import codec
from tangram.channels.frames import TEXT, Run
from tangram.channels.hub import Hub, Membership
from tangram.channels.outbox import Outbox
from tangram.channels.socket import Authorize, Socket

CASES = ((100, 1, 200), (100, 20, 200), (500, 2, 200), (1000, 1, 200), (100, 5, 2000), (1, 1000, 200))
"""Each workload: clients, messages in a batch, bytes of a payload."""
AIM = 1.0
"""The target, in microseconds for each delivery."""


def payload(size: int) -> bytes:
    return b'{"data":"%b"}' % (b"x" * (size - 11))


def deliveries(clients: int, batch: int, size: int, rounds: int) -> float:
    hub = Hub(presence=False)
    outboxes = []
    for number in range(clients):
        outbox = Outbox(lambda: None, max_backlog=1 << 30)
        hub.join(Membership(f"c{number}", "obs", "1", "id", outbox), None)
        outboxes.append(outbox)
    messages = [(b"to:obs:update", payload(size))] * batch
    start = time.process_time()
    for _ in range(rounds):
        hub.deliver(messages)
        for outbox in outboxes:
            items = outbox.take_all()
            assert isinstance(items, Run)
            outbox.written(items.size)
    spent = time.process_time() - start
    return spent / (rounds * clients * batch) * 1e6


def pushes(size: int, rounds: int) -> float:
    hub = Hub(presence=False)
    socket = Socket("c", hub, Outbox(lambda: None, max_backlog=1 << 30))
    (request,) = socket.receive(codec.decode_text(b'["1","1","obs","phx_join",{}]'))
    assert isinstance(request, Authorize)
    socket.authorized(request, "id")
    frame = b'["1","2","obs","hello",' + payload(size) + b"]"
    start = time.process_time()
    for _ in range(rounds):
        assert socket.push(codec.decode(TEXT, frame)) is not None
    return (time.process_time() - start) / rounds * 1e6


def median(measure: Callable[[], float], runs: int) -> float:
    return statistics.median(measure() for _ in range(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds instead of twenty")
    quick = parser.parse_args().quick
    scale, runs = (1, 3) if quick else (5, 5)
    worst = 0.0
    print(f"{'clients':>8} {'batch':>6} {'bytes':>6} {'us a delivery':>14}   aim")
    for clients, batch, size in CASES:
        rounds = max(1, 100_000 * scale // (clients * batch))
        cost = median(partial(deliveries, clients, batch, size, rounds), runs)
        if clients > 1:
            worst = max(worst, cost)
        print(f"{clients:>8} {batch:>6} {size:>6} {cost:>14.3f}   {AIM if clients > 1 else '-'}")
    inbound = median(lambda: pushes(200, 10_000 * scale), runs)
    print(f"inbound push of 200 bytes, decoded and judged: {inbound:.2f} us")
    conclude([Target("a delivery from the hub's door to the outbox, at worst", worst, AIM, "us").promise()])


if __name__ == "__main__":
    main()
