"""Proxies that do not send the addresses of their clients, and hosts that are not this server's."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from tangram.config.model import Config, ServerConfig
from tangram.web.proxies import MAX_EXAMINED, ProxyHint, missing_proxy_headers
from tests.web.asgi import call, site_of

BROWSER = {"user-agent": "Mozilla/5.0 (X11; Linux x86_64)"}


@pytest.fixture(autouse=True)
def nothing_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProxyHint, "_left", MAX_EXAMINED)


def scope(version: str = "1.1", **headers: str) -> dict[str, Any]:
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"http_version": version, "headers": lines}


@pytest.mark.parametrize(
    ("seen", "own_name", "expected"),
    [
        (scope(host="127.0.0.1:2346"), False, False),
        (scope("1.0", host="127.0.0.1:2346", user_agent="ApacheBench"), False, False),
        (scope("1.0", host="127.0.0.1:2346", user_agent="Mozilla/5.0"), False, True),
        (scope(host="127.0.0.1:2346", x_real_ip="198.51.100.7"), False, True),
        (scope(host="127.0.0.1:2346", via="1.1 proxy"), False, True),
        (
            scope(host="127.0.0.1:2346", x_real_ip="198.51.100.7", x_forwarded_for="198.51.100.7"),
            False,
            False,
        ),
        (scope(host="127.0.0.1:2346", via="1.1 proxy", forwarded="for=198.51.100.7"), False, False),
        (scope(host="localhost", x_real_ip="198.51.100.7", x_forwarded_for="127.0.0.1"), False, True),
        (scope(host="maps.example"), True, True),
        (
            scope(host="127.0.0.1:2346", sec_fetch_site="same-origin", referer="https://maps.example/"),
            False,
            True,
        ),
        (
            scope(host="localhost:2346", sec_fetch_site="same-origin", referer="http://localhost:2346/"),
            False,
            False,
        ),
        (
            scope(host="localhost:2346", sec_fetch_site="cross-site", origin="https://maps.example"),
            False,
            False,
        ),
    ],
)
def test_a_proxy_without_client_addresses_is_recognised(
    seen: dict[str, Any], own_name: bool, expected: bool
) -> None:
    """Requests of proxies with their defaults are recognised, direct ones are not."""
    assert (missing_proxy_headers(seen, own_name=own_name) is not None) is expected


async def test_it_is_logged_once_with_the_missing_lines() -> None:
    """One record, with lines for nginx and HAProxy, for all requests and incarnations."""
    config = Config(server=ServerConfig(hosts=("maps.example",)))
    with capture_logs() as lines:
        for _ in range(2):
            site = site_of(config=config)
            for _ in range(3):
                await call(site, "GET", "/-/healthz", headers={"host": "maps.example"})

    (line,) = lines
    assert line["event"].startswith("a proxy does not send the addresses of its clients")
    assert "proxy_set_header X-Forwarded-For" in line["nginx"]
    assert "option forwardfor" in line["haproxy"]


async def test_direct_clients_elsewhere_are_not_taken_for_proxies() -> None:
    """A peer that is neither on loopback nor trusted is a client."""
    config = Config(server=ServerConfig(hosts=("maps.example",)))
    with capture_logs() as lines:
        headers = {"host": "maps.example", **BROWSER}
        await call(site_of(config=config), "GET", "/-/healthz", headers=headers, client=("198.51.100.7", 1))

    assert lines == []


@pytest.mark.parametrize(
    "path", ["/", "/-/healthz", "/-/supervision", "/manifest.json", "/openapi.json", "/none"]
)
async def test_reads_under_a_foreign_host_are_421(path: str) -> None:
    """DNS rebinding: a page whose name points to this server cannot read any answer."""
    answer = await call(site_of(), "GET", path, headers={"host": "evil.example:2346"})

    assert answer.status == 421
    assert "'evil.example:2346'" in answer.json()["detail"]
    assert "[server] hosts" in answer.json()["detail"]


async def test_remembered_hosts_are_bounded() -> None:
    """Clients may invent names without end; the memory for them is bounded."""
    site = site_of()
    for number in range(1000):
        await call(site, "GET", "/-/healthz", headers={"host": f"{number}.example"})

    assert len(site._known_hosts) <= 256
    assert (await call(site, "GET", "/-/healthz")).status == 200
