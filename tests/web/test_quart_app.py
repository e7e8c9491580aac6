from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import structlog.testing
import trio
import trio.lowlevel
from quart import Blueprint, Quart, abort, request

from tangram.asgi import Message
from tangram.plugins.plugin import Plugin
from tests.plugins.fakes import loaded
from tests.web.asgi import FakeOperator, call, site_of


def blueprint(name: str = "demo") -> Blueprint:
    made = Blueprint(name, __name__, url_prefix=f"/{name}")

    @made.get("/hello")
    async def hello() -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        return {"hello": name}

    @made.post("/echo")
    async def echo() -> bytes:
        data = await request.get_data()
        assert isinstance(data, bytes)
        return data

    @made.get("/boom")
    async def boom() -> str:
        raise ValueError("a secret")

    @made.get("/teapot")
    async def teapot() -> str:
        abort(418, "short and stout")

    return made


async def test_a_blueprint_answers() -> None:
    """A plugin's Quart blueprint is served, bodies included."""
    site = site_of(loaded(Plugin(blueprints=[blueprint()])))

    assert (await call(site, "GET", "/demo/hello")).json() == {"hello": "demo"}
    assert (await call(site, "POST", "/demo/echo", body=b"abc")).body == b"abc"
    assert site.failures == {}


async def test_errors_of_pages_are_json_without_traceback() -> None:
    """Errors are JSON; an exception shows an id, and its text is in the log only."""
    site = site_of(loaded(Plugin(blueprints=[blueprint()])))

    assert (await call(site, "GET", "/nowhere")).json() == {"detail": "Not Found"}
    wrong = await call(site, "DELETE", "/demo/hello")
    assert (wrong.status, wrong.json()) == (405, {"detail": "Method Not Allowed"})
    assert "GET" in wrong.headers["allow"]
    assert (await call(site, "GET", "/demo/teapot")).json() == {"detail": "short and stout"}
    broken = await call(site, "GET", "/demo/boom")
    assert broken.status == 500
    assert broken.json()["detail"] == "internal error"
    assert len(broken.json()["id"]) == 12
    assert b"secret" not in broken.body


async def test_a_failing_blueprint_leaves_out_its_plugin_only() -> None:
    """A registration that fails half-way leaves nothing behind; the others are served."""
    bad = blueprint("bad")

    def fail(state: object) -> None:
        raise RuntimeError("not like this")

    bad.record(fail)
    site = site_of(loaded(Plugin(blueprints=[bad]), "bad"), loaded(Plugin(blueprints=[blueprint()])))

    assert "RuntimeError: not like this" in site.failures["bad"]
    assert (await call(site, "GET", "/bad/hello")).status == 404
    assert (await call(site, "GET", "/demo/hello")).status == 200


async def test_two_blueprints_of_one_name() -> None:
    """The second plugin with a blueprint of the same name is told so."""
    plugins = [loaded(Plugin(blueprints=[blueprint()]), name) for name in ("first", "second")]
    site = site_of(*plugins)

    assert list(site.failures) == ["second"]


async def test_the_same_blueprint_is_registered_in_each_incarnation() -> None:
    """A site is built anew each time, from the same plugin objects."""
    one = loaded(Plugin(blueprints=[blueprint()]))
    for _ in range(2):
        assert (await call(site_of(one), "GET", "/demo/hello")).status == 200


async def test_a_plugin_that_is_down_answers_503() -> None:
    """Blueprints of a plugin that does not run say so."""
    operator = FakeOperator(down={"demo": "plugin 'demo' is quarantined"})
    site = site_of(loaded(Plugin(blueprints=[blueprint()])), operator=operator)

    answer = await call(site, "GET", "/demo/hello")
    assert (answer.status, answer.json()) == (503, {"detail": "plugin 'demo' is quarantined"})
    assert answer.headers["retry-after"] == "1"


async def test_native_routes_do_not_pass_through_quart() -> None:
    """A native route wins over a blueprint with the same path."""
    made = Blueprint("greedy", __name__)

    @made.get("/-/healthz")
    async def healthz() -> str:
        return "quart"

    site = site_of(loaded(Plugin(blueprints=[made])))
    assert (await call(site, "GET", "/-/healthz")).json() == {"status": "ok"}


async def test_background_tasks_are_refused_by_name() -> None:
    """They would die unseen: the plugin is told to make them services."""
    made = Blueprint("tasks", __name__)

    async def lost() -> None: ...

    made.record(lambda state: cast("Quart", state.app).add_background_task(lost))
    site = site_of(loaded(Plugin(blueprints=[made])))

    assert "background task 'lost'" in site.failures["demo"]
    assert "register_service" in site.failures["demo"]


@pytest.mark.parametrize("hook", ["before_app_serving", "after_app_serving", "while_app_serving"])
async def test_serving_functions_are_logged_and_never_called(hook: str) -> None:
    """Serving functions of a blueprint are named in the log and never called."""
    made, ran = blueprint(), []

    @getattr(made, hook)  # type: ignore[untyped-decorator]
    async def lost() -> AsyncIterator[None]:
        ran.append(hook)
        yield

    with structlog.testing.capture_logs() as lines:
        site = site_of(loaded(Plugin(blueprints=[made])))
        answer = await call(site, "GET", "/demo/hello")

    event = "serving functions of a blueprint are never called"
    assert [line["plugin"] for line in lines if line["event"] == event] == ["demo"]
    assert (answer.status, ran, site.failures) == (200, [], {})


@pytest.mark.parametrize("early", [True, False])
async def test_a_complete_response_is_not_cancelled_by_the_disconnect(
    autojump_clock: object, early: bool
) -> None:
    """A complete response is finished although the engine reports a disconnect.

    A client that disconnects before cancels the handler.
    """
    made = Blueprint("slow", __name__)
    finished: list[str] = []

    @made.get("/slow")
    async def slow() -> str:
        await trio.sleep(5)
        finished.append("handler")
        return "answer"

    site = site_of(loaded(Plugin(blueprints=[made])))
    gone = trio.Event()
    first: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if first:
            return first.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            # The engine knows that the response is complete, tells so, and has something left to do.
            gone.set()
            await trio.sleep(1)
            finished.append("engine")

    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/slow",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
    }
    if early:
        gone.set()
    await site(scope, receive, send)
    assert finished == ([] if early else ["handler", "engine"])


@pytest.mark.slow
async def test_without_blueprints_quart_is_not_imported() -> None:
    """A server without blueprints and hooks does not pay for Quart, nor for httpx."""
    code = "import sys, tangram.web.site; print('quart' in sys.modules, 'httpx' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = await trio.run_process([sys.executable, "-c", code], capture_stdout=True, env=env)

    assert done.stdout.split() == [b"False", b"False"]
