"""Comparison of a reloaded configuration with the old one.

A reload cannot change the settings in `BOUND`, which hold for the whole process; it logs them instead. Every
other setting is read by the next incarnation, or handed by the server to the objects above it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import attrs
import structlog

from tangram.app.tree import Secrets
from tangram.config import OPERATOR_TOKEN, SECRET_LEAST, Config, ensure_secret, open_state_dir

__all__ = ["BOUND", "bound_changes", "changed_secrets", "check_tls", "read_secrets", "with_bound"]

log = structlog.get_logger("tangram.app")

BOUND: Final = (
    "core.redis_url",
    "server.host",
    "server.port",
    "server.state_dir",
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


def bound_changes(old: Config, new: Config) -> Iterator[tuple[str, object, object]]:
    """Yield each setting of `BOUND` that differs: path, value in force, value wanted."""
    for path in BOUND:
        now, wanted = _value(old, path), _value(new, path)
        if now == wanted:
            continue
        if path == "core.redis_url":  # it may hold a password, and the two may differ in that alone
            now, wanted = now and "(set)", wanted and ("(another)" if now else "(set)")
        yield path, now, wanted


def with_bound(old: Config, new: Config) -> Config:
    """Return the new configuration with the old values of the settings in `BOUND`."""
    for path in BOUND:
        table, _, key = path.partition(".")
        kept = attrs.evolve(getattr(new, table), **{key: _value(old, path)})
        new = attrs.evolve(new, **{table: kept})
    return new


def _value(config: Config, path: str) -> object:
    table, _, key = path.partition(".")
    return getattr(getattr(config, table), key)


def read_secrets(config: Config, environ: Mapping[str, str]) -> Secrets:
    """Return the configured secrets; read or create the others in the state folder.

    Raises:
        ConfigError: the folder, or a file in it, cannot be used.
    """
    jwt, operator = config.channel.jwt_secret, config.server.operator_token
    for setting, secret in (("channel.jwt_secret", jwt), ("server.operator_token", operator)):
        if secret is not None and len(secret) < SECRET_LEAST:
            log.warning("configured secret is short", setting=setting, expected=f"{SECRET_LEAST} characters")
    if jwt is None or operator is None:
        folder = open_state_dir(config, environ)
        if operator is None:
            operator = ensure_secret(folder, OPERATOR_TOKEN)
            log.info("operator token ready", file=str(folder / OPERATOR_TOKEN))
        jwt = jwt or ensure_secret(folder, "jwt-secret")
    return Secrets(jwt=jwt, operator=operator)


def changed_secrets(old: Secrets, new: Secrets) -> list[str]:
    """Return the settings whose secret has changed."""
    pairs = (
        ("channel.jwt_secret", old.jwt, new.jwt),
        ("server.operator_token", old.operator, new.operator),
    )
    return [setting for setting, before, now in pairs if before != now]


def check_tls(config: Config) -> None:
    """Check that the files for TLS can be used, while the old configuration is still in force.

    Raises:
        ConfigError: a file cannot be read, or is no certificate or key.
    """
    if config.server.tls_cert is not None:
        from tangram.http.hypercorn.server import make_ssl_context

        make_ssl_context(config.server.tls_cert, config.server.tls_key)
