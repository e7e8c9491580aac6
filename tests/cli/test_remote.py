"""How a command finds its server, and to which servers it sends the operator's token."""

from __future__ import annotations

import json
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tangram.cli.remote import Unreachable, find_server
from tangram.config import load_config
from tangram.errors import ConfigError

TLS = Path(__file__).parents[1] / "http" / "tls"
SECRET = "0123456789abcdef" * 4


def environ(tmp_path: Path, config: str = "", **more: str) -> dict[str, str]:
    file = tmp_path / "tangram.toml"
    file.write_text(config)
    state = tmp_path / "state" / "tangram"
    state.mkdir(parents=True, exist_ok=True)
    (state / "operator-token").write_text(SECRET)
    return {
        "TANGRAM_CONFIG": str(file),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "HOME": str(tmp_path),
        **more,
    }


@pytest.mark.parametrize(
    ("config", "url", "unix"),
    [
        ("", "http://127.0.0.1:2346", None),
        ('[server]\nhost = "0.0.0.0"\nport = 81', "http://127.0.0.1:81", None),
        ('[server]\nhost = "::1"', "http://[::1]:2346", None),
        ('[server]\nhost = "unix:/run/t.sock"', "http://127.0.0.1:2346", "/run/t.sock"),
        ('[server]\nhost = ["maps.example", "127.0.0.1"]', "http://maps.example:2346", None),
    ],
)
def test_the_configuration_names_the_server(tmp_path: Path, config: str, url: str, unix: str | None) -> None:
    """Without ``--url`` the server is that of the configuration, with the token of its state folder."""
    server = find_server(environ=environ(tmp_path, config))

    assert (server.url, server.unix, server.token) == (url, unix, SECRET)


def test_the_option_wins_over_the_variable(tmp_path: Path) -> None:
    """``--url``, then ``TANGRAM_URL``, then the configuration."""
    given = environ(tmp_path, TANGRAM_URL="http://localhost:1/")

    assert find_server(environ=given).url == "http://localhost:1"
    assert find_server("http://localhost:2", environ=given).url == "http://localhost:2"


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://127.0.0.1:9", True),
        ("http://localhost", True),
        ("https://maps.example", True),
        ("https://evil.example", False),
        ("http://192.0.2.7:2346", False),
    ],
)
def test_the_token_of_the_state_folder_stays_at_home(tmp_path: Path, url: str, sent: bool) -> None:
    """Another server could use the token against this one; a token that is named for it is sent."""
    given = environ(tmp_path, '[server]\nhosts = ["maps.example"]')

    assert find_server(url, environ=given).token == (SECRET if sent else None)
    named = find_server(url, environ={**given, "TANGRAM_OPERATOR_TOKEN": "named"})
    assert named.token == "named"
    assert "named" not in repr(named)


def test_a_configured_token_is_used(tmp_path: Path) -> None:
    """``[server] operator_token`` wins over the file, as in the server."""
    given = environ(tmp_path, '[server]\noperator_token = "configured-token-of-ours"')

    assert find_server(environ=given).token == "configured-token-of-ours"


def test_a_missing_state_folder_is_not_made(tmp_path: Path) -> None:
    """A command that only looks leaves nothing behind; it runs without a token."""
    given = {**environ(tmp_path), "XDG_STATE_HOME": str(tmp_path / "none")}

    assert find_server(environ=given).token is None
    assert not (tmp_path / "none").exists()


def test_a_free_port_needs_a_url(tmp_path: Path) -> None:
    """With port 0 the configuration does not know the port."""
    with pytest.raises(ConfigError, match="TANGRAM_URL"):
        find_server(environ=environ(tmp_path, "[server]\nport = 0"))


def test_options_of_serve_replace_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--host``, ``--port`` and ``--log-level`` are laid over file and environment."""
    from click.testing import CliRunner

    from tangram.cli.main import cli

    words = ["serve", "--host", "::1", "--port", "7", "--log-level", "debug", "--open"]
    given: dict[str, Any] = {}

    def serve(_config_file: object, **options: Any) -> int:
        given.update(options)
        return 3

    monkeypatch.setattr("tangram.cli.serving.serve_until_stopped", serve)
    # It sets the handlers of signals for good.
    monkeypatch.setattr("tangram.cli.main.prepare_server", lambda: None)
    result = CliRunner().invoke(cli, words)
    config = load_config(None, given["overrides"]).config

    assert result.exit_code == 3
    assert (config.server.host, config.server.port, config.core.log_level) == ("::1", 7, "debug")
    assert given["open_page"] is True


class Answers(BaseHTTPRequestHandler):
    """Answers every request with the path and the token that it received."""

    def do_GET(self) -> None:
        body = json.dumps({"path": self.path, "token": self.headers.get("authorization")}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return "local"


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_unix_socket_is_reached(tmp_path: Path) -> None:
    """The first address of ``[server] host`` may be a Unix socket."""
    path = tmp_path / "t.sock"
    given = environ(tmp_path, f'[server]\nhost = "unix:{path}"')
    with serving(socketserver.UnixStreamServer(str(path), Answers)):
        answer = find_server(environ=given).get("/-/topics")

    assert answer == {"path": "/-/topics", "token": f"Bearer {SECRET}"}


def test_the_configured_certificate_is_trusted_and_no_other(tmp_path: Path) -> None:
    """A server with a certificate of its own is reached by its configuration; by a URL it must be trusted."""
    server = HTTPServer(("127.0.0.1", 0), Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    files = f'tls_cert = "{TLS / "cert.pem"}"\ntls_key = "{TLS / "key.pem"}"'
    given = environ(tmp_path, f"[server]\nport = {server.server_port}\n{files}")
    with serving(server):
        answer = find_server(environ=given).get("/x")
        with pytest.raises(Unreachable, match="certificate"):
            find_server(f"https://127.0.0.1:{server.server_port}", environ=given).get("/x")

    assert answer["path"] == "/x"


def test_a_server_of_another_kind_is_told_apart(tmp_path: Path) -> None:
    """An answer that is not JSON is no tangram server."""

    class Page(Answers):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

    server = HTTPServer(("127.0.0.1", 0), Page)
    with serving(server), pytest.raises(Unreachable, match="expected a tangram server"):
        find_server(f"http://127.0.0.1:{server.server_port}", environ=environ(tmp_path)).get("/-/topics")


def test_faults_of_options_name_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong option of ``serve`` is reported once, under its own name."""
    from tangram.cli.serving import serve_until_stopped

    monkeypatch.setenv("TANGRAM_CONFIG", environ(tmp_path)["TANGRAM_CONFIG"])
    given = {"TANGRAM_CORE__LOG_LEVEL": "loud", "TANGRAM_LOG__LEVEL": "loud", "TANGRAM_SERVER__HOST": "a b"}
    with pytest.raises(ConfigError) as raised:
        serve_until_stopped(None, overrides=given)

    text = str(raised.value)
    assert text.count("(from --log-level)") == 1
    assert text.count("got 'a b'") == 1
    assert "(from --host)" in text
    assert "TANGRAM_" not in text
