"""A running server, as commands reach it: its URL, the token, and plain HTTP.

1. The URL is that of ``--url``, else of ``TANGRAM_URL``, else of the configuration.
2. The token is that of ``TANGRAM_OPERATOR_TOKEN``, else that of the configuration or its state folder. The
   latter is sent only to this machine and to the hosts of the configuration, because another server must not
   learn it.
3. The standard library is the client, so that every installation has the commands.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import attrs

from tangram.config import Config, current_folder, find_config_file, find_operator_token, load_config
from tangram.config.listen import UNIX, first_name, split_hosts
from tangram.errors import ConfigError, Fault, OperatorError

__all__ = ["RequestFailed", "ServerAddress", "TokenRefused", "Unreachable", "find_server"]

CONNECT_TIMEOUT: Final = 5.0
"""Seconds to connect, and to wait for an answer that is at hand."""

RESTART_TIMEOUT: Final = 120.0
"""Seconds for the restart of a plugin: its start times are configured, 30 s for each part by default."""

TAIL_TIMEOUT: Final = 45.0
"""Seconds without a line after which a server counts as gone: it sends an empty one every 15 s."""


class RequestFailed(OperatorError):
    """The server refused a request, or it failed there; exit status 1."""


class Unreachable(OperatorError):
    """No server answers at the URL; exit status 69, EX_UNAVAILABLE of BSD's sysexits."""

    exit_status = 69


class TokenRefused(OperatorError):
    """The operator's token is missing or wrong; exit status 77, EX_NOPERM of BSD's sysexits."""

    exit_status = 77


