from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tangram.asgi import Receive, Scope, Send
from tangram.config.model import Config
from tangram.http.engine import ClientGone
from tangram.plugins.plugin import Plugin
from tangram.plugins.state import BackendState
from tangram.routing import APIRouter, RouteTable
from tests.plugins.fakes import loaded
from tests.web.asgi import FakeOperator, call, site_of


def plugin_with_route(path: str = "/demo/hello", max_body: int | None = None, **settings: Any) -> Plugin:
    router = APIRouter()

    @router.get(path, max_body=max_body)
    async def hello(state: BackendState) -> dict[str, object]:
        return {"url": state.base_url}

    return Plugin(routers=[router], **settings)


async def test_a_plugins_route_answers_with_the_state_injected() -> None:
    """A plugin's router is mounted, and BackendState is injected by its type."""
    site = site_of(loaded(plugin_with_route()))

    answer = await call(site, "GET", "/demo/hello")
    assert (answer.status, answer.json()) == (200, {"url": "http://127.0.0.1:2346"})


async def test_an_unknown_path_is_a_json_404() -> None:
    """An unknown path is answered as existing clients expect."""
    answer = await call(site_of(), "GET", "/nowhere")
    assert (answer.status, answer.json()) == (404, {"detail": "Not Found"})


async def test_options_of_the_whole_server_is_answered() -> None:
    """``OPTIONS *`` is answered with 204 and the methods that routes may have."""
    answer = await call(site_of(), "OPTIONS", "*")

    assert (answer.status, answer.body) == (204, b"")
    assert "GET" in answer.headers["allow"]


async def test_the_page_is_served_at_the_root() -> None:
    """/ and /index.html are our page, /static/ its files."""
    site = site_of()

    for path in ["/", "/index.html"]:
        answer = await call(site, "GET", path)
        assert answer.status == 200, path
        assert answer.headers["content-type"].startswith("text/html")
    assert (await call(site, "GET", "/static/index.html")).status == 200
    assert (await call(site, "GET", "/static/%2e%2e/site.py")).status == 404
    assert (await call(site, "POST", "/")).status == 405


async def test_a_folder_of_the_operators_is_served_at_the_root(tmp_path: Path) -> None:
    """With [server] frontend set to a folder, its files are the root's, and routes still win."""
    (tmp_path / "index.html").write_text("mine")
    (tmp_path / "core.js").write_text("js")
    (tmp_path / "manifest.json").write_text("no")
    from tangram.config.model import ServerConfig

    site = site_of(config=Config(server=ServerConfig(frontend=str(tmp_path))))

    assert (await call(site, "GET", "/")).body == b"mine"
    assert (await call(site, "GET", "/core.js")).body == b"js"
    assert (await call(site, "GET", "/manifest.json")).body != b"no"
    assert (await call(site, "GET", "/missing.js")).json() == {"detail": "Not Found"}


async def test_a_plugin_that_is_down_answers_503_on_its_routes() -> None:
    """Its routes say why, with Retry-After; the others' go on, and unknown paths stay unknown."""
    operator = FakeOperator(down={"demo": "plugin 'demo' is restarting"})
    site = site_of(
        loaded(plugin_with_route()), loaded(plugin_with_route("/other"), "other"), operator=operator
    )

    answer = await call(site, "GET", "/demo/hello")
    assert (answer.status, answer.json()) == (503, {"detail": "plugin 'demo' is restarting"})
    assert answer.headers["retry-after"] == "1"
    assert (await call(site, "GET", "/other")).status == 200
    assert (await call(site, "GET", "/nowhere")).status == 404
    operator.down.clear()
    assert (await call(site, "GET", "/demo/hello")).status == 200


async def test_a_route_that_another_plugin_has_is_reported_and_the_first_wins() -> None:
    """Two plugins with one path: the first one's answers, the second one is named in failures."""
    site = site_of(loaded(plugin_with_route()), loaded(plugin_with_route(), "second"))

    assert (await call(site, "GET", "/demo/hello")).status == 200
    assert list(site.failures) == ["second"]
    assert "/demo/hello" in site.failures["second"]


async def test_a_plugin_cannot_take_the_operators_routes() -> None:
    """The server's own routes come first."""
    site = site_of(loaded(plugin_with_route("/-/healthz")))

    assert (await call(site, "GET", "/-/healthz")).json() == {"status": "ok"}
    assert "demo" in site.failures


async def test_a_route_is_matched_once_and_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine's question for the limit and the answer of the site share one match."""
    matched: list[str] = []
    real = RouteTable.match

    def counted(table: RouteTable, method: str, path: str, raw_path: bytes | None = None) -> object:
        matched.append(path)
        return real(table, method, path, raw_path)

    monkeypatch.setattr(RouteTable, "match", counted)
    plugin = plugin_with_route(max_body=64_000_000)
    site = site_of(loaded(plugin), operator=FakeOperator(down={"other": "it restarts"}))

    async def engine(scope: Scope, receive: Receive, send: Send) -> None:
        assert site.body_limit(scope) == 64_000_000
        await site(scope, receive, send)

    assert (await call(engine, "GET", "/demo/hello")).status == 200
    assert matched == ["/demo/hello"]


async def test_openapi_shows_native_routes() -> None:
    """One /openapi.json describes the server's routes and the plugins'."""
    answer = await call(site_of(loaded(plugin_with_route())), "GET", "/openapi.json")

    from openapi_spec_validator import validate

    document = answer.json()
    validate(document)
    assert {"/demo/hello", "/-/readyz", "/manifest.json", "/settings/validate/{plugin}"} <= set(
        document["paths"]
    )


async def test_the_lifespan_is_empty() -> None:
    """An engine that speaks lifespan is answered; nothing hangs on it."""
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await site_of()({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_a_websocket_without_quart_is_refused() -> None:
    """Where nothing serves WebSockets the handshake is refused, not left hanging."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await site_of()({"type": "websocket", "path": "/ws", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_an_unknown_scope_is_an_error() -> None:
    """A scope type that ASGI does not define raises."""
    with pytest.raises(NotImplementedError, match="'smtp'"):
        await site_of()({"type": "smtp"}, None, None)  # type: ignore[arg-type]


async def test_head_is_answered_on_every_route_that_has_get() -> None:
    """Native routes, files and applications that know GET only answer HEAD, with headers and no body."""

    class GetOnly:
        """An application of a plugin whose routes know GET alone, as FastAPI's do."""

        owner = "demo"
        problems: ClassVar[list[str]] = []

        def match(self, scope: Scope) -> bool | None:
            return None if not scope["path"].startswith("/only") else scope["method"] == "GET"

        def body_limit(self, scope: Scope) -> int:
            return 0

        def openapi(self) -> dict[str, Any]:
            return {"paths": {}}

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-method", b"GET")]})
            part = {"type": "http.response.body", "body": b"part", "more_body": True}
            with suppress(ClientGone):
                while True:
                    await send(part)

    site = site_of(apps=[GetOnly()])
    for path in ("/", "/-/healthz", "/openapi.json", "/docs", "/manifest.json", "/only/this"):
        answer = await call(site, "HEAD", path)
        assert (answer.status, answer.body) == (200, b""), path
