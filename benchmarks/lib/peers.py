"""Other message servers: ``ws`` on Node, NATS, nchan and Mosquitto.

``ws`` speaks Phoenix and gets its messages from Redis, as the servers of ``servers`` do. The others have
their own protocols: a client sends a greeting in place of a join, and messages come from a publisher of that
protocol.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from benchmarks.lib.loads import PATH
from benchmarks.lib.processes import CACHE, ROOT, NotInstalled, Process, Valkey, free_port, wait_for_port
from benchmarks.lib.servers import Server

__all__ = ["NPM", "Peer", "send_payloads", "start_mosquitto", "start_nats", "start_nchan", "start_ws"]

NPM: Final = ("ws@8", "ioredis@5")
"""Packages of ``ws_server.cjs``."""
SIZE_BYTES: Final = 65_536
"""Bytes that are read from a publisher's connection at once."""


class Peer(Server):
    """A server with the protocol of its clients and of its publisher."""

    def __init__(
        self, name: str, process: Process, port: int, publish_port: int, valkey: Valkey | None = None
    ) -> None:
        super().__init__(name, process, port, valkey)
        self.publish_port = publish_port

    path = PATH
    """The path of the WebSocket; ``%`` for that of the topic."""
    greeting = "-"
    """The token argument of ``clients.c``."""

    def token(self, topic: str) -> str:  # noqa: ARG002 - no token is checked
        return "unchecked"

    def lines(self, count: int) -> str:
        """Return the topics and tokens of ``count`` clients, one in each line."""
        return "".join(f"t{number} unchecked\n" for number in range(count))

    def encode(self, topic: str, payload: bytes) -> bytes:
        """Return the bytes that publish a message."""
        raise NotImplementedError

    hello = b""
    """Bytes that begin a publisher's connection."""
    answers = False
    """Whether each message is answered, and must be before the next one."""


class Nats(Peer):
    path = "/"
    greeting = "=" + b"PONG".hex()
    hello = b'CONNECT {"verbose":false,"pedantic":false}\r\n'

    def token(self, topic: str) -> str:
        return (b'CONNECT {"verbose":false}\r\nSUB %b 1\r\nPING\r\n' % topic.encode()).hex()

    def lines(self, count: int) -> str:
        return "".join(f"t{number} {self.token(f't{number}')}\n" for number in range(count))

    def encode(self, topic: str, payload: bytes) -> bytes:
        return b"PUB %b %d\r\n%b\r\n" % (topic.encode(), len(payload), payload)


def _mqtt(kind: int, body: bytes) -> bytes:
    """Return an MQTT packet: its kind, the length in groups of seven bits, the body."""
    length, size = b"", len(body)
    while True:
        size, low = divmod(size, 128)
        length += bytes([low | 0x80 if size else low])
        if not size:
            return bytes([kind]) + length + body


def _mqtt_text(text: str) -> bytes:
    return len(text).to_bytes(2, "big") + text.encode()


def _mqtt_connect(name: str) -> bytes:
    return _mqtt(0x10, _mqtt_text("MQTT") + b"\x04\x02\x00\x00" + _mqtt_text(name))


class Mosquitto(Peer):
    path = "/"
    greeting = "mqtt=" + b"\x90\x03\x00\x01\x00".hex()
    hello = _mqtt_connect("publisher")

    def lines(self, count: int) -> str:
        lines = []
        for number in range(count):
            subscribe = _mqtt(0x82, b"\x00\x01" + _mqtt_text(f"t{number}") + b"\x00")
            lines.append(f"t{number} {(_mqtt_connect(f'client{number}') + subscribe).hex()}\n")
        return "".join(lines)

    def encode(self, topic: str, payload: bytes) -> bytes:
        return _mqtt(0x30, _mqtt_text(topic) + payload)


class Nchan(Peer):
    path = "%"
    greeting = "="
    answers = True

    def lines(self, count: int) -> str:
        return "".join(f"/sub/t{number} -\n" for number in range(count))

    def encode(self, topic: str, payload: bytes) -> bytes:
        return b"POST /pub/%b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (
            topic.encode(),
            len(payload),
            payload,
        )


