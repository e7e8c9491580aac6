"""Below a path of its host the server works whether the proxy cuts the path or passes it on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tangram.asgi import Receive, Scope, Send, send_json
from tangram.client import fetch_token, open_socket
from tangram.config.load import load_tables
from tangram.config.model import Config
from tangram.errors import ConfigError
from tangram.plugins.plugin import Plugin
from tangram.routing import APIRouter
from tangram.testing import open_tangram
from tests.plugins.fakes import loaded
from tests.web.asgi import Answer, call, site_of, with_frontend

ROOT = "/tools/tangram"


def config(root: str = ROOT) -> Config:
    return load_tables({"server": {"root_path": root}}).config


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await send_json(scope, send, 200, {"path": scope["path"], "root": scope["root_path"]})


def make_plugin() -> Plugin:
    router = APIRouter(prefix="/things")

    @router.get("/{name}")
    async def thing(name: str) -> str:
        return name

    others = APIRouter()

    @others.get("/all/")
    async def listed() -> list[str]:
        return []

    others.mount("/mounted", echo)
    return Plugin(routers=[router, others])


@pytest.mark.parametrize("prefix", ["", ROOT], ids=["cut", "passed"])
@pytest.mark.parametrize(
    "path",
    ["/", "/static/app.js", "/docs", "/docs/swagger-ui.css", "/openapi.json", "/-/healthz", "/things/a%2Fb"],
)
async def test_every_path_is_served_below_the_root(prefix: str, path: str) -> None:
    """A proxy may cut the root, or pass the path on as the browser sent it."""
    site = site_of(loaded(make_plugin()), config=config())

    assert (await call(site, "GET", prefix + path)).status == 200


async def test_front_ends_are_served_below_the_root(tmp_path: Path) -> None:
    """A plugin's files are where the manifest says."""
    site = site_of(with_frontend(tmp_path, described={"main": "index.js"}), config=config())

    assert (await call(site, "GET", f"{ROOT}/plugins/tangram_demo/index.js")).status == 200


async def test_addresses_of_the_server_contain_the_root() -> None:
    """The channels' URL of the manifest, redirects, and the servers of the OpenAPI document."""
    site = site_of(loaded(make_plugin()), config=config())

    async def get(path: str) -> Answer:
        return await call(site, "GET", path)

    manifest, document = (await get("/manifest.json")).json(), (await get("/openapi.json")).json()
    assert manifest["core"]["config"]["channel"]["url"] == f"http://127.0.0.1:2346{ROOT}"
    assert document["servers"] == [{"url": ROOT}]
    for prefix in ("", ROOT):
        assert (await get(f"{prefix}/all")).headers["location"] == f"{ROOT}/all/"
        mounted = (await get(f"{prefix}/mounted/deep")).json()
        assert mounted == {"path": f"{ROOT}/mounted/deep", "root": f"{ROOT}/mounted"}
    opened = await get(f"{ROOT}?a=1")
    assert (opened.status, opened.headers["location"]) == (307, f"{ROOT}/?a=1")


@pytest.mark.parametrize("path", ["/tools/tangramx/docs", "/tools/tangram/tools/tangram/docs", "/tools"])
async def test_only_whole_segments_are_cut_and_only_once(path: str) -> None:
    """A longer name is another path."""
    assert (await call(site_of(config=config()), "GET", path)).status == 404


async def test_pages_name_no_absolute_path() -> None:
    """Links, scripts and styles of the built-in pages are relative, so that any root works."""
    site = site_of()
    for path in ("/", "/docs", "/docs/tangram-docs.js", "/static/app.js", "/static/style.css"):
        text = (await call(site, "GET", path)).body.decode()
        for mark in ('="/', "url(/", 'fetch("/', 'json("/', "json(`/"):
            assert mark not in text, (path, mark)


@pytest.mark.parametrize("root", ["tangram", "/a b", "/a//b", "https://x/y", "/a?b"])
def test_a_root_is_a_path(root: str) -> None:
    """Anything else is a fault at its setting."""
    with pytest.raises(ConfigError, match=r"server\.root_path"):
        config(root)


def test_a_slash_at_the_end_changes_nothing() -> None:
    """``/tangram/`` is ``/tangram``, and ``/`` is no root."""
    assert config("/tangram/").server.root_path == "/tangram"
    assert config("/").server.root_path == ""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["native", "hypercorn"])
async def test_channels_and_tokens_work_below_the_root(engine: str) -> None:
    """On both engines: token, WebSocket, LongPoll, a route, and the body limit of a route."""
    settings: Mapping[str, Any] = {"server": {"root_path": ROOT, "engine": engine, "max_body": 1000}}
    async with open_tangram([make_plugin()], settings) as running:
        for base in (running.url, running.url + ROOT):
            token = await fetch_token(base, "demo")
            async with open_socket(base) as socket:
                channel = await socket.join("demo", token=token.token)
                await channel.leave()
            polled = await running.http.get(f"{base}/longpoll?vsn=2.0.0")
            refused = await running.http.post(f"{base}/token", content=b"x" * 2000)
            greeted = (await running.http.get(f"{base}/things/ann")).json()
            assert (polled.json()["status"], refused.status_code, greeted) == (410, 413, "ann")
    assert json.dumps(ROOT) not in str(running.logs)
