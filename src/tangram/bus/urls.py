"""Redis URLs: what may stand in one, and what it means.

    redis://[user[:password]@]host[:port][/db][?db=N]
    rediss://...   the same under TLS;
    ?ssl_cert_reqs=none|optional|required&ssl_ca_certs=&ssl_certfile=&ssl_keyfile=
    unix://[user[:password]@]/path/to/socket[?db=N]

The query's names are redis-py's, so that one URL serves the bus, the client that plugins get, and plugins
that open their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import attrs

from tangram.bus.topics import redact
from tangram.errors import ConfigError, Fault

__all__ = ["RedisAddress", "parse_url"]

DEFAULT_PORT = 6379
SCHEMES = ("redis", "rediss", "unix")


@attrs.frozen
class RedisAddress:
    """Where Redis listens, and who we are to it. Its ``repr`` and `shown` hold no secret."""

    url: str = attrs.field(repr=False)
    """As it was written, with the password."""
    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""
    """Of the Unix socket; empty for TCP."""
    tls: bool = False
    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    db: int = 0
    options: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """The query's remaining values: the names of certificate files, for one."""

    @property
    def shown(self) -> str:
        """The URL fit for logs and error messages."""
        return redact(self.url)


def parse_url(url: str, *, where: str = "core.redis_url") -> RedisAddress:
    """The address that *url* means.

    Raises:
        ConfigError: it is no Redis URL; *where* is the setting that the message names.
    """
    try:
        return _parse(url)
    except ValueError as exc:
        what = f"{redact(url)!r} is no redis url: {exc}; expected one like 'redis://127.0.0.1:6379/0'"
        raise ConfigError([Fault(what, where, "redis_url")]) from None


def _parse(url: str) -> RedisAddress:
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"its scheme is {parts.scheme!r}, not one of {', '.join(SCHEMES)}")
    options = dict(parse_qsl(parts.query))
    username = unquote(parts.username) if parts.username else options.pop("username", None)
    password = unquote(parts.password) if parts.password else options.pop("password", None)
    unix = parts.scheme == "unix"
    if unix and not parts.path:
        raise ValueError("it names no path of a socket")
    return RedisAddress(
        url=url,
        host="" if unix else parts.hostname or "localhost",
        port=parts.port or DEFAULT_PORT,
        path=unquote(parts.path) if unix else "",
        tls=parts.scheme == "rediss",
        username=username,
        password=password,
        db=_database(parts, options),
        options=options,
    )


def _database(parts: SplitResult, options: dict[str, str]) -> int:
    in_path = "" if parts.scheme == "unix" else parts.path.strip("/")
    text = options.pop("db", in_path) or "0"
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"its database is {text!r}, not a number from 0")
    return int(text)
