"""``HTTPConnection``: headers, query and cookies of a request, parsed when used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from tangram.asgi import Scope
from tangram.routing.exceptions import InvalidRequest, Problem

__all__ = ["HTTPConnection", "Headers", "QueryParams", "parse_cookies", "parse_query"]

MAX_QUERY_PAIRS: Final = 1_000
"""Parameters in a query. Without a limit, a query of 2 MB would have 500,000."""


class Address(NamedTuple):
    """The address of the client."""

    host: str
    port: int


class _Multi(Mapping[str, str]):
    """A mapping whose keys may have several values; indexing returns the last one."""

    __slots__ = ("_values",)

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for key, value in pairs:
            self._values.setdefault(key, []).append(value)

    def __getitem__(self, key: str) -> str:
        return self._values[key][-1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def getlist(self, key: str) -> list[str]:
        """Return all values of ``key``, in the order sent."""
        return list(self._values.get(key, ()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._values!r})"


class QueryParams(_Multi):
    """The parameters of the query."""

    __slots__ = ()


class Headers(_Multi):
    """The headers of the request; names are case-insensitive."""

    __slots__ = ()

    def __getitem__(self, key: str) -> str:
        return self._values[key.lower()][-1]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.lower() in self._values

    def getlist(self, key: str) -> list[str]:
        """Return all values of the header, in the order sent."""
        return super().getlist(key.lower())


def parse_query(raw: bytes) -> list[tuple[str, str]]:
    """Return the names and values of a query string, in the order sent.

    Raises:
        InvalidRequest: the decoded text is not UTF-8, or there are more than ``MAX_QUERY_PAIRS`` parameters.
    """
    if not raw:
        return []
    parts = raw.split(b"&")
    if len(parts) > MAX_QUERY_PAIRS:
        raise InvalidRequest(
            [Problem(("query",), f"expected at most {MAX_QUERY_PAIRS} parameters", "too_long")]
        )
    pairs = []
    try:
        for part in parts:
            key, _, value = part.partition(b"=")
            if part:
                pairs.append((_decode(key), _decode(value)))
    except UnicodeDecodeError:
        raise InvalidRequest([Problem(("query",), "expected UTF-8", "unicode_error")]) from None
    return pairs


def _decode(raw: bytes) -> str:
    if b"+" in raw or b"%" in raw:
        raw = unquote_to_bytes(raw.replace(b"+", b" "))
    return raw.decode()


class HTTPConnection:
    """The part of a request that a WebSocket has too.

    Dependencies may set attributes of ``state``, for the handler to read.
    """

    __slots__ = ("_headers", "_query", "_state", "path_params", "scope")

    def __init__(self, scope: Scope, *, path_params: Mapping[str, str]) -> None:
        self.scope = scope
        self.path_params = path_params
        self._query: QueryParams | None = None
        self._headers: Headers | None = None
        self._state: SimpleNamespace | None = None

    @property
    def path(self) -> str:
        """The decoded path."""
        return str(self.scope["path"])

    @property
    def url(self) -> str:
        """Scheme, host, path and query as the client sent them.

        The host is taken from the ``Host`` header, which a client can choose freely.
        """
        scope = self.scope
        raw = scope.get("raw_path") or scope["path"].encode()
        query = scope.get("query_string", b"")
        tail = raw.split(b"?", 1)[0] + (b"?" + query if query else b"")
        return f"{scope.get('scheme', 'http')}://{self.headers.get('host', '')}{tail.decode('latin-1')}"

    @property
    def client(self) -> Address | None:
        """The address of the client, as a trusted proxy reports it or as the connection has it."""
        client = self.scope.get("client")
        return Address(client[0], client[1] or 0) if client else None

    @property
    def query(self) -> QueryParams:
        """The parameters of the query; ``query_params`` is the same."""
        if self._query is None:
            self._query = QueryParams(parse_query(self.scope.get("query_string", b"")))
        return self._query

    query_params = query

    @property
    def headers(self) -> Headers:
        """The headers, by name in any case."""
        if self._headers is None:
            pairs = [
                (k.decode("latin-1").lower(), v.decode("latin-1")) for k, v in self.scope.get("headers", ())
            ]
            self._headers = Headers(pairs)
        return self._headers

    @property
    def cookies(self) -> dict[str, str]:
        """The values of the cookies by name."""
        return parse_cookies(self.headers.getlist("cookie"))

    @property
    def state(self) -> SimpleNamespace:
        """Free attributes that last for the request."""
        if self._state is None:
            self._state = SimpleNamespace()
        return self._state


def parse_cookies(headers: list[str]) -> dict[str, str]:
    """Return the values of cookies by name.

    If a name occurs twice the first value counts: browsers send the cookie with the more specific path first.
    """
    cookies: dict[str, str] = {}
    for header in headers:
        for part in header.split(";"):
            name, _, value = part.strip().partition("=")
            if name:
                quoted = len(value) > 1 and value[0] == value[-1] == '"'
                cookies.setdefault(name, value[1:-1] if quoted else value)
    return cookies