def send_payloads(
    server: Peer, topic: str, rate: float, payloads: Iterator[Callable[[], bytes]], *, topics: int = 1
) -> None:
    """Publish messages ``rate`` a second.

    Args:
        server: the peer.
        topic: with ``{}`` for the number of the topic.
        rate: messages a second.
        payloads: functions that make a message at the moment at which it is sent.
        topics: the number of topics, which take turns.
    """
    with socket.create_connection(("127.0.0.1", server.publish_port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if server.hello:
            connection.sendall(server.hello)
            connection.recv(SIZE_BYTES)
        began = time.monotonic()
        for number, payload in enumerate(payloads):
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            connection.sendall(server.encode(topic.format(number % topics), payload()))
            if server.answers:
                connection.recv(SIZE_BYTES)
        time.sleep(0.1)  # so that the server has read everything before the end of the connection


def _find(program: str, package: str) -> str:
    found = shutil.which(program, path="/usr/sbin:/usr/bin:/usr/local/bin")
    if found is None:
        raise NotInstalled(f"{program} is not installed: apt-get install {package}")
    return found


def _folder(folder: Path, name: str) -> Path:
    folder = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def start_ws(folder: Path) -> Peer:
    """Start ``peers/ws_server.cjs`` with a broker of its own."""
    folder = _folder(folder, "ws")
    node, modules = _find("node", "nodejs"), CACHE / "bench-npm" / "node_modules"
    if not (modules / "ioredis").exists():
        modules.parent.mkdir(parents=True, exist_ok=True)
        install = [_find("npm", "npm"), "install", "--silent", "--prefix", str(modules.parent), *NPM]
        if subprocess.run(install, check=False).returncode:
            raise NotInstalled(f"npm cannot install {' '.join(NPM)}")
    valkey, port = Valkey(folder), free_port()
    script = ROOT / "benchmarks" / "peers" / "ws_server.cjs"
    process = Process([node, str(script), str(modules), str(port), str(valkey.port)], log=folder / "log")
    wait_for_port(port, process)
    return Peer("ws", process, port, valkey.port, valkey)


def _start(
    kind: type[Peer], folder: Path, name: str, command: list[str], *, port: int, publish_port: int
) -> Peer:
    process = Process(command, log=folder / "log")
    wait_for_port(port, process)
    wait_for_port(publish_port, process)
    return kind(name, process, port, publish_port)


def start_nats(folder: Path) -> Peer:
    """Start Debian's nats-server, whose clients speak NATS over a WebSocket."""
    folder, port, publish_port = _folder(folder, "nats"), free_port(), free_port()
    config = folder / "nats.conf"
    config.write_text(
        f'host: "127.0.0.1"\nport: {publish_port}\n'
        f'websocket {{ host: "127.0.0.1", port: {port}, no_tls: true, compression: false }}\n'
    )
    command = [_find("nats-server", "nats-server"), "-c", str(config)]
    return _start(Nats, folder, "NATS", command, port=port, publish_port=publish_port)


def start_mosquitto(folder: Path) -> Peer:
    """Start Debian's Mosquitto, whose clients speak MQTT over a WebSocket."""
    folder, port, publish_port = _folder(folder, "mosquitto"), free_port(), free_port()
    config = folder / "mosquitto.conf"
    config.write_text(
        f"listener {publish_port} 127.0.0.1\nlistener {port} 127.0.0.1\nprotocol websockets\n"
        "allow_anonymous true\nset_tcp_nodelay true\nmax_queued_messages 0\nlog_type error\n"
    )
    command = [_find("mosquitto", "mosquitto"), "-c", str(config)]
    return _start(Mosquitto, folder, "Mosquitto", command, port=port, publish_port=publish_port)


NGINX: Final = """\
load_module /usr/lib/nginx/modules/ngx_nchan_module.so;
daemon off;
master_process off;
worker_rlimit_nofile 40000;
pid {folder}/pid;
error_log {folder}/error crit;
events {{ worker_connections 30000; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    client_max_body_size 2m;
    client_body_buffer_size 1m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    nchan_max_reserved_memory 512m;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        nchan_subscriber_first_message newest;
        location ~ /sub/(\\w+)$ {{ nchan_subscriber websocket; nchan_channel_id $1; }}
        location ~ /pub/(\\w+)$ {{ nchan_publisher; nchan_channel_id $1; nchan_message_buffer_length 5; }}
    }}
}}
"""


def start_nchan(folder: Path) -> Peer:
    """Start Debian's nginx with nchan, in one process."""
    folder, port = _folder(folder, "nchan"), free_port()
    if not Path("/usr/lib/nginx/modules/ngx_nchan_module.so").exists():
        raise NotInstalled("nchan is not installed: apt-get install libnginx-mod-nchan")
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port))
    command = [_find("nginx", "nginx"), "-c", str(config), "-e", str(folder / "error")]
    return _start(Nchan, folder, "nchan", command, port=port, publish_port=port)
