"""Comparison of a reloaded configuration with the old one.

A reload cannot change the settings in ``config.bound``, which hold for the whole process; it logs them. Every
other setting is read by the next incarnation, or handed by the server to the objects above it.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from tangram.app.tree import Secrets
from tangram.config import OPERATOR_TOKEN, SECRET_LEAST, Config, ensure_secret, open_state_dir
from tangram.config.bound import BOUND, bound_changes, with_bound

__all__ = ["BOUND", "bound_changes", "changed_secrets", "check_tls", "read_secrets", "with_bound"]

log = structlog.get_logger("tangram.app")


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
