"""The routes of the console, and the attacks on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import pytest
import trio

from tangram.console.access import CHANGE_HEADER, OperatorAccess
from tangram.console.attempts import MAX_WRONG
from tangram.console.live import MAX_STREAMS, LiveStreams
from tangram.console.routes import console_router
from tangram.errors import BrokerUnavailable, NoSuchChild
from tangram.gateway.tails import Tails
from tangram.history import Published
from tangram.metrics.pictures import Pictures
from tangram.web.site import Site
from tests.web.asgi import TOKEN, Answer, call, site_of

BEARER = {"authorization": f"Bearer {TOKEN}"}
OWN = {"origin": "http://127.0.0.1:2346"}
JSON = {"content-type": "application/json"}
FAR = ("198.51.100.7", 4000)
CHANGES = [
    ("POST", "/-/console/plugins/demo/restart", b""),
    ("POST", "/-/console/plugins/demo/stop", b""),
    ("DELETE", "/-/console/connections/abc", b""),
    ("POST", "/-/console/publish", b'{"topic": "map", "event": "moved", "payload": {"x": 1}}'),
    ("DELETE", "/-/session", b""),
]


@attrs.define
class FakeControl:
    """A server that notes what it was asked to do."""

    done: list[Any] = attrs.Factory(list)
    pictures: Pictures = attrs.Factory(Pictures)
    tails: Tails = attrs.Factory(Tails)
    listed: Sequence[Mapping[str, Any]] = ()

    def overview(self) -> Mapping[str, Any]:
        return {"ready": True}

    def tree_view(self) -> Mapping[str, Any]:
        return {"tree": None}

    def topics(self) -> Sequence[Mapping[str, Any]] | None:
        return self.listed

    def histories(self) -> Sequence[Mapping[str, Any]]:
        return [{"pattern": "past:*", "mode": "stream", "size": 5, "ttl": 300.0}]

    async def kept(self, topic: str) -> Mapping[str, Any] | None:
        await trio.lowlevel.checkpoint()
        if topic == "away":
            raise BrokerUnavailable("redis is away")
        return None if topic == "map" else {"messages": [{"event": "moved", "payload": 1}]}

    def connections(self, limit: int) -> Sequence[Any]:
        return []

    def plugin_views(self) -> Sequence[Mapping[str, Any]]:
        return []

    def settings_view(self) -> Sequence[Mapping[str, Any]]:
        return []

    def page_folder(self, plugin: str) -> None:
        return None

    def disconnect(self, conn: str) -> bool:
        self.done.append(("disconnect", conn))
        return True

    async def publish(self, channel: str, payload: bytes) -> Published:
        self.done.append((channel, json.loads(payload)))
        return Published(1, "k3f9.7")

    async def restart_plugin(self, name: str) -> None:
        if name != "demo":
            raise NoSuchChild(name)
        self.done.append(("restart", name))

    async def stop_plugin(self, name: str) -> None:
        self.done.append(("stop", name))

    async def wait_event(self) -> None:
        await trio.sleep_forever()


@attrs.define
class Console:
    """A site with a console, and a browser that is logged in."""

    control: FakeControl
    access: OperatorAccess
    streams: LiveStreams
    site: Site
    cookie: str = ""
    key: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"cookie": self.cookie, CHANGE_HEADER: self.key, **OWN, **JSON}

    async def login(self, given: Mapping[str, str], **more: Any) -> Answer:
        headers = {**JSON, **OWN, **more.pop("headers", {})}
        return await call(
            self.site, "POST", "/-/session", headers=headers, body=json.dumps(given).encode(), **more
        )


def make() -> Console:
    control, access, streams = FakeControl(), OperatorAccess(TOKEN), LiveStreams()
    site = site_of(access=access, routers=[console_router(control, access, streams)])
    return Console(control, access, streams, site)


@pytest.fixture
async def console() -> Console:
    console = make()
    answer = await console.login({"token": TOKEN})
    assert answer.status == 200
    console.cookie = answer.headers["set-cookie"].partition(";")[0]
    console.key = answer.json()["change_key"]
    return console


async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites() -> None:
    """HttpOnly, SameSite=Strict, and only for the operator's routes; Secure where the page is."""
    console = make()
    cookie = (await console.login({"token": TOKEN})).headers["set-cookie"]
    secure = (await console.login({"token": TOKEN}, scheme="https")).headers["set-cookie"]

    assert {"HttpOnly", "SameSite=strict", "Path=/-"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert "Secure" in secure.split("; ")
    assert TOKEN not in cookie


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
async def test_a_change_with_session_and_key_is_made(
    console: Console, method: str, path: str, body: bytes
) -> None:
    """The page can make every change."""
    answer = await call(console.site, method, path, headers=console.headers, body=body)

    assert answer.status == 200, answer.body
    assert console.control.done or path == "/-/session"


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
@pytest.mark.parametrize("key", [None, "", "wrong", "the-cookie"])
async def test_a_stolen_cookie_reads_and_changes_nothing(
    console: Console, method: str, path: str, body: bytes, key: str | None
) -> None:
    """Without the session's key, which only the login's answer has, a request is refused (CSRF too)."""
    headers = {**console.headers, CHANGE_HEADER: console.cookie if key == "the-cookie" else key or ""}
    if key is None:
        del headers[CHANGE_HEADER]
    answer = await call(console.site, method, path, headers=headers, body=body)

    assert answer.status == 403
    assert console.control.done == []
    assert (await call(console.site, "GET", "/-/session", headers=headers)).status == 200


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
@pytest.mark.parametrize(
    "page",
    [
        {"origin": "https://attacker.example"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:2346", "sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:2346", "sec-fetch-site": "same-site"},
    ],
)
async def test_a_page_of_another_origin_changes_nothing(
    console: Console, method: str, path: str, body: bytes, page: dict[str, str]
) -> None:
    """Not even with cookie and key; another port of this host is another origin."""
    answer = await call(console.site, method, path, headers={**console.headers, **page}, body=body)

    assert answer.status == 403
    assert console.control.done == []


async def test_below_a_prefix_the_cookie_and_the_redirect_have_it() -> None:
    """A browser behind a proxy with a prefix sends the cookie only to paths below it."""
    control, access = FakeControl(), OperatorAccess(TOKEN, "/tangram")
    site = site_of(access=access, routers=[console_router(control, access, LiveStreams())])
    headers = {**JSON, **OWN}
    body = json.dumps({"token": TOKEN}).encode()
    login = await call(site, "POST", "/-/session", headers=headers, body=body)
    led = await call(site, "GET", "/-/supervision", headers={"accept": "text/html"})

    assert "Path=/tangram/-" in login.headers["set-cookie"].split("; ")
    assert led.headers["location"] == "/tangram/-/#/tree"


async def test_a_page_of_another_origin_cannot_log_in(console: Console) -> None:
    """Else it could put the operator into a session of its own."""
    answer = await console.login({"token": TOKEN}, headers={"origin": "https://attacker.example"})

    assert answer.status == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "body"), [*CHANGES, ("GET", "/-/live/tree", b""), ("GET", "/-/session", b"")]
)
async def test_nothing_is_open_without_a_session(method: str, path: str, body: bytes) -> None:
    """Neither loopback nor a made-up cookie is enough."""
    console = make()
    name = console.access.sessions.cookie_name
    for cookie in ("", f"{name}=1.2.3", f"{name}="):
        headers = {"cookie": cookie, CHANGE_HEADER: "x", **OWN, **JSON}
        assert (await call(console.site, method, path, headers=headers, body=body)).status == 401
    assert console.control.done == []


