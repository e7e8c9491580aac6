from __future__ import annotations

import pytest

from tangram.errors import StartFailed
from tests.web.asgi import TOKEN, FakeOperator, call, site_of

FAR = ("198.51.100.7", 4000)
TREE = {
    "name": "root",
    "children": [
        {"name": "bus", "restarts": 2, "last_crash": {"message": "secret /path"}, "stubborn": "x.py:1"}
    ],
    "crashes": [{"message": "secret"}],
}
AS_OPERATOR = {"authorization": f"Bearer {TOKEN}"}


async def test_health_is_public() -> None:
    """200 as long as the server answers, also while it stops: then the body says so."""
    operator = FakeOperator()
    site = site_of(operator=operator)

    answer = await call(site, "GET", "/-/healthz", client=FAR)
    assert (answer.status, answer.json()) == (200, {"status": "ok"})
    assert answer.headers["cache-control"] == "no-store"
    operator.stopping = True
    answer = await call(site, "GET", "/-/healthz", client=FAR)
    assert (answer.status, answer.json()) == (200, {"status": "stopping"})


async def test_readiness_says_why_not() -> None:
    """503 with the reasons until everything runs."""
    operator = FakeOperator(reasons=["bus: redis is away"])
    site = site_of(operator=operator)

    answer = await call(site, "GET", "/-/readyz", client=FAR)
    assert (answer.status, answer.json()) == (503, {"status": "not ready", "reasons": ["bus: redis is away"]})
    operator.reasons = []
    assert (await call(site, "GET", "/-/readyz", client=FAR)).json() == {"status": "ready", "reasons": []}


async def test_causes_are_shown_to_the_operator_only() -> None:
    """A stranger sees states and counts; causes and lines are for the token's bearer."""
    site = site_of(operator=FakeOperator(tree=TREE))

    public = await call(site, "GET", "/-/supervision", client=FAR)
    assert public.json() == {"name": "root", "children": [{"name": "bus", "restarts": 2}]}
    assert (await call(site, "GET", "/-/supervision", client=FAR, headers=AS_OPERATOR)).json() == TREE


@pytest.mark.parametrize(
    "given", ["Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer", "", f"Bearer {TOKEN}x", "Bearer t\xf6ken"]
)
async def test_only_the_exact_token_shows_details(given: str) -> None:
    """Only the exact token in a Bearer header shows details."""
    site = site_of(operator=FakeOperator(tree=TREE, listed=[{"name": "demo"}]))
    headers = {"authorization": given}

    assert "crashes" not in (await call(site, "GET", "/-/supervision", client=FAR, headers=headers)).json()
    assert (await call(site, "POST", "/-/plugins/demo/restart", headers=headers)).status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "localhost:9"},
        {"x-forwarded-for": "127.0.0.1"},
        {"forwarded": "for=127.0.0.1"},
        {"x-real-ip": "127.0.0.1"},
        {"x-forwarded-for": "127.0.0.1", "x-real-ip": "198.51.100.7"},
    ],
)
@pytest.mark.parametrize("client", [("127.0.0.1", 50000), FAR])
async def test_being_on_loopback_shows_no_details(headers: dict[str, str], client: tuple[str, int]) -> None:
    """A proxy makes every client local, so neither the peer nor a forwarding header replaces the token."""
    site = site_of(operator=FakeOperator(tree=TREE, listed=[{"name": "demo", "error": "x.py:3"}]))

    shown = await call(site, "GET", "/-/supervision", headers=headers, client=client)
    listed = await call(site, "GET", "/-/plugins", headers=headers, client=client)
    assert "crashes" not in shown.json()
    assert listed.json() == [{"name": "demo"}]


async def test_text_under_unknown_keys_is_left_out() -> None:
    """Text under unknown keys is left out of public answers."""
    tree = {
        "broker": {"url": "redis://u:p@h", "up": True, "patterns": ["to:*"]},
        "events": [{"cause": "x", "at": 1.5}],
    }
    site = site_of(operator=FakeOperator(tree=tree))

    public = await call(site, "GET", "/-/supervision", client=FAR)
    assert public.json() == {"broker": {"up": True}, "events": [{"at": 1.5}]}


async def test_plugins_are_listed() -> None:
    """Name and state for all, the error for the operator."""
    site = site_of(
        operator=FakeOperator(listed=[{"name": "demo", "state": "quarantined", "error": "x.py:3"}])
    )

    public = await call(site, "GET", "/-/plugins", client=FAR)
    assert public.json() == [{"name": "demo", "state": "quarantined"}]
    assert (await call(site, "GET", "/-/plugins", headers=AS_OPERATOR)).json()[0]["error"] == "x.py:3"


async def test_a_restart_needs_the_token_from_everywhere() -> None:
    """Also from loopback: any page in a browser here can send that request."""
    operator = FakeOperator(listed=[{"name": "demo"}])
    site = site_of(operator=operator)

    refused = await call(site, "POST", "/-/plugins/demo/restart")
    assert refused.status == 401
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert operator.restarted == []
    assert (await call(site, "POST", "/-/plugins/demo/restart", headers=AS_OPERATOR)).status == 200
    assert operator.restarted == ["demo"]


async def test_an_unknown_plugin_is_404_and_a_failed_restart_503() -> None:
    """404 for an unknown plugin; 503 with the cause when it does not start again."""
    operator = FakeOperator(listed=[{"name": "demo"}], failure=StartFailed("demo", "no antenna"))
    site = site_of(operator=operator)

    assert (await call(site, "POST", "/-/plugins/ghost/restart", headers=AS_OPERATOR)).status == 404
    failed = await call(site, "POST", "/-/plugins/demo/restart", headers=AS_OPERATOR)
    assert (failed.status, failed.json()["cause"]) == (503, "no antenna")
