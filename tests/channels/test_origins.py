from __future__ import annotations

import pytest

from tangram.channels.origins import OriginPolicy

OURS = OriginPolicy(hosts=["tangram.example", "192.0.2.7"])


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, None, True),
        ("null", None, False),
        ("", None, False),
        ("http://localhost:5173", None, True),
        ("http://app.localhost", None, True),
        ("https://127.0.0.1", None, True),
        ("http://127.8.9.10:80", None, True),
        ("http://[::1]:2346", None, True),
        ("http://tangram.example:99", None, True),
        ("https://TANGRAM.example", None, True),
        ("http://192.0.2.7", None, True),
        ("http://evil.example", None, False),
        ("http://evil.example", "evil.example", False),
        ("http://localhost.evil.example", None, False),
        ("http://127.0.0.1.evil.example", None, False),
        ("http://192.0.2.8:2346", "192.0.2.8:2346", True),
        ("http://192.0.2.8:2346", "192.0.2.9:2346", False),
        ("http://[2001:db8::1]", "[2001:db8::1]:2346", True),
        ("file://localhost", None, False),
        ("http://[broken", None, False),
    ],
)
def test_own_hosts_and_loopback_are_allowed(origin: str | None, host: str | None, allowed: bool) -> None:
    """Own hosts, loopback, no Origin, and the page's own IP address are allowed."""
    assert OURS.allows(origin, host) is allowed


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://a.example", True),
        ("https://A.example", True),
        ("http://a.example", False),
        ("https://a.example:8443", False),
        ("https://x.b.example", True),
        ("https://b.example", False),
        ("https://evil-b.example", False),
        ("http://localhost", True),
        ("null", False),
        (None, True),
    ],
)
def test_a_list_allows_whole_origins_and_subdomains(origin: str | None, allowed: bool) -> None:
    """A list names whole origins and subdomains, in addition to own hosts and loopback."""
    policy = OriginPolicy(["https://a.example/", "https://*.b.example"])

    assert policy.allows(origin) is allowed


def test_a_star_allows_everything() -> None:
    """The operator may allow all pages."""
    assert OriginPolicy(["*"]).allows("null")
