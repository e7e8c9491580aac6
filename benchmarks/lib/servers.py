"""The measured servers: tangram, the published tangram-core, and other frameworks."""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.lib.processes import (
    CPUS,
    GIVE_UP,
    ROOT,
    SERVER_CPU,
    Process,
    Valkey,
    free_port,
    make_environment,
    wait_for_port,
)

PLUGIN = ROOT / "benchmarks" / "plugin"
FASTAPI = ("fastapi", "uvicorn", "uvloop", "httptools", "orjson")
PEERS = ("blacksheep", "litestar", "robyn", "granian", "uvicorn", "uvloop", "httptools")
CORE = "tangram-core-venv"
"""The environment of PyPI's tangram-core, as ``pip install tangram-core`` makes it."""


class Server:
    """A server with a broker of its own."""

    def __init__(self, name: str, process: Process, port: int, valkey: Valkey | None = None) -> None:
        self.name = name
        self.process = process
        self.port = port
        """The port of its HTTP routes; for a published tangram-core, that of its channels."""
        self.valkey = valkey

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def redis_port(self) -> int:
        assert self.valkey is not None
        return self.valkey.port

    def token(self, topic: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        body = json.dumps({"channel": topic})
        connection.request("POST", "/token", body, {"content-type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
        token: str = answer["token"]
        return token

    def end(self) -> None:
        self.process.end()
        if self.valkey is not None:
            self.valkey.end()


def environ_of(folder: Path, **more: str) -> Mapping[str, str]:
    names = ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    own = {name: str(folder / name.lower()) for name in names}
    return {"PATH": os.environ["PATH"], "HOME": str(folder), **own, **more}


UNLIMITED = (
    "upgrade_burst = 100000\njoin_burst = 100000\ntoken_burst = 100000\n"
    "idle_timeout = 3600\nping_interval = 3600\n"
)
"""Settings of ``[channel]`` for many clients on one address, without heartbeats and pings."""


def start_tangram(
    folder: Path,
    engine: str = "native",
    *,
    routes: bool = False,
    plugin: str = "",
    channel: str = UNLIMITED,
    workers: int = 1,
    by_socket: bool = False,
) -> Server:
    """Start ``python -m tangram serve`` with an external broker and no access log.

    It reaches the broker by its port, or ``by_socket`` as it reaches an embedded one.

    ``channel`` holds lines of TOML for ``[channel]``, ``plugin`` names a module of ``benchmarks/plugin``.
    More than one worker may use all processors.
    """
    plugin = plugin or ("tangram_bench" if routes else "")
    folder = folder / (f"tangram-{engine}" if workers == 1 else f"tangram-{workers}-workers")
    folder.mkdir(parents=True, exist_ok=True)
    if plugin:
        _install_plugin(folder, "tangram", plugin)
    plugins = [plugin] if plugin else []
    return _start_ours(
        folder, Path(sys.executable), engine, plugins, channel, workers=workers, by_socket=by_socket
    )


def start_bare_node(folder: Path, name: str, valkey: Valkey, rules: str = "") -> Server:
    """Start one of several nodes on a Redis, without plugins; ``rules`` holds ``[[channel.presence]]``."""
    folder = folder / f"node-{name}"
    folder.mkdir()
    channel = f'{UNLIMITED}jwt_secret = "one for all nodes, long enough"\n{rules}[cluster]\nnode = "{name}"\n'
    server = _start_ours(folder, Path(sys.executable), "native", [], channel, valkey=valkey)
    server.valkey = None  # it outlives its nodes
    return server


def start_existing(folder: Path, engine: str = "native") -> Server:
    """Start this server with a plugin for tangram-core, in an environment that has FastAPI."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = make_environment("existing-venv", "tangram-core", *project["dependencies"])
    folder = folder / f"existing-{engine}"
    folder.mkdir(parents=True, exist_ok=True)
    _install_plugin(folder, "tangram_core", "existing_bench")
    return _start_ours(folder, python, engine, ["existing_bench"])


def start_node(folder: Path, valkey: Valkey, node: str) -> Server:
    """Start one of several nodes on a Redis; the plugin of the routes runs on one of them at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    _install_plugin(folder, "tangram", "tangram_bench")
    more = (
        f'jwt_secret = "the same secret on every node of the benchmark"\n[cluster]\nnode = "{node}"\n'
        '[plugins.tangram_bench]\ninstances = "one"\n'
    )
    return _start_ours(folder, Path(sys.executable), "native", ["tangram_bench"], more, valkey=valkey)


def _install_plugin(folder: Path, group: str, module: str) -> None:
    """Write the metadata by which a server finds the plugin of ``benchmarks/plugin/MODULE.py``."""
    metadata = folder / f"{module}-0.1.0.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}.plugins]\n{module} = {module}:plugin\n")


def _start_ours(
    folder: Path,
    python: Path,
    engine: str,
    plugins: list[str],
    channel: str = UNLIMITED,
    *,
    workers: int = 1,
    valkey: Valkey | None = None,
    by_socket: bool = False,
) -> Server:
    """Start a server, on a Redis of its own unless one is given."""
    valkey, port = valkey or Valkey(folder), free_port()
    url = f"unix://{valkey.socket}" if by_socket else valkey.url
    config = folder / "tangram.toml"
    config.write_text(
        f'[core]\nplugins = {json.dumps(plugins)}\nredis_url = "{url}"\n[server]\nport = {port}\n'
        f'workers = {workers}\nengine = "{engine}"\nmax_connections_per_address = 0\n[channel]\n{channel}'
    )
    path = os.pathsep.join(map(str, (folder, PLUGIN, ROOT / "src")))
    command = [str(python), "-m", "tangram", "serve", "--config", str(config)]
    cpus = SERVER_CPU if workers == 1 else ",".join(map(str, CPUS))
    process = Process(command, cpus=cpus, environ=environ_of(folder, PYTHONPATH=path), log=folder / "log")
    wait_for_port(port, process)
    _wait_ready(port)
    return Server(folder.name, process, port, valkey)


def _wait_ready(port: int) -> None:
    until = time.monotonic() + GIVE_UP
    while time.monotonic() < until:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/-/readyz")
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status == http.HTTPStatus.OK:
            return
        time.sleep(0.05)
    sys.exit("tangram was not ready in time")


def start_published(folder: Path) -> Server:
    """Start PyPI's tangram-core; only its command, configuration and sockets are used."""
    return _start_published(folder / "tangram-core", make_environment(CORE, "tangram-core"))


def start_published_plugin(folder: Path, *, parser: str = "h11") -> Server:
    """Start PyPI's tangram-core with an existing plugin, with the parser that uvicorn finds installed."""
    python = make_environment(CORE, "tangram-core")
    if parser == "httptools":
        python = make_environment(f"{CORE}-httptools", "tangram-core", "httptools")
    return _start_published(folder / f"tangram-core-{parser}", python, "existing_bench")


def _start_published(folder: Path, python: Path, plugin: str | None = None) -> Server:
    folder.mkdir(parents=True, exist_ok=True)
    if plugin is not None:
        _install_plugin(folder, "tangram_core", plugin)
    valkey, port, channel = Valkey(folder), free_port(), free_port()
    config = folder / "tangram.toml"
    plugins = json.dumps([plugin] if plugin else [])
    config.write_text(
        f'[core]\nplugins = {plugins}\nredis_url = "{valkey.url}"\nlog_level = "WARNING"\n'
        f"[server]\nport = {port}\n"
        f'[channel]\nport = {channel}\njwt_secret = "a secret of the benchmark, long enough"\n'
    )
    # By its Python, because the first line of the command names the place where the environment was made.
    command = [str(python), str(python.parent / "tangram"), "serve", "--config", str(config)]
    path = os.pathsep.join(map(str, (folder, PLUGIN)))
    process = Process(command, environ=environ_of(folder, PYTHONPATH=path), log=folder / "log")
    used = channel if plugin is None else port
    wait_for_port(used, process)
    return Server(folder.name, process, used, valkey)


def start_fastapi(folder: Path, loop: str, parser: str) -> Server:
    """Start FastAPI on uvicorn: ``loop`` and ``parser`` are uvicorn's --loop and --http."""
    python = make_environment("bench-venv", *FASTAPI)
    port = free_port()
    return _start_peer(
        folder, f"fastapi-{loop}-{parser}", _uvicorn(python, "fastapi_app", port, loop, parser), port
    )


def start_on_uvicorn(folder: Path, app: str) -> Server:
    """Start ``benchmarks/plugin/APP.py`` on uvicorn with uvloop and httptools, its fastest."""
    python = make_environment("bench-peers-venv", *PEERS)
    port = free_port()
    return _start_peer(folder, app, _uvicorn(python, app, port, "uvloop", "httptools"), port)


def start_robyn(folder: Path) -> Server:
    """Start Robyn with one process and one worker."""
    python = make_environment("bench-peers-venv", *PEERS)
    port = free_port()
    command = [str(python), str(PLUGIN / "robyn_app.py"), "--port", str(port)]
    return _start_peer(folder, "robyn", command, port)


def start_granian(folder: Path) -> Server:
    """Start a bare ASGI application on granian with one worker."""
    python = make_environment("bench-peers-venv", *PEERS)
    port = free_port()
    command = [
        *(str(python), "-m", "granian", "asgi_app:app", "--interface", "asgi", "--port", str(port)),
        *("--workers", "1", "--loop", "uvloop", "--no-log", "--working-dir", str(PLUGIN)),
    ]
    return _start_peer(folder, "granian", command, port)


def _uvicorn(python: Path, app: str, port: int, loop: str, parser: str) -> list[str]:
    return [
        *(str(python), "-m", "uvicorn", f"{app}:app", "--app-dir", str(PLUGIN), "--port", str(port)),
        *("--loop", loop, "--http", parser, "--no-access-log", "--log-level", "warning"),
    ]


def _start_peer(folder: Path, name: str, command: Sequence[str], port: int) -> Server:
    folder = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    process = Process(command, environ=environ_of(folder), log=folder / "log")
    wait_for_port(port, process)
    return Server(name, process, port)
