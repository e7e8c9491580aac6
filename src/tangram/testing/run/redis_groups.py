"""Several real servers as one Redis: with sentinels, or as a cluster, also over TLS."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlencode

import attrs
import hiredis

from tangram.broker.embedded import find_server, server_arguments
from tangram.testing.fakes.ports import HOST, free_port
from tangram.testing.run.brokers import RealBroker, open_broker

__all__ = [
    "MASTER",
    "RealCluster",
    "RealSentinels",
    "RedisTls",
    "ask",
    "open_cluster",
    "open_sentinels",
]

MASTER: Final = "tangram"
"""The name by which the sentinels know the primary."""

READY_SECONDS: Final = 60.0
"""Seconds for a group to find itself: the nodes of a cluster exchange messages ten times a second. Sentinels
do nothing for 30 s after their machine stood still for two seconds.
"""

ANSWER_SECONDS: Final = 30.0
"""Seconds for the answer to one command, which takes less than a millisecond."""

SLOTS: Final = 16384


@attrs.frozen
class RedisTls:
    """TLS for every connection of a group, also for those between its servers.

    Args:
        server: a server's binary that was built with TLS.
        cert: a certificate of 127.0.0.1 that has signed itself. Servers and clients both show it.
        key: its key.
    """

    server: Path
    cert: Path
    key: Path

    def settings(self, port: int) -> dict[str, str]:
        """Return the settings of a server that speaks nothing but TLS."""
        return {
            "port": "0",
            "tls-port": str(port),
            "tls-cert-file": str(self.cert),
            "tls-key-file": str(self.key),
            "tls-ca-cert-file": str(self.cert),
            "tls-replication": "yes",
        }

    def query(self) -> str:
        """Return the options of a URL for the server's clients."""
        return urlencode(
            {"ssl_ca_certs": self.cert, "ssl_certfile": self.cert, "ssl_keyfile": self.key}, safe="/"
        )

    def context(self) -> ssl.SSLContext:
        """Return the context of a client."""
        context = ssl.create_default_context(cafile=self.cert)
        context.load_cert_chain(self.cert, self.key)
        return context


def ask(port: int, *words: str, login: Sequence[str] = (), tls: RedisTls | None = None) -> Any:
    """Send one command to a server on loopback, and return its answer, an error included."""
    reader = hiredis.Reader()
    with ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((HOST, port), timeout=ANSWER_SECONDS))
        if tls is not None:
            connection = stack.enter_context(tls.context().wrap_socket(connection, server_hostname=HOST))
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


@contextmanager
def _open_server(*options: str, tls: RedisTls | None) -> Iterator[RealBroker]:
    """Run one server of a group for the block."""
    if tls is None:
        with open_broker(*options) as server:
            yield server
        return
    port = free_port()
    words = [word for name, value in tls.settings(port).items() for word in (f"--{name}", value)]
    server = RealBroker(*options, port=port, command=lambda _port: [*server_arguments(tls.server, 0), *words])
    try:
        server.start()
        yield server
    finally:
        server.kill()


