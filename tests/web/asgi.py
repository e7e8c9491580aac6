"""Calls of ASGI applications without a server, and the parts that a site needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import trio

from tangram.asgi import ASGIApp, Message
from tangram.config.model import Config
from tangram.errors import BrokerUnavailable, NoSuchChild
from tangram.gateway.tails import Tails
from tangram.history import Published
from tangram.metrics.moment import Moment
from tangram.plugins.plugin import Plugin
from tangram.plugins.registry import LoadedPlugin
from tangram.web.site import Site, SiteParts, build_site
from tests.metrics.moments import moment
from tests.plugins.fakes import make_state

TOKEN = "the-operator's-token"


@attrs.frozen
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def call(
    app: ASGIApp,
    method: str,
    target: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    client: tuple[str, int] = ("127.0.0.1", 50000),
    scheme: str = "http",
) -> Answer:
    """One request; ``target`` is a path as a client writes it, escapes included."""
    path, _, query = target.partition("?")
    from urllib.parse import unquote

    given = {"host": "127.0.0.1:2346", **(headers or {})}
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": scheme,
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(k.encode(), v.encode()) for k, v in given.items()],
        "client": client,
        "server": ("127.0.0.1", 2346),
    }
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await trio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)

    await app(scope, receive, send)
    start = sent[0]
    assert sent[-1].get("more_body", False) is False
    lines = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], lines, b"".join(one.get("body", b"") for one in sent[1:]))


@attrs.define
class FakeOperator:
    """A running server, as the routes see it."""

    stopping: bool = False
    reasons: Sequence[str] = ()
    tree: Mapping[str, Any] = attrs.field(factory=dict)
    listed: Sequence[Mapping[str, Any]] = ()
    down: dict[str, str] = attrs.field(factory=dict)
    restarted: list[str] = attrs.field(factory=list)
    failure: Exception | None = None
    tails: Tails = attrs.field(factory=Tails)
    listed_topics: Sequence[Mapping[str, Any]] | None = ()
    published: list[tuple[str, bytes]] = attrs.field(factory=list)
    redis_away: bool = False
    websockets: dict[str, set[trio.CancelScope]] = attrs.field(factory=dict)

    def nodes(self) -> list[dict[str, Any]]:
        return []

    async def move_plugin(self, name: str, to: str) -> dict[str, Any]:
        raise NoSuchChild(f"no plugin called {name!r}, to {to!r}")

    def websockets_of(self, plugin: str) -> set[trio.CancelScope]:
        return self.websockets.setdefault(plugin, set())

    async def wait_available(self, plugin: str) -> str | None:
        await trio.lowlevel.checkpoint()
        return self.down.get(plugin)

    def is_stopping(self) -> bool:
        return self.stopping

    def readiness(self) -> tuple[bool, Sequence[str]]:
        return not self.reasons, self.reasons

    def supervision(self) -> Mapping[str, Any]:
        return self.tree

    def plugins(self) -> Sequence[Mapping[str, Any]]:
        return self.listed

    def moment(self) -> Moment:
        return moment()

    async def restart_plugin(self, name: str, *, reload: bool = False) -> None:
        if name not in {one["name"] for one in self.listed}:
            raise NoSuchChild(name)
        if self.failure is not None:
            raise self.failure
        self.restarted.append(name)

    def unavailable(self) -> Mapping[str, str]:
        return self.down

    def topics(self) -> Sequence[Mapping[str, Any]] | None:
        return self.listed_topics

    async def publish(self, channel: str, payload: bytes) -> Published:
        await trio.lowlevel.checkpoint()
        if self.redis_away:
            raise BrokerUnavailable("redis is away")
        self.published.append((channel, payload))
        return Published(1, "k3f9.7")


def site_of(
    *plugins: LoadedPlugin, config: Config | None = None, operator: FakeOperator | None = None, **parts: Any
) -> Site:
    state = make_state(config)
    return build_site(
        SiteParts(
            config=config or Config(),
            control=operator or FakeOperator(),
            operator_token=TOKEN,
            state=lambda: state,
            plugins=plugins,
            **parts,
        )
    )


def with_frontend(
    folder: Path, plugin: Plugin | None = None, name: str = "demo", described: object = None, **more: Any
) -> LoadedPlugin:
    """A plugin whose front end lies in ``folder``/dist."""
    from tests.plugins.fakes import loaded

    plugin = plugin or Plugin()
    plugin.frontend_path = "dist"
    dist = folder / "dist"
    dist.mkdir(exist_ok=True)
    (dist / "index.js").write_text("export function install() {}\n")
    if described is not None:
        (dist / "plugin.json").write_text(json.dumps(described))
    return loaded(plugin, name, source=folder, **more)
