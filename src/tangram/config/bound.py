"""Settings that a reload cannot change, because they hold for the whole process. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from tangram.config.model import Config

__all__ = ["BOUND", "IN_WORKERS", "bound_changes", "with_bound"]

BOUND: Final = (
    "core.redis_url",
    "server.host",
    "server.port",
    "server.state_dir",
    "server.workers",
    "channel.host",
    "channel.port",
    "broker.port",
    "broker.private",
    "broker.password",
    "broker.binary",
    "cluster.node",
    "cluster.listen",
    "cluster.lease_ttl",
)
"""Settings that only a new process can change: held sockets, a broker whose URL plugins keep, the folder
of the secrets, and the node's name, address and leases."""


IN_WORKERS: Final = tuple(path for path in BOUND if path != "server.workers")
"""The same for several workers, whose number a parent can change."""


def bound_changes(
    old: Config, new: Config, paths: Sequence[str] = BOUND
) -> Iterator[tuple[str, object, object]]:
    """Yield each setting of ``paths`` that differs: path, value in force, value wanted."""
    for path in paths:
        now, wanted = _value(old, path), _value(new, path)
        if now == wanted:
            continue
        if path == "core.redis_url":  # it may hold a password, and the two may differ in that alone
            now, wanted = now and "(set)", wanted and ("(another)" if now else "(set)")
        yield path, now, wanted


def with_bound(old: Config, new: Config, paths: Sequence[str] = BOUND) -> Config:
    """Return the new configuration with the old values of the settings in ``paths``."""
    for path in paths:
        table, _, key = path.partition(".")
        kept = attrs.evolve(getattr(new, table), **{key: _value(old, path)})
        new = attrs.evolve(new, **{table: kept})
    return new


def _value(config: Config, path: str) -> object:
    table, _, key = path.partition(".")
    return getattr(getattr(config, table), key)
