"""What a Redis URL says, in the parts that a connection needs. Pure."""

from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

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
    query = parse_qs(parts.query)
    username, password = parts.username or query.get("username", [None])[0], parts.password
    if password is None:
        password = query.get("password", [None])[0]
    return RedisAddress(
        host=parts.hostname or "",
        port=port,
        path=unquote(parts.path) if parts.scheme == "unix" else "",
        tls=parts.scheme == "rediss",
        username=unquote(username) if username else None,
        password=unquote(password) if password else None,
    )
