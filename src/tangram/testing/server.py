"""A whole server in the test's own loop: broker, ports and state folder of its own, and a clean end."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tangram.app import Boot, Server
from tangram.app.server import answer_old_names
from tangram.config import Loaded as LoadedConfig
from tangram.config import load_config
from tangram.plugins import Plugin
from tangram.plugins.registry import Loaded, LoadedPlugin, load_plugins
from tangram.supervision import SupervisionEvent
from tangram.testing.faults import FaultPorts, InjectedFault

if TYPE_CHECKING:
    import httpx

    from tangram.client import ClientSocket

__all__ = ["RunningTangram", "free_port", "open_tangram"]

STOP_SECONDS = 15.0
"""For the whole end of a server under test: the default shutdown_timeout and half of it again."""

EVENT_SECONDS = 10.0
"""How long a test waits for an event that must come."""


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RunningTangram:
    """A server under test."""

    def __init__(self, server: Server, ports: FaultPorts, http: httpx.AsyncClient) -> None:
        self.server = server
        self.http = http
        """An httpx client whose base is the server."""
        self.events: list[SupervisionEvent] = []
        """Every event of the tree, from the first start."""
        self._ports = ports
        self._changed = trio.Event()
        self._ended = trio.Event()
        self.status = 0
        """The exit status, once it has ended."""

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return self.server.base_url

    @property
    def operator(self) -> dict[str, str]:
        """The header that proves to be the operator."""
        assert self.server.tree is not None
        return {"authorization": f"Bearer {self.server.tree.secrets.operator}"}

    @property
    def redis_url(self) -> str:
        """Where this server's Redis is."""
        assert self.server.tree is not None
        return self.server.tree.url

    def note(self, event: SupervisionEvent) -> None:
        """Remember an event; waiters look again."""
        self.events.append(event)
        self._changed.set()
        self._changed = trio.Event()

    def crash(self, child: str, error: BaseException | None = None) -> None:
        """Raise an exception inside a child: ``bus``, ``web``, ``channels``, ``broker``, ``plugin:NAME``.

        Returns at once.
        """
        self._ports.strike(child, error or InjectedFault(f"a test crashed {child!r}"))

    async def wait_event(
        self, kind: str, child: str | None = None, *, after: int = 0, seconds: float = EVENT_SECONDS
    ) -> SupervisionEvent:
        """The first event of ``kind`` (and of ``child``) among ``events[after:]``, waited for if need be.

        Raises:
            AssertionError: it did not come in time; the message tells what came instead.
        """
        with trio.move_on_after(seconds):
            while True:
                for event in self.events[after:]:
                    if event.kind == kind and child in {None, event.child}:
                        return event
                await self._changed.wait()
        came = [f"{event.kind} {event.child}" for event in self.events[after:]]
        raise AssertionError(f"no {kind!r} of {child!r} within {seconds} s; what came was {came}")

    async def wait_ready(self, count: int, *, seconds: float = EVENT_SECONDS) -> None:
        """Until the server has become ready for the ``count``-th time."""
        with trio.move_on_after(seconds):
            while self.server.ready_count < count:
                await self._changed.wait()
            return
        raise AssertionError(f"ready {self.server.ready_count} times within {seconds} s, expected {count}")

    async def wait_ended(self) -> int:
        """Until the server has ended by itself; its exit status."""
        await self._ended.wait()
        return self.status

    async def serve(self, *, task_status: trio.TaskStatus[Server]) -> None:
        """Run the server; ``open_tangram`` does this."""
        try:
            self.status = await self.server.run(task_status=task_status)
        finally:
            self._ended.set()

    @asynccontextmanager
    async def open_socket(self, **settings: Any) -> AsyncIterator[ClientSocket]:
        """A channel client, connected to ``/websocket``; ``settings`` as for
        ``tangram.client.open_socket``.
        """
        from tangram.client import open_socket

        async with open_socket(self.url, **settings) as client:
            yield client


@asynccontextmanager
async def open_tangram(
    plugins: Iterable[Plugin | str] = (),
    config: Mapping[str, Any] | None = None,
    *,
    wrap: Callable[..., Any] | None = None,
) -> AsyncIterator[RunningTangram]:
    """Run a server until the end of the block.

    Args:
        plugins: ``Plugin`` objects (called ``plugin``, ``plugin_2``, ... unless their ``name`` is set), or
        names of installed ones.
        config: tables and keys as in ``tangram.toml``; ports and folders are chosen unless given.
        wrap: applied to each child of the tree, inside the fault port.
    """
    import httpx

    with tempfile.TemporaryDirectory(prefix="tangram-test-") as folder:
        ports = FaultPorts()
        loaded = _configure(config or {}, Path(folder))
        boot = Boot(
            loaded=loaded,
            environ={"HOME": folder},
            plugins=_load(plugins),
            signals=False,
            wrap=ports.wrap if wrap is None else lambda child: ports.wrap(wrap(child)),
        )
        server = Server(boot)
        async with trio.open_nursery() as nursery:
            async with httpx.AsyncClient(timeout=10.0) as http:
                running = RunningTangram(server, ports, http)
                server.ledger.listen(running.note)
                await nursery.start(running.serve)
                http.base_url = httpx.URL(server.base_url)
                try:
                    yield running
                finally:
                    server.stop()
                    nursery.cancel_scope.deadline = trio.current_time() + STOP_SECONDS


def _configure(tables: Mapping[str, Any], folder: Path) -> LoadedConfig:
    """The configuration as an operator would have written it: the same checks, the same faults."""
    chosen: dict[str, dict[str, Any]] = {
        "server": {"port": 0, "state_dir": str(folder / "state")},
        "broker": {"port": 0},
    }
    for table, values in tables.items():
        chosen[table] = chosen.get(table, {}) | dict(values)
    file = folder / "tangram.toml"
    file.write_text(_toml(chosen))
    return load_config(file, {"HOME": str(folder)})


def _toml(tables: Mapping[str, Any]) -> str:
    """Tables as TOML: an inline value is written as JSON, which TOML reads alike for what is used here."""
    lines = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {_value(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    import json

    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


def _load(plugins: Iterable[Plugin | str]) -> Loaded:
    loaded = Loaded()
    for number, one in enumerate(plugins, 1):
        if isinstance(one, str):
            found = load_plugins([one], on_foreign=answer_old_names)
            loaded.plugins.extend(found.plugins)
            loaded.failures.extend(found.failures)
            continue
        name = one.name or ("plugin" if number == 1 else f"plugin_{number}")
        one.name = name
        one.dist_name = one.dist_name or name
        loaded.plugins.append(LoadedPlugin(name, one.dist_name, one, module="", entry_point=""))
    return loaded