async def test_five_wrong_tokens_a_minute_from_one_address() -> None:
    """Then the right one is refused, too, by login and by header; another address may go on."""
    console = make()
    wrong = [await console.login({"token": f"guess {number}"}) for number in range(MAX_WRONG)]
    right = await console.login({"token": TOKEN})
    bearer = await call(console.site, "GET", "/-/supervision", headers=BEARER)
    code = await console.login({"code": console.access.sessions.new_code() + "x"})

    assert {answer.status for answer in wrong} == {401}
    assert (right.status, bearer.status, code.status) == (429, 429, 429)
    assert 0 < int(right.headers["retry-after"]) <= 60
    assert (await console.login({"token": TOKEN}, client=FAR)).status == 200


async def test_wrong_tokens_in_headers_count_too() -> None:
    """The header is no way around the bound."""
    console = make()
    for number in range(MAX_WRONG):
        headers = {"authorization": f"Bearer guess-{number}"}
        assert (await call(console.site, "GET", "/-/plugins", headers=headers)).status == 200

    assert (await call(console.site, "GET", "/-/plugins", headers=BEARER)).status == 429
    assert (await console.login({"token": TOKEN})).status == 429


@pytest.mark.parametrize("path", ["/-/", "/-/session", "/-/live/tree", "/-/supervision"])
async def test_a_rebound_name_reads_nothing(console: Console, path: str) -> None:
    """A page that makes its own name point to this server gets no answer, whatever it sends."""
    headers = {**console.headers, "host": "attacker.example:2346", "origin": "http://attacker.example:2346"}
    answer = await call(console.site, "GET", path, headers=headers)

    assert answer.status == 421
    assert (await console.login({"token": TOKEN}, headers={"host": "attacker.example"})).status == 421


