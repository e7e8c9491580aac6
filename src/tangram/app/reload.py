"""What a reload makes of the configuration that it has read: what is taken over, and what is told instead.

Every setting is one or the other. What is bound for the life of the process stands in `BOUND`; everything
else is read by the next incarnation, or handed by the server to what lives above it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs
import structlog

from tangram.app.tree import Secrets
from tangram.config import Config, ensure_secret, open_state_dir

__all__ = ["BOUND", "bound_changes", "changed_secrets", "check_tls", "read_secrets", "with_bound"]

log = structlog.get_logger("tangram.app")

BOUND = (
    "core.redis_url",
    "server.host",
    "server.port",
    "server.state_dir",
    "channel.host",
    "channel.port",
    "broker.port",
    "broker.binary",
)
"""Settings of which a change needs a new process: sockets that are held, a broker whose URL plugins keep, the
folder in which secrets lie."""


def bound_changes(old: Config, new: Config) -> Iterator[tuple[str, object, object]]:
    """What is bound for the life of the process, and differs: setting, value now, value wanted."""
    for path in BOUND:
        now, wanted = _value(old, path), _value(new, path)
        if now == wanted:
            continue
        if path == "core.redis_url":  # it may hold a password, which another one may differ in
            now, wanted = now and "(set)", wanted and ("(another)" if now else "(set)")
        yield path, now, wanted


def with_bound(old: Config, new: Config) -> Config:
    """The new configuration with what is bound as it is in the old one."""
    for path in BOUND:
        table, _, key = path.partition(".")
        kept = attrs.evolve(getattr(new, table), **{key: _value(old, path)})
        new = attrs.evolve(new, **{table: kept})
    return new


def _value(config: Config, path: str) -> object:
    table, _, key = path.partition(".")
    return getattr(getattr(config, table), key)


def read_secrets(config: Config, environ: Mapping[str, str]) -> Secrets:
    """The secrets as configured, else those of the state folder, made there where they are missing.

    Raises:
        ConfigError: the folder, or a file in it, cannot be used.
    """
    jwt, operator = config.channel.jwt_secret, config.server.operator_token
    if jwt is None or operator is None:
        folder = open_state_dir(config, environ)
        if operator is None:
            operator = ensure_secret(folder, "operator-token")
            log.info("the operator's token is kept", file=str(folder / "operator-token"))
        jwt = jwt or ensure_secret(folder, "jwt-secret")
    return Secrets(jwt=jwt, operator=operator)


def changed_secrets(old: Secrets, new: Secrets) -> list[str]:
    """The settings whose secret is another one now."""
    pairs = (
        ("channel.jwt_secret", old.jwt, new.jwt),
        ("server.operator_token", old.operator, new.operator),
    )
    return [setting for setting, before, now in pairs if before != now]


def check_tls(config: Config) -> None:
    """See that the files for TLS can be used, while there is still something to go back to.

    Raises:
        ConfigError: they cannot.
    """
    if config.server.tls_cert is not None:
        from tangram.http.hypercorn.server import make_ssl_context

        make_ssl_context(config.server.tls_cert, config.server.tls_key)
