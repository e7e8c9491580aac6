"""Redis URLs: the one place that reads them, and the one place that hides their passwords.

    redis://[user[:password]@]host[:port][/database][?option=value&...]
    rediss://...                                      the same over TLS
    unix://[user[:password]@]/path/to/socket[?db=database&option=value&...]
    redis+sentinel://[user[:password]@]host[:port][,host[:port]...][/database]?master=NAME[&option=value&...]
    redis+cluster://[user[:password]@]host[:port][,host[:port]...][?option=value&...]
    rediss+sentinel://... and rediss+cluster://...    the same over TLS

The options have redis-py's names (see ``OPTIONS``), so that one URL serves the bus, ``redis_client``, and
the clients that plugins open themselves. Every entrance (the configuration, ``tangram.Subscriber``, the
Subscriber of existing plugins) accepts and refuses the same URLs, because each of them calls this module.

Rules of this file:

1. It does no I/O and imports nothing of redis-py's.
2. No message of it repeats a part of a URL unless ``redact_url`` has seen that part. In particular, the
   messages of ``urllib.parse`` are never passed on: they quote the port, which may be half of a password.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Final, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, unquote_plus, urlsplit

import attrs

from tangram import defaults
from tangram.errors import ConfigError, Fault

__all__ = [
    "Endpoint",
    "RedisAddress",
    "is_false",
    "local_redis_url",
    "parse_redis_url",
    "read_redis_url",
    "redact_text",
    "redact_url",
]

Endpoint = tuple[str, int]
"""A host and a port."""

_SCHEMES: Final = (
    "redis://",
    "rediss://",
    "unix://",
    "redis+sentinel://",
    "rediss+sentinel://",
    "redis+cluster://",
    "rediss+cluster://",
)

SENTINEL_PORT: Final = 26379

_FALSE: Final = frozenset({"0", "f", "false", "n", "no"})
_TRUE: Final = frozenset({"1", "t", "true", "y", "yes"})


@attrs.frozen
class RedisAddress:
    """The address of a Redis, and the account to use there. Its ``repr`` holds no secret."""

    url: str = attrs.field(repr=False)
    """The URL as it was written, with the password."""
    host: str = ""
    """The host name or IP address; empty for a Unix socket."""
    port: int = defaults.REDIS_PORT
    path: str = ""
    """The path of the Unix socket; empty for TCP."""
    tls: bool = False
    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    db: int = 0
    """The number of the database."""
    options: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """The other options of the URL, for example the paths of certificates."""
    kind: Literal["single", "sentinel", "cluster"] = "single"
    """How the primary is found: it is the address itself, or sentinels or nodes of a cluster name it."""
    guides: tuple[Endpoint, ...] = ()
    """The sentinels, or nodes of the cluster, that the URL lists. ``host`` and ``port`` are the first one."""
    master: str = ""
    """The name by which the sentinels know the primary."""
    sentinel_username: str | None = None
    sentinel_password: str | None = attrs.field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The URL without its password, for logs, pages and error messages."""
        return redact_url(self.url)

    @property
    def endpoint(self) -> Endpoint:
        """Host and port."""
        return self.host, self.port

    def guide(self, endpoint: Endpoint) -> RedisAddress:
        """Return the address of one sentinel or node of the cluster, with its account."""
        place = attrs.evolve(
            self, host=endpoint[0], port=endpoint[1], kind="single", guides=(), master="", db=0
        )
        if self.kind == "sentinel":
            return attrs.evolve(place, username=self.sentinel_username, password=self.sentinel_password)
        return place

    def primary(self, endpoint: Endpoint) -> RedisAddress:
        """Return the address of the primary that was found, with the account and the database."""
        host, port = endpoint
        return attrs.evolve(self, host=host, port=port, kind="single", guides=(), master="")


def local_redis_url(port: int) -> str:
    """Return the URL of a Redis on this machine's loopback address."""
    return f"redis://127.0.0.1:{port}"


def parse_redis_url(url: str, *, where: str = "core.redis_url") -> RedisAddress:
    """Return the parts of a Redis URL.

    Args:
        url: for example ``redis://user:secret@127.0.0.1:6379/0``.
        where: the setting or parameter that held the URL, for the error message.

    Raises:
        ConfigError: the URL is malformed. The message hides the password.
    """
    try:
        return read_redis_url(url)
    except ValueError as error:
        raise ConfigError([Fault(f"{error}, got {redact_url(url)!r}", where, "redis_url")]) from None