@attrs.frozen
class ServerAddress:
    """The address of a server, and the token that it accepts."""

    url: str
    """``http://127.0.0.1:2346``, also for a Unix socket."""
    token: str | None = attrs.field(default=None, repr=False)
    unix: str | None = None
    """The path of the Unix socket that leads to it."""
    tls: ssl.SSLContext | None = None

    def get(self, path: str) -> Any:
        """Return the JSON of a GET request."""
        status, answer = self.request("GET", path)
        return self._checked(status, answer)

    def post(self, path: str, content: object = None, *, timeout: float = CONNECT_TIMEOUT) -> Any:
        """Return the JSON of a POST request."""
        status, answer = self.request("POST", path, content, timeout=timeout)
        return self._checked(status, answer)

    def request(
        self, method: str, path: str, content: object = None, *, timeout: float = CONNECT_TIMEOUT
    ) -> tuple[int, Any]:
        """Send a request, and return status and JSON of any answer.

        Raises:
            Unreachable: there is no answer, or it is not JSON.
        """
        with self._open(method, path, content, timeout) as response:
            text = response.read()
        try:
            return response.status, json.loads(text)
        except ValueError:
            raise Unreachable(
                f"{self.url}{path} answered status {response.status} without JSON; expected a tangram server"
            ) from None

    def lines(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield the JSON objects of a streamed answer until the server ends it.

        Raises:
            Unreachable: the connection is lost.
        """
        with self._open("GET", path, None, TAIL_TIMEOUT) as response:
            if response.status != 200:
                self._checked(response.status, json.loads(response.read() or b"{}"))
            while line := response.readline():
                if line.strip():
                    yield json.loads(line)

    @contextmanager
    def _open(
        self, method: str, path: str, content: object, timeout: float
    ) -> Iterator[http.client.HTTPResponse]:
        parts = urlsplit(self.url)
        body = None if content is None else json.dumps(content).encode()
        headers = {"accept": "application/json", "content-type": "application/json"}
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token}"
        connection = self._connection(timeout)
        try:
            connection.request(method, parts.path.rstrip("/") + path, body, headers)
            yield connection.getresponse()
        except ssl.SSLCertVerificationError as error:
            raise Unreachable(
                f"the certificate of {self.url} is not trusted ({error.verify_message}); name the server by "
                "its --config, or its authority by SSL_CERT_FILE"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Unreachable(
                f"no server answers at {self.unix or self.url} ({reason.lower()}); "
                "start it with `tangram serve`, or name another one with --url"
            ) from None
        finally:
            connection.close()

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        host = parts.hostname or "127.0.0.1"
        if self.unix is not None:
            return _UnixConnection(self.unix, timeout)
        if parts.scheme == "https":
            return http.client.HTTPSConnection(host, parts.port, timeout=timeout, context=self.tls)
        return http.client.HTTPConnection(host, parts.port, timeout=timeout)

    def _checked(self, status: int, answer: Any) -> Any:
        """Return an answer of success; raise the error of any other."""
        if status < 400:
            return answer
        if status == 401:
            raise TokenRefused(self._token_advice())
        if status == 404 and answer == {"detail": "Not Found"}:
            raise RequestFailed(f"{self.url} has no such route; expected a tangram server of this version")
        raise RequestFailed(_reason(answer) or f"{self.url} answered status {status}")

    def _token_advice(self) -> str:
        if self.token is None:
            return (
                f"{self.url} asks for the operator's token, and none was found: run the command as the "
                "account of the server, with its --config, or set TANGRAM_OPERATOR_TOKEN"
            )
        return f"{self.url} refuses the operator's token; expected that of the state folder of this server"


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _reason(answer: Any) -> str:
    """Return the text of an error answer; every fault of a list, as *what @ path*."""
    if not isinstance(answer, dict):
        return ""
    detail = answer.get("detail", "")
    if isinstance(detail, list):
        faults = [f"{one.get('msg')} @ {'.'.join(map(str, one.get('loc', ())))}" for one in detail]
        return "; ".join(faults)
    cause = answer.get("cause")
    return f"{detail}: {cause}" if cause else str(detail)


def find_server(
    url: str | None = None, config_file: Path | None = None, environ: Mapping[str, str] = os.environ
) -> ServerAddress:
    """Find the server of a command.

    Args:
        url: the value of ``--url``.
        config_file: the value of ``--config``.
        environ: the environment.

    Raises:
        ConfigError: the configuration has faults, or the URL is none.
    """
    named = url or environ.get("TANGRAM_URL")
    path = find_config_file(config_file, environ, current_folder())
    config = load_config(path, environ).config
    token = environ.get("TANGRAM_OPERATOR_TOKEN") or None
    if named is None:
        return _configured(config, token or find_operator_token(config, environ))
    parts = _checked_url(named)
    # The state folder belongs to the configured server. A program on this machine, or one of its own names,
    # may have its token; any other server could use it against this one.
    if token is None and _is_own(parts.hostname or "", config):
        token = find_operator_token(config, environ)
    return ServerAddress(named.rstrip("/"), token)


def _configured(config: Config, token: str | None) -> ServerAddress:
    server = config.server
    hosts = split_hosts(server.host)
    name = first_name(server.host)
    scheme = "https" if server.tls_cert else "http"
    address = f"[{name}]" if ":" in name else name
    unix = hosts[0].removeprefix(UNIX) if hosts[0].startswith(UNIX) else None
    if unix is None and server.port == 0:
        what = "the server takes a free port, which is in its log: expected --url or TANGRAM_URL to name it"
        raise ConfigError([Fault(what, "server.port", "no_port")])
    tls = None
    if server.tls_cert is not None:
        # Exactly this certificate is expected; its names are those of the public host, not of loopback.
        tls = ssl.create_default_context(cafile=str(server.tls_cert))
        tls.check_hostname = False
        tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return ServerAddress(f"{scheme}://{address}:{server.port}", token, unix, tls)


def _checked_url(url: str) -> SplitResult:
    parts = None
    with suppress(ValueError):
        parts = urlsplit(url)
        parts = parts if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 else None
    if parts is None:
        what = f"expected a URL as in http://127.0.0.1:2346, got {url!r}"
        raise ConfigError([Fault(what, "--url", "url")], about="command line")
    return parts


def _is_own(host: str, config: Config) -> bool:
    from tangram.web.addresses import Addresses

    return Addresses.of(config).is_ours(host)
