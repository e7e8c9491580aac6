"""The messages between the parent and a worker, and the parameters of a worker.

1. Both ends of a socket pair carry JSON texts, each on a line. The first line to the worker is its
   `Handover`; later ones report the broker and ask for the end.
2. A worker may run newer code than its parent, after an upgrade of the package and a SIGHUP. So nothing is
   pickled: the configuration is handed over as the text of its file, which the worker reads itself, and keys
   that one side does not know are ignored.
3. The text is that of the moment at which the parent read the file. A worker that is restarted after a
   crash therefore gets the configuration in force, also if the file has been changed since.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import attrs

from tangram.config import Config, LoadedConfig, load_config
from tangram.config.bound import IN_WORKERS, with_bound
from tangram.http.listeners import HeldSocket

__all__ = ["Handover", "Snapshot", "decode_lines", "encode_line", "receive_handover", "worker_config"]

_CHUNK: Final = 65536
_LONGEST: Final = 64 * 1024 * 1024
"""Bytes of the first line: a configuration file has some kilobytes."""


@attrs.frozen
class Snapshot:
    """A configuration file at the moment at which it was read, and its environment."""

    path: Path | None
    text: bytes | None
    """The content of the file; None without a file."""
    overrides: Mapping[str, str]
    """Settings of the command line, by the names of environment variables."""

    def load(self) -> LoadedConfig:
        """Return the configuration.

        Raises:
            ConfigError: it has faults.
        """
        return load_config(self.path, {**os.environ, **self.overrides}, text=self.text)

    def to_plain(self) -> dict[str, Any]:
        """Return values for JSON."""
        return {
            "path": None if self.path is None else str(self.path),
            "text": None if self.text is None else self.text.decode("utf-8", "surrogateescape"),
            "overrides": dict(self.overrides),
        }

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Snapshot:
        """Return the snapshot of `to_plain`."""
        path, text = values["path"], values["text"]
        return cls(
            None if path is None else Path(path),
            None if text is None else text.encode("utf-8", "surrogateescape"),
            values["overrides"],
        )


@attrs.frozen(kw_only=True)
class Handover:
    """The parameters of one worker."""

    name: str
    """The name of this process among the workers."""
    node: str
    """The id of this node."""
    first: Snapshot
    """The configuration with which the parent was started: some of its settings cannot change."""
    snapshot: Snapshot
    """The configuration of this worker."""
    log_format: Literal["console", "json"]
    terminal: bool
    """Whether the parent's standard error is a terminal."""
    sockets: list[tuple[int, str, int]]
    """Descriptor, address and port of each listening socket."""
    share: tuple[int, int]
    """Descriptor of the shared memory, and the worker's place in it."""
    broker: Mapping[str, Any] | None
    """The parent's broker; None if a Redis is configured, or while it restarts."""
    sys_path: list[str]
    """The places of Python modules, as in the parent."""
    beat: float | None
    """Seconds between two signs of life; None if none are expected."""

    def to_line(self) -> bytes:
        """Return the first line of the connection."""
        values = attrs.asdict(self, recurse=False)
        return encode_line(values | {"first": self.first.to_plain(), "snapshot": self.snapshot.to_plain()})

    @classmethod
    def from_line(cls, line: bytes) -> Handover:
        """Return the parameters in the first line."""
        values = json.loads(line)
        known = {field.name for field in attrs.fields(cls)}
        values = {name: value for name, value in values.items() if name in known}
        values |= {name: Snapshot.from_plain(values[name]) for name in ("first", "snapshot")}
        return cls(**values)

    def held_sockets(self, share: Any) -> list[HeldSocket]:
        """Return the listening sockets."""
        return [self._held(descriptor, host, port, share) for descriptor, host, port in self.sockets]

    @staticmethod
    def _held(descriptor: int, host: str, port: int, share: Any) -> HeldSocket:
        listener = socket.socket(fileno=descriptor)
        listener.set_inheritable(False)
        return HeldSocket(listener, host, port, share=share)


def worker_config(handover: Handover) -> LoadedConfig:
    """Return the configuration of a worker: that of its snapshot, as a node of its own.

    Raises:
        ConfigError: it has faults.
    """
    loaded = handover.snapshot.load()
    config = with_bound(handover.first.load().config, loaded.config, IN_WORKERS)
    return loaded._replace(config=as_node(config, handover.node))


def as_node(config: Config, node: str) -> Config:
    """Return the configuration of one of several nodes on this machine."""
    listen = config.cluster.listen
    if listen is not None:  # each worker needs a port of its own, which its record names
        listen = f"{listen.rpartition(':')[0]}:0"
    return attrs.evolve(config, cluster=attrs.evolve(config.cluster, node=node, listen=listen))


def encode_line(values: Mapping[str, Any]) -> bytes:
    """Return a message as a line."""
    return json.dumps(values).encode() + b"\n"


def decode_lines(pending: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """Return the whole messages in some bytes, and the rest."""
    *lines, rest = pending.split(b"\n")
    return [json.loads(line) for line in lines], rest


def receive_handover(connection: socket.socket) -> tuple[Handover, bytes]:
    """Wait for the first line; return it, and the bytes behind it.

    Raises:
        EOFError: the parent has ended.
    """
    received = b""
    while b"\n" not in received:
        chunk = connection.recv(_CHUNK)
        if not chunk or len(received) > _LONGEST:
            raise EOFError("the parent has sent no parameters")
        received += chunk
    line, _, rest = received.partition(b"\n")
    return Handover.from_line(line), rest
