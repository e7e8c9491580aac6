"""The access log of a whole server: requests, handshakes and clients behind a proxy, on both engines."""

from __future__ import annotations

from typing import Any

import pytest

from tangram.client import open_socket
from tangram.errors import Refused
from tangram.testing import RunningTangram, open_tangram

pytestmark = pytest.mark.slow


def entries(running: RunningTangram) -> list[dict[str, Any]]:
    return [dict(line) for line in running.logs if line["event"] == "request"]


@pytest.mark.parametrize("engine", ["native", "hypercorn"])
async def test_requests_and_handshakes_are_logged(engine: str) -> None:
    """Each has method, path and status, the client that a trusted proxy names, and no query."""
    settings = {"log": {"access": True}, "server": {"engine": engine}}
    async with open_tangram([], settings) as running:
        await running.http.get("/-/healthz?token=secret", headers={"x-forwarded-for": "192.0.2.7"})
        await running.http.head("/nothing")
        async with running.open_socket():
            pass
        with pytest.raises(Refused):
            async with open_socket(
                running.url, headers=[("origin", "https://evil.example")], reconnect=False
            ):
                pass

    found = [(one["method"], one["path"], one["status"], one["client"]) for one in entries(running)]
    assert found[:2] == [
        ("GET", "/-/healthz", 200, "192.0.2.7"),
        ("HEAD", "/nothing", 404, "127.0.0.1"),
    ]
    assert [one[:3] for one in found[2:]] == [("GET", "/websocket", 101), ("GET", "/websocket", 403)]
    assert "secret" not in str(entries(running))


@pytest.mark.parametrize("engine", ["native", "hypercorn"])
async def test_the_path_of_the_browser_is_logged(engine: str) -> None:
    """Below a path of the host the log has the whole path, whether the proxy cut it or not."""
    settings = {"log": {"access": True}, "server": {"engine": engine, "root_path": "/tangram"}}
    async with open_tangram([], settings) as running:
        await running.http.get("/-/healthz")
        await running.http.get("/tangram/-/healthz")

    assert [one["path"] for one in entries(running)] == ["/tangram/-/healthz"] * 2