async def test_a_page_of_another_origin_cannot_read_with_the_cookie(console: Console) -> None:
    """Credentials are not offered to other origins: a browser keeps the answer from the page."""
    headers = {"cookie": console.cookie, "origin": "http://localhost:5173"}
    answer = await call(console.site, "GET", "/-/supervision", headers=headers)

    assert "access-control-allow-credentials" not in answer.headers


async def test_a_session_reads_details(console: Console) -> None:
    """The cookie shows to the browser everything that the token shows to programs."""
    assert (await call(console.site, "GET", "/-/metrics", headers={"cookie": console.cookie})).status == 200


async def test_a_logout_ends_the_session(console: Console) -> None:
    """The cookie is worth nothing afterwards."""
    answer = await call(console.site, "DELETE", "/-/session", headers=console.headers)

    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert (await call(console.site, "GET", "/-/session", headers={"cookie": console.cookie})).status == 401


async def test_a_code_logs_in_once() -> None:
    """The command gets it with the token; a session cannot make one."""
    console = make()
    code = (await call(console.site, "POST", "/-/session/code", headers=BEARER)).json()["code"]

    assert (await console.login({"code": code})).status == 200
    assert (await console.login({"code": code})).status == 401
    refused = await call(console.site, "POST", "/-/session/code", headers={"cookie": "x=y"})
    assert refused.status == 401


async def test_the_page_and_its_files_have_a_strict_policy() -> None:
    """Nothing inline, nothing from elsewhere, in no frame; files are kept a year under a hashed name."""
    site = make().site
    page = await call(site, "GET", "/-/")
    folder = page.body.partition(b'src="static/')[2].partition(b"/")[0].decode()
    script = await call(site, "GET", f"/-/static/{folder}/main.js")

    for answer in (page, script):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cache-control"] == "no-cache"
    assert "max-age=31536000" in script.headers["cache-control"]
    assert b"style=" not in page.body
    assert b"<style" not in page.body
    for path in (
        f"/-/static/{folder}/nothing.js",
        "/-/static/0000/main.js",
        f"/-/static/{folder}/index.html",
    ):
        assert (await call(site, "GET", path)).status == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}, 303),
        ({"accept": "text/html", "sec-fetch-mode": "navigate"}, 303),
        ({"accept": "*/*"}, 200),
        ({"accept": "application/json"}, 200),
        ({"accept": "application/json, text/html;q=0.5"}, 200),
        ({}, 200),
    ],
)
async def test_a_browser_is_led_to_the_console_and_a_program_gets_json(
    headers: dict[str, str], status: int
) -> None:
    """``/-/supervision`` answers both."""
    answer = await call(make().site, "GET", "/-/supervision", headers=headers)

    assert answer.status == status
    if status == 303:
        assert answer.headers["location"] == "/-/#/tree"
    assert answer.headers["vary"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"topic": "", "event": "x"}',
        b'{"topic": "a", "event": "b:c"}',
        b'{"topic": 1, "event": 2}',
    ],
)
async def test_a_message_that_cannot_be_published_is_refused(console: Console, body: bytes) -> None:
    """With 422, and nothing is published."""
    answer = await call(console.site, "POST", "/-/console/publish", headers=console.headers, body=body)

    assert answer.status == 422
    assert console.control.done == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/-/console/plugins/none/restart"),
        ("POST", "/-/console/plugins/demo/burn"),
        ("GET", "/-/live/none"),
    ],
)
async def test_unknown_names_are_404(console: Console, method: str, path: str) -> None:
    """Plugins, actions and pages."""
    assert (await call(console.site, method, path, headers=console.headers)).status == 404


async def test_the_number_of_streams_is_bounded(console: Console) -> None:
    """A browser cannot open any number of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console.streams, "_scopes", set(range(MAX_STREAMS)))
        answer = await call(console.site, "GET", "/-/live/tree", headers=console.headers)

    assert answer.status == 503
    assert "retry-after" in answer.headers
