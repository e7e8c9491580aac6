"""What a Redis URL says, in the parts that a connection needs. Pure."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from tangram.config.model import redact_url

__all__ = ["RedisAddress", "local_url", "parse_redis_url", "redact_url"]

_DEFAULT_PORT = 6379


class RedisAddress(NamedTuple):
    """Where a Redis is, and as whom to speak to it."""

    host: str
    port: int
    path: str = ""
    """The socket's path, where the URL is ``unix://``; then host and port mean nothing."""
    tls: bool = False
    username: str | None = None
    password: str | None = None
    options: Mapping[str, str] = MappingProxyType({})
    """The rest of the query: how TLS is to be spoken."""

    def __repr__(self) -> str:
        """Without the password: this lands in tracebacks."""
        return f"RedisAddress({self.path or f'{self.host}:{self.port}'!r}, tls={self.tls!r})"


def local_url(port: int) -> str:
    """The URL of a broker on loopback."""
    return f"redis://127.0.0.1:{port}"


def parse_redis_url(url: str) -> RedisAddress:
    """The parts of ``redis://``, ``rediss://`` or ``unix://``; ``ValueError``, without the password, for any
    other.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORT
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in {"redis", "rediss", "unix"} or not (
        parts.path if parts.scheme == "unix" else parts.hostname
    ):
        raise ValueError(f"expected a redis://, rediss:// or unix:// URL, got {redact_url(url)!r}")
    options = dict(parse_qsl(parts.query))
    in_query = options.pop("username", None), options.pop("password", None)
    username = unquote(parts.username) if parts.username else in_query[0]
    password = unquote(parts.password) if parts.password else in_query[1]
    return RedisAddress(
        host=parts.hostname or "",
        port=port,
        path=unquote(parts.path) if parts.scheme == "unix" else "",
        tls=parts.scheme == "rediss",
        username=username or None,
        password=password or None,
        options=options,
    )