def read_redis_url(url: str) -> RedisAddress:
    """Return the parts of a Redis URL; a malformed one raises a plain ``ValueError``.

    Raises:
        ValueError: the URL is malformed. The message names the expectation and does not quote the URL.
    """
    try:
        return _read(url)
    except _MalformedUrlError as error:
        # A raw '/', '?' or '#' in a password ends the host too early: then the '@' stands behind it.
        hint = "; in a password write / as %2F, ? as %3F, # as %23 and @ as %40" if "@" in url else ""
        raise ValueError(f"{error}{hint}") from None


class _MalformedUrlError(ValueError):
    """The message is safe to show: it holds no part of the URL."""


def _read(url: str) -> RedisAddress:
    if not url.startswith(_SCHEMES):
        raise _MalformedUrlError(
            f"expected a URL that begins with {', '.join(_SCHEMES[:-1])} or {_SCHEMES[-1]}"
        )
    # urlsplit drops tabs and line breaks without a word, and with them a part of the password.
    if any(character < " " or character == "\x7f" for character in url):
        raise _MalformedUrlError("expected a URL without line breaks, tabs and other control characters")
    kind = _kind(url)
    parts, hosts = _split(url, several=kind != "single")
    if parts.fragment or url.endswith("#"):
        raise _MalformedUrlError("expected no '#' in a redis url")
    options = _options(parts, kind)
    username = unquote(parts.username) if parts.username else options.pop("username", None)
    password = unquote(parts.password) if parts.password else options.pop("password", None)
    unix = parts.scheme == "unix"
    default_port = SENTINEL_PORT if kind == "sentinel" else defaults.REDIS_PORT
    guides = [(_host(one), one.port or default_port) for one in hosts]
    return RedisAddress(
        url=url,
        host="" if unix else guides[0][0],
        port=defaults.REDIS_PORT if unix else guides[0][1],
        path=_socket_path(parts) if unix else "",
        tls=parts.scheme.startswith("rediss"),
        username=username,
        password=password,
        db=_database(parts, options, kind),
        kind=kind,
        guides=tuple(dict.fromkeys(guides)) if kind != "single" else (),
        master=_master(options) if kind == "sentinel" else "",
        sentinel_username=options.pop("sentinel_username", None),
        sentinel_password=options.pop("sentinel_password", None),
        options=options,
    )


def _kind(url: str) -> Literal["single", "sentinel", "cluster"]:
    scheme = url.partition(":")[0]
    if scheme.endswith("+sentinel"):
        return "sentinel"
    return "cluster" if scheme.endswith("+cluster") else "single"


_NO_PORT: Final = "expected a port between 1 and 65535 after the host"


def _split(url: str, *, several: bool) -> tuple[SplitResult, list[SplitResult]]:
    """Return the parts of a URL, and the parts of each of its hosts."""
    try:
        if not several:
            parts = urlsplit(url)
            hosts = [] if parts.scheme == "unix" else [parts]
            ports = [parts.port]
        else:
            # Newer versions of Python refuse several hosts if one of them is in brackets.
            scheme, _, rest = url.partition("://")
            netloc = re.split("[/?#]", rest, maxsplit=1)[0]
            account, at, names = netloc.rpartition("@")
            hosts = [urlsplit(f"//{name}") for name in names.split(",")]
            first = names.partition(",")[0]
            parts = urlsplit(f"{scheme}://{account}{at}{first}{rest.removeprefix(netloc)}")
            ports = [one.port for one in hosts]
    except ValueError:
        raise _MalformedUrlError(_NO_PORT) from None
    if 0 in ports:
        raise _MalformedUrlError(_NO_PORT)
    return parts, hosts


def _master(options: dict[str, str]) -> str:
    name = options.pop("master", "")
    if not name:
        raise _MalformedUrlError(
            "expected the option 'master' with the name of the primary, as in "
            "redis+sentinel://127.0.0.1:26379/?master=mymaster"
        )
    return name


def _host(parts: SplitResult) -> str:
    host = parts.hostname
    # redis-py would take localhost; the client of compiled plugins refuses such a URL.
    if not host:
        raise _MalformedUrlError("expected a host, as in redis://127.0.0.1:6379")
    try:
        host.encode("idna")  # as it is encoded when it is looked up
    except UnicodeError:
        raise _MalformedUrlError(
            "expected the name of a host, with 1 to 63 characters between its dots"
        ) from None
    return host


def _socket_path(parts: SplitResult) -> str:
    # A raw '/' in a password would otherwise make its rest a part of the path, which is shown.
    if parts.netloc and "@" not in parts.netloc:
        raise _MalformedUrlError(
            "expected no host before the path of a socket, as in unix:///run/valkey.sock"
        )
    if not parts.path:
        raise _MalformedUrlError("expected the path of a socket, as in unix:///run/valkey.sock")
    return unquote(parts.path)


