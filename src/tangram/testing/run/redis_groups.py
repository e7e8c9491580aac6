"""Several real valkey-servers as one Redis: a primary with sentinels, and a cluster."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, cast

import hiredis

from tangram.broker.embedded import find_server
from tangram.testing.fakes.ports import HOST, free_port
from tangram.testing.run.brokers import RealBroker, open_broker

__all__ = ["MASTER", "RealCluster", "RealSentinels", "ask", "open_cluster", "open_sentinels"]

MASTER: Final = "tangram"
"""The name by which the sentinels know the primary."""

READY_SECONDS: Final = 20.0
"""Seconds for a group to find itself: the nodes of a cluster exchange messages ten times a second."""

SLOTS: Final = 16384


def ask(port: int, *words: str, login: Sequence[str] = ()) -> Any:
    """Send one command to a server on loopback, and return its answer, an error included."""
    reader = hiredis.Reader()
    with socket.create_connection((HOST, port), timeout=5) as connection:
        answers = []
        for command in ([("AUTH", *login)] if login else []) + [words]:
            connection.sendall(hiredis.pack_command(cast("tuple[str]", tuple(command))))
            while (answer := reader.gets()) is False:
                data = connection.recv(65536)
                if not data:
                    raise ConnectionError(f"the server at port {port} closed the connection")
                reader.feed(data)
            answers.append(answer)
    return answers[-1]


def _await(what: str, condition: Any) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} within {READY_SECONDS:g} s")
        time.sleep(0.02)


class RealSentinels:
    """A primary, its replicas, and their sentinels; made by `open_sentinels`."""

    def __init__(self, nodes: Sequence[RealBroker], sentinels: Sequence[RealBroker]) -> None:
        self.nodes = nodes
        self.sentinels = sentinels

    @property
    def url(self) -> str:
        """The URL with the first sentinel alone: it names the others."""
        return f"redis+sentinel://{HOST}:{self.sentinels[0].port}/?master={MASTER}"

    def primary(self) -> RealBroker:
        """Return the node that the first sentinel names as the primary."""
        _, port = ask(self.sentinels[0].port, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        return next(node for node in self.nodes if node.port == int(port))


@contextmanager
def open_sentinels(folder: Path, *, nodes: int = 2, sentinels: int = 3) -> Iterator[RealSentinels]:
    """Run a primary with replicas and sentinels for the block.

    Args:
        folder: an empty folder for the files of the sentinels.
        nodes: the primary and its replicas.
        sentinels: the sentinels; more than half of them decide.

    Raises:
        TimeoutError: they do not find each other within 20 s.
    """
    with ExitStack() as stack:
        files = ("--dir", str(folder), "--appendonly", "no")
        primary = stack.enter_context(open_broker(*files))
        replicas = [
            stack.enter_context(
                open_broker(
                    "--replicaof", f"{HOST} {primary.port}", "--repl-diskless-sync-delay", "0", *files
                )
            )
            for _ in range(nodes - 1)
        ]
        watching = [stack.enter_context(_sentinel(folder, primary.port, sentinels)) for _ in range(sentinels)]
        group = RealSentinels([primary, *replicas], watching)
        _await("the sentinels did not find each other", lambda: _is_settled(group))
        yield group


@contextmanager
def _sentinel(folder: Path, port: int, count: int) -> Iterator[RealBroker]:
    mine = free_port()
    file = folder / f"sentinel-{mine}.conf"
    file.write_text(
        f"port {mine}\nbind {HOST}\nsentinel monitor {MASTER} {HOST} {port} {count // 2 + 1}\n"
        f"sentinel down-after-milliseconds {MASTER} 1000\nsentinel failover-timeout {MASTER} 6000\n",
        encoding="utf-8",
    )
    sentinel = RealBroker(port=mine, command=lambda _port: [str(find_server()), str(file), "--sentinel"])
    try:
        sentinel.start()
        yield sentinel
    finally:
        sentinel.kill()


def _is_settled(group: RealSentinels) -> bool:
    for sentinel in group.sentinels:
        words = [word.decode() for word in ask(sentinel.port, "SENTINEL", "MASTER", MASTER)]
        fields = dict(zip(words[::2], words[1::2], strict=True))
        known = int(fields["num-slaves"]), int(fields["num-other-sentinels"])
        if known != (len(group.nodes) - 1, len(group.sentinels) - 1):
            return False
    links = [ask(node.port, "INFO", "replication") for node in group.nodes[1:]]
    return all(b"master_link_status:up" in link for link in links)


class RealCluster:
    """The primaries of a Redis Cluster; made by `open_cluster`."""

    def __init__(self, nodes: Sequence[RealBroker]) -> None:
        self.nodes = nodes

    @property
    def url(self) -> str:
        """The URL with all nodes."""
        return f"redis+cluster://{','.join(f'{HOST}:{node.port}' for node in self.nodes)}"

    def owner(self, slot: int) -> RealBroker:
        """Return the node that holds a slot."""
        for first, last, (_, port, *_), *_ in ask(self.nodes[0].port, "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise LookupError(f"no node has slot {slot}")

    def move(self, slot: int, to: RealBroker) -> None:
        """Give a slot to another node, without its keys."""
        old = self.owner(slot)
        mine, theirs = (ask(node.port, "CLUSTER", "MYID").decode() for node in (to, old))
        # Without the first step the new owner gets no newer epoch, and the old one claims the slot back.
        ask(to.port, "CLUSTER", "SETSLOT", str(slot), "IMPORTING", theirs)
        ask(old.port, "CLUSTER", "SETSLOT", str(slot), "MIGRATING", mine)
        ask(old.port, "FLUSHALL")
        for node in (to, old):
            ask(node.port, "CLUSTER", "SETSLOT", str(slot), "NODE", mine)
        _await("the cluster does not know the move", lambda: self.owner(slot) is to)


@contextmanager
def open_cluster(folder: Path, *, nodes: int = 3) -> Iterator[RealCluster]:
    """Run a Redis Cluster of primaries for the block.

    Args:
        folder: an empty folder for the files of the nodes.
        nodes: the primaries, which share the slots.

    Raises:
        TimeoutError: the cluster is not complete within 20 s.
    """
    with ExitStack() as stack:
        running: list[RealBroker] = []
        buses: list[int] = []
        for number in range(nodes):
            buses.append(free_port())
            running.append(
                stack.enter_context(
                    open_broker(
                        *("--cluster-enabled", "yes", "--cluster-port", str(buses[-1])),
                        *("--cluster-node-timeout", "2000", "--dir", str(folder)),
                        *("--cluster-config-file", f"node-{number}.conf"),
                    )
                )
            )
        for number, node in enumerate(running):
            first, last = number * SLOTS // nodes, (number + 1) * SLOTS // nodes - 1
            ask(node.port, "CLUSTER", "ADDSLOTSRANGE", str(first), str(last))
            ask(node.port, "CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for node, bus in zip(running[1:], buses[1:], strict=True):
            ask(running[0].port, "CLUSTER", "MEET", HOST, str(node.port), str(bus))
        _await("the cluster is not complete", lambda: all(_is_whole(node, nodes) for node in running))
        yield RealCluster(running)


def _is_whole(node: RealBroker, count: int = 0) -> bool:
    info = ask(node.port, "CLUSTER", "INFO")
    known = ask(node.port, "CLUSTER", "NODES").decode().splitlines()
    return b"cluster_state:ok" in info and (not count or len(known) == count)