class RealSentinels:
    """A primary, its replicas, and their sentinels; made by `open_sentinels`."""

    def __init__(
        self, nodes: Sequence[RealBroker], sentinels: Sequence[RealBroker], tls: RedisTls | None = None
    ) -> None:
        self.nodes = nodes
        self.sentinels = sentinels
        self.tls = tls

    @property
    def url(self) -> str:
        """The URL with the first sentinel alone: it names the others."""
        scheme, options = ("redis", "") if self.tls is None else ("rediss", f"&{self.tls.query()}")
        return f"{scheme}+sentinel://{HOST}:{self.sentinels[0].port}/?master={MASTER}{options}"

    def ask(self, server: RealBroker, *words: str) -> Any:
        """Send one command to a node or a sentinel, and return its answer, an error included."""
        return ask(server.port, *words, tls=self.tls)

    def primary(self) -> RealBroker:
        """Return the node that the first sentinel names as the primary."""
        _, port = self.ask(self.sentinels[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        return next(node for node in self.nodes if node.port == int(port))


@contextmanager
def open_sentinels(
    folder: Path, *, nodes: int = 2, sentinels: int = 3, tls: RedisTls | None = None
) -> Iterator[RealSentinels]:
    """Run a primary with replicas and sentinels for the block.

    Args:
        folder: an empty folder for the files of the sentinels.
        nodes: the primary and its replicas.
        sentinels: the sentinels; more than half of them decide.
        tls: for all connections; None for none.

    Raises:
        TimeoutError: they do not find each other within a minute.
    """
    with ExitStack() as stack:
        files = ("--dir", str(folder), "--appendonly", "no", "--repl-diskless-sync-delay", "0")
        primary = stack.enter_context(_open_server(*files, tls=tls))
        place = ("--replicaof", HOST, str(primary.port))
        replicas = [stack.enter_context(_open_server(*place, *files, tls=tls)) for _ in range(nodes - 1)]
        watching = [
            stack.enter_context(_sentinel(folder, primary.port, sentinels, tls)) for _ in range(sentinels)
        ]
        group = RealSentinels([primary, *replicas], watching, tls)
        _look_every(group, 100, 200)
        _await("the sentinels did not find each other", lambda: _is_settled(group))
        _look_every(group, 2_000, 10_000)
        yield group


@contextmanager
def _sentinel(folder: Path, port: int, count: int, tls: RedisTls | None) -> Iterator[RealBroker]:
    mine = free_port()
    file = folder / f"sentinel-{mine}.conf"
    settings = {"port": str(mine), "bind": HOST} | ({} if tls is None else tls.settings(mine))
    lines = [f"{name} {value}" for name, value in settings.items()]
    lines += [
        f"sentinel monitor {MASTER} {HOST} {port} {count // 2 + 1}",
        f"sentinel down-after-milliseconds {MASTER} 1000",
        f"sentinel failover-timeout {MASTER} 6000",
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    server = find_server() if tls is None else tls.server
    sentinel = RealBroker(port=mine, command=lambda _port: [str(server), str(file), "--sentinel"])
    try:
        sentinel.start()
        yield sentinel
    finally:
        sentinel.kill()


def _look_every(group: RealSentinels, publish: int, info: int) -> None:
    """Set how often the sentinels look for each other and for replicas, in milliseconds.

    By default they look every 2 s for each other, and every 10 s for a replica that they missed at first.
    Redis 6.2 does not know the command, and keeps these periods.
    """
    for sentinel in group.sentinels:
        group.ask(sentinel, "SENTINEL", "DEBUG", "PUBLISH-PERIOD", str(publish), "INFO-PERIOD", str(info))


def _is_settled(group: RealSentinels) -> bool:
    for sentinel in group.sentinels:
        words = [word.decode() for word in group.ask(sentinel, "SENTINEL", "MASTER", MASTER)]
        fields = dict(zip(words[::2], words[1::2], strict=True))
        known = int(fields["num-slaves"]), int(fields["num-other-sentinels"])
        if known != (len(group.nodes) - 1, len(group.sentinels) - 1):
            return False
    return all(_is_replica(group.ask(node, "INFO", "replication")) for node in group.nodes[1:])


def _is_replica(info: bytes) -> bool:
    return b"master_link_status:up" in info


class RealCluster:
    """The nodes of a Redis Cluster; made by `open_cluster`."""

    def __init__(self, nodes: Sequence[RealBroker], tls: RedisTls | None = None) -> None:
        self.nodes = nodes
        self.tls = tls

    @property
    def url(self) -> str:
        """The URL with all nodes."""
        scheme, options = ("redis", "") if self.tls is None else ("rediss", f"/?{self.tls.query()}")
        return f"{scheme}+cluster://{','.join(f'{HOST}:{node.port}' for node in self.nodes)}{options}"

    def ask(self, node: RealBroker, *words: str) -> Any:
        """Send one command to a node, and return its answer, an error included."""
        return ask(node.port, *words, tls=self.tls)

    def owner(self, slot: int) -> RealBroker:
        """Return the node that holds a slot, as the first node that runs knows it."""
        asked = next(node for node in self.nodes if node.pid is not None)
        for first, last, (_, port, *_), *_ in self.ask(asked, "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise LookupError(f"no node has slot {slot}")

    def move(self, slot: int, to: RealBroker) -> None:
        """Give a slot to another node, without its keys."""
        old = self.owner(slot)
        mine, theirs = (self.ask(node, "CLUSTER", "MYID").decode() for node in (to, old))
        # Without the first step the new owner gets no newer epoch, and the old one claims the slot back.
        self.ask(to, "CLUSTER", "SETSLOT", str(slot), "IMPORTING", theirs)
        self.ask(old, "CLUSTER", "SETSLOT", str(slot), "MIGRATING", mine)
        self.ask(old, "FLUSHALL")
        for node in (to, old):
            self.ask(node, "CLUSTER", "SETSLOT", str(slot), "NODE", mine)
        _await("the cluster does not know the move", lambda: self.owner(slot) is to)


@contextmanager
def open_cluster(
    folder: Path, *, nodes: int = 3, replicas: int = 0, tls: RedisTls | None = None
) -> Iterator[RealCluster]:
    """Run a Redis Cluster for the block.

    Args:
        folder: an empty folder for the files of the nodes.
        nodes: the primaries, which share the slots.
        replicas: of each primary. They follow the primaries in `RealCluster.nodes`, and one of them takes
            the place of a primary that has been away for two seconds.
        tls: for all connections; None for none.

    Raises:
        TimeoutError: the cluster is not complete within a minute.
    """
    count = nodes * (1 + replicas)
    with ExitStack() as stack:
        buses = [free_port() for _ in range(count)]
        running = [
            stack.enter_context(_open_server(*_node_options(folder, number, bus, tls), tls=tls))
            for number, bus in enumerate(buses)
        ]
        cluster = RealCluster(running, tls)
        for number, node in enumerate(running):
            if number < nodes:
                first, last = number * SLOTS // nodes, (number + 1) * SLOTS // nodes - 1
                cluster.ask(node, "CLUSTER", "ADDSLOTSRANGE", str(first), str(last))
            cluster.ask(node, "CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for node, bus in zip(running[1:], buses[1:], strict=True):
            cluster.ask(running[0], "CLUSTER", "MEET", HOST, str(node.port), str(bus))
        _await("the cluster is not complete", lambda: all(_is_whole(cluster, node) for node in running))
        for number, replica in enumerate(running[nodes:]):
            primary = cluster.ask(running[number % nodes], "CLUSTER", "MYID").decode()
            cluster.ask(replica, "CLUSTER", "REPLICATE", primary)
        _await("the replicas have no copies", lambda: _has_copies(cluster, running[nodes:]))
        yield cluster


def _node_options(folder: Path, number: int, bus: int, tls: RedisTls | None) -> Sequence[str]:
    settings = {
        "cluster-enabled": "yes",
        "cluster-port": str(bus),
        "cluster-node-timeout": "2000",
        "repl-diskless-sync-delay": "0",
        "dir": str(folder),
        "cluster-config-file": f"node-{number}.conf",
    }
    if tls is not None:
        settings["tls-cluster"] = "yes"
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def _is_whole(cluster: RealCluster, node: RealBroker) -> bool:
    """Return whether a node knows all owners of slots, and its links stand."""
    info = cluster.ask(node, "CLUSTER", "INFO")
    known = cluster.ask(node, "CLUSTER", "NODES").decode().splitlines()
    linked = [line for line in known if " connected" in line and "handshake" not in line]
    return b"cluster_state:ok" in info and len(linked) == len(cluster.nodes)


def _has_copies(cluster: RealCluster, replicas: Sequence[RealBroker]) -> bool:
    """Return whether each replica has the data of its primary, and all nodes know it as one."""
    if not all(_is_replica(cluster.ask(replica, "INFO", "replication")) for replica in replicas):
        return False
    lines = [cluster.ask(node, "CLUSTER", "NODES").decode() for node in cluster.nodes]
    return all(line.count("slave") == len(replicas) for line in lines)
