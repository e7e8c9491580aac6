from __future__ import annotations

from typing import Any

import pytest

from tangram.asgi import Scope
from tangram.config.model import Config, ServerConfig
from tangram.web.cors import PLAIN, sending
from tests.web.asgi import call, site_of

GOOD = "http://localhost:5173"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}


@pytest.mark.parametrize("origin", [GOOD, "http://127.0.0.1:1", "https://[::1]:8443"])
async def test_an_allowed_origin_is_echoed(origin: str) -> None:
    """Pages of loopback may read our answers: the origin is echoed, with Vary."""
    answer = await call(site_of(), "GET", "/-/healthz", headers={"origin": origin})

    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    "origin", ["null", "https://attacker.example", "http://localhost.attacker.example", "x", ""]
)
async def test_other_origins_get_no_cors_header(origin: str) -> None:
    """Pages of other origins get no CORS header; ``null`` is never echoed."""
    answer = await call(site_of(), "GET", "/-/healthz", headers={"origin": origin})

    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["vary"] == "Origin"


async def test_the_origin_null_is_never_echoed() -> None:
    """``null`` is never echoed, even where every other origin is allowed."""
    site = site_of(allowed=lambda origin, host: True)

    answer = await call(site, "GET", "/-/healthz", headers={"origin": "null"})
    assert "access-control-allow-origin" not in answer.headers
    other = await call(site, "GET", "/-/healthz", headers={"origin": "https://x.example"})
    assert other.headers["access-control-allow-origin"] == "https://x.example"


async def test_a_program_without_origin_passes() -> None:
    """Requests without Origin are answered, with ``Vary: Origin`` for caches."""
    answer = await call(site_of(), "GET", "/-/healthz")

    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["vary"] == "Origin"


async def test_a_preflight_of_an_allowed_origin_is_answered() -> None:
    """The preflight for a JSON body is answered before any route is looked for."""
    answer = await call(site_of(), "OPTIONS", "/token", headers={"origin": GOOD, **PREFLIGHT})

    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == GOOD
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == "content-type"
    assert answer.headers["vary"] == "Origin, Access-Control-Request-Headers"


def test_an_engines_own_answer_has_the_cors_headers() -> None:
    """A page of an allowed origin can read a 413 that the engine gives in the site's place."""
    scope: Scope = {"type": "http", "method": "POST", "path": "/x", "scheme": "http"}
    scope |= {"client": ("127.0.0.1", 1), "headers": [(b"origin", GOOD.encode())]}
    headers = dict(site_of().error_headers(scope))

    assert headers[b"access-control-allow-origin"] == GOOD.encode()
    scope["headers"] = [(b"origin", b"https://attacker.example")]
    assert dict(site_of().error_headers(scope)) == {b"vary": b"Origin"}


async def test_a_preflight_of_another_origin_is_refused() -> None:
    """No permission is given to a page that may not."""
    headers = {"origin": "https://attacker.example", **PREFLIGHT}
    answer = await call(site_of(), "OPTIONS", "/token", headers=headers)

    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("192.168.1.5:2347", "http://192.168.1.5:2346", True),
        ("[2001:db8::5]:2347", "http://[2001:db8::5]:2346", True),
        ("192.168.1.5:2347", "http://192.168.1.6:2346", False),
        ("192.168.1.5:2347", "http://attacker.example.org", False),
    ],
)
async def test_a_page_of_the_same_numeric_address_is_allowed(host: str, origin: str, allowed: bool) -> None:
    """A page that was loaded from this server's numeric address is allowed, on any port.

    A numeric address cannot be a name that was made to point here. The channels apply the same rule.
    """
    site = site_of(config=Config(server=ServerConfig(host="0.0.0.0")))
    answer = await call(site, "OPTIONS", "/token", headers={"host": host, "origin": origin, **PREFLIGHT})

    assert answer.status == (200 if allowed else 403)
    assert ("access-control-allow-origin" in answer.headers) is allowed


async def test_configured_origins_and_hosts_are_allowed() -> None:
    """allowed_origins as they stand; hosts on any port."""
    server = ServerConfig(hosts=("maps.example",), allowed_origins=("https://other.example",))
    site = site_of(config=Config(server=server))

    for origin, allowed in [
        ("https://other.example", True),
        ("http://other.example", False),
        ("http://maps.example:99", True),
        ("http://maps.example.attacker.example", False),
    ]:
        answer = await call(site, "GET", "/-/healthz", headers={"origin": origin})
        assert ("access-control-allow-origin" in answer.headers) is allowed, origin


class Whole:
    """An engine's ``send`` that takes whole responses."""

    def __init__(self) -> None:
        self.taken: list[Any] = []

    async def __call__(self, message: Any) -> None:
        self.taken.append(message)

    async def answer(self, status: int, fields: Any, body: bytes) -> None:
        self.taken.append((status, fields, body))


async def test_whole_responses_get_the_fields_of_the_server() -> None:
    """An application's own ``access-control-allow-origin`` is dropped, as from its messages."""
    engine = Whole()
    send: Any = sending(engine, PLAIN)

    await send.answer(200, ((b"content-type", b"a/b"), (b"Access-Control-Allow-Origin", b"*")), b"x")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})

    assert engine.taken == [
        (200, ((b"content-type", b"a/b"), *PLAIN), b"x"),
        {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b"), *PLAIN]},
    ]


async def test_a_send_for_messages_alone_offers_no_whole_responses() -> None:
    """No response passes a function by that wraps a ``send``."""
    messages: list[Any] = []

    async def engine(message: Any) -> None:
        messages.append(message)

    assert not hasattr(sending(engine, PLAIN), "answer")
    assert hasattr(sending(Whole(), PLAIN), "answer")