def _database(parts: SplitResult, options: dict[str, str], kind: str) -> int:
    in_path = "" if parts.scheme == "unix" else parts.path.strip("/")
    if in_path and not _is_number(in_path):
        raise _MalformedUrlError(
            "expected nothing or the number of a database after the host, as in redis://127.0.0.1:6379/0"
        )
    number = int(options.pop("db", in_path) or 0)
    if number and kind == "cluster":
        raise _MalformedUrlError("expected no number of a database: a Redis Cluster has only database 0")
    return number


# --- options


def _is_number(text: str) -> bool:
    # int() would take signs, underscores and the digits of other scripts; 18 digits fit into 64 bits.
    return text.isascii() and text.isdigit() and len(text) <= 18


def _is_seconds(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _is_flag(text: str) -> bool:
    return text.lower() in _FALSE | _TRUE


def _is_text(text: str) -> bool:
    return bool(text)


def _one_of(*words: str) -> Callable[[str], bool]:
    return lambda text: text in words


_NUMBER: Final = (_is_number, "a number from 0")
_SECONDS: Final = (_is_seconds, "a number of seconds above 0")
_FLAG: Final = (_is_flag, "true or false")
_TEXT: Final = (_is_text, "some text")

OPTIONS: Final[Mapping[str, tuple[Callable[[str], bool], str]]] = {
    "client_name": _TEXT,
    "db": (_is_number, "the number of a database, from 0"),
    "decode_responses": _TEXT,
    "encoding": _TEXT,
    "encoding_errors": _TEXT,
    "health_check_interval": _NUMBER,
    "max_connections": _NUMBER,
    "password": _TEXT,
    "protocol": (_one_of("2", "3"), "2 or 3"),
    "retry_on_timeout": _FLAG,
    "socket_connect_timeout": _SECONDS,
    "socket_keepalive": _FLAG,
    "socket_timeout": _SECONDS,
    "username": _TEXT,
}
"""The options of a URL: redis-py's names, each with the check of its value and the words for a fault.

An option that is not listed is refused at the start. redis-py would take it, and then fail at each command.
"""

TLS_OPTIONS: Final[Mapping[str, tuple[Callable[[str], bool], str]]] = {
    "ssl_ca_certs": _TEXT,
    "ssl_ca_data": _TEXT,
    "ssl_ca_path": _TEXT,
    "ssl_cert_reqs": (_one_of("none", "optional", "required"), "none, optional or required"),
    "ssl_certfile": _TEXT,
    "ssl_check_hostname": _FLAG,
    "ssl_ciphers": _TEXT,
    "ssl_keyfile": _TEXT,
    "ssl_min_version": (_one_of("771", "772"), "771 (TLS 1.2) or 772 (TLS 1.3)"),
    "ssl_password": _TEXT,
}
"""The options of ``rediss://`` URLs beside the others."""

SENTINEL_OPTIONS: Final[Mapping[str, tuple[Callable[[str], bool], str]]] = {
    "master": _TEXT,
    "sentinel_password": _TEXT,
    "sentinel_username": _TEXT,
}
"""The options of URLs with sentinels beside the others; redis-py does not know them."""


def is_false(value: str) -> bool:
    """Return whether the value of a flag in a URL means false, as redis-py reads it."""
    return value.lower() in _FALSE


def _options(parts: SplitResult, kind: str) -> dict[str, str]:
    known = {**OPTIONS, **TLS_OPTIONS} if parts.scheme.startswith("rediss") else dict(OPTIONS)
    if kind == "sentinel":
        known |= SENTINEL_OPTIONS
    if parts.scheme == "unix":
        del known["socket_keepalive"]
    found = dict[str, str]()
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            raise _MalformedUrlError(_unknown_option(name, known))
        if name in found:
            raise _MalformedUrlError(f"expected the option {name!r} once")
        check, expected = known[name]
        if not check(value):
            raise _MalformedUrlError(f"expected {expected} for the option {name!r}")
        found[name] = value
    return found


def _unknown_option(name: str, known: Mapping[str, object]) -> str:
    if name in SENTINEL_OPTIONS:
        return f"expected redis+sentinel:// before a URL with the option {name!r}"
    if name in TLS_OPTIONS:
        return f"expected rediss:// before a URL with the option {name!r}"
    # The name itself is not shown: it may be the rest of a password with a raw '?' or '&'.
    return f"expected only known options after '?': {', '.join(known)}"


# --- hiding passwords


_SECRET_WORD: Final = re.compile(r"passw|secret|token|credential", re.IGNORECASE)
_SECRET_NAMES: Final = frozenset({"key", "apikey", "api_key", "api-key", "pass", "pwd", "sig", "signature"})

_KNOWN_SCHEMES: Final = (*_SCHEMES, "http://", "https://", "ws://", "wss://")
_USER: Final = re.compile(r"://[^:@]*:")
_ANY_USER: Final = re.compile(r"://(?:[^:@]*:)?")
_USER_ALONE: Final = re.compile(r"^[^:@/\s]*:")
"""The same where the scheme was forgotten."""
_USER_IN_TEXT: Final = re.compile(r"://[^:@\s'\"]*:")
_AFTER_HOST: Final = re.compile(r"(://(?:\[[^\]@]*\]|[^:@/?#\[]*)):([^@]*)$", re.DOTALL)
"""A port, or a password whose '@' was forgotten."""
_PORT: Final = re.compile(r"\d{1,5}(?=[/?#]|$)")
_SEVERAL: Final = re.compile(r"rediss?\+(?:sentinel|cluster)://(?=[^/?#]*,)")
"""The beginning of a URL with several hosts."""
_HOST_OF_SEVERAL: Final = re.compile(r"(?:\[[\da-fA-F:.]+\]|[\w.-]+)(?::\d{1,5})?")
_OPTION: Final = re.compile(r"([?&;])([^=&;?#]*)=")

_AFTER_HOST_IN_TEXT: Final = re.compile(
    r"(rediss?(?:\+sentinel|\+cluster)?)(://(?:\[[^\]@\s]*\]|[^:@/?#\s\[]*)):(?!\d{1,5}(?:\D|$))[^@\s]*"
)
_OPTION_IN_TEXT: Final = re.compile(
    r"((?:passw(?:or)?d|secret|token|[?&](?:api_?key|key|pass|pwd|sig|signature))=)[^&\s'\"]+", re.IGNORECASE
)


def redact_url(url: str) -> str:
    """Return a URL with ``***`` in place of its secrets; malformed URLs too.

    Hidden are the password before '@', and everything behind the first option that sounds like a secret.
    For example, ``redis://u:p%40ss@h/0`` becomes ``redis://u:***@h/0``. More than the password is hidden
    where its end cannot be told.
    """
    if "://" not in url:
        return _hide_password(_hide_options(url, "?" + url), _USER_ALONE)
    url = _hide_options(url, url)
    if "@" in url:
        # A name alone is no password, unless the scheme is a part of the account: "user://secret@host".
        return _hide_password(url, _USER if url.startswith(_KNOWN_SCHEMES) else _ANY_USER)
    if several := _SEVERAL.match(url):
        return _hide_after_hosts(url, several.end())
    return _AFTER_HOST.sub(_hide_after_host, url)


def _hide_after_hosts(url: str, start: int) -> str:
    """Hide the rest of a list of hosts from the first one that is no host with a port."""
    end = re.search(r"[/?#]|$", url[start:])
    assert end is not None
    at = start
    for host in url[start : start + end.start()].split(","):
        if not _HOST_OF_SEVERAL.fullmatch(host):
            return f"{url[:at]}***"
        at += len(host) + 1
    return url


def _hide_password(text: str, user: re.Pattern[str]) -> str:
    """Hide the text between a user and the last '@'.

    A password may hold '@', '/' and spaces as they are. The '@' is looked for first, and not by the
    pattern: that would cost the square of a long line's length.
    """
    at = text.rfind("@")
    found = user.search(text, 0, at) if at >= 0 else None
    return f"{text[: found.end()]}***{text[at:]}" if found else text


def _hide_options(url: str, searched: str) -> str:
    added = len(searched) - len(url)
    for option in _OPTION.finditer(searched):
        name = unquote_plus(option[2])
        if _SECRET_WORD.search(name) or name.lower() in _SECRET_NAMES:
            # To the end: a secret may hold '&' and '#' as they are, and an '@' behind it is a part of it.
            return f"{url[: option.end() - added]}***"
    return url


def _hide_after_host(match: re.Match[str]) -> str:
    port = _PORT.match(match[2])
    return match[0] if port is not None and int(port[0]) <= 65535 else f"{match[1]}:***"


def redact_text(text: str) -> str:
    """Return a text, for example a traceback, with ``***`` in place of its URLs' secrets.

    Each line is treated alone. A whole URL is better served by ``redact_url``, which can hide more.
    """
    if "@" in text and "://" in text:
        text = "\n".join(_hide_password(line, _USER_IN_TEXT) for line in text.split("\n"))
    text = _AFTER_HOST_IN_TEXT.sub(r"\1\2:***", text)
    return _OPTION_IN_TEXT.sub(r"\1***", text)
