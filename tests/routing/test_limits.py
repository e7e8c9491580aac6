"""Limits of routes, on both engines of a whole server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Literal

import pytest

from tangram.plugins.plugin import Plugin
from tangram.routing import APIRouter, Body
from tangram.testing import open_tangram

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("engine", ["native", "hypercorn"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_route_has_its_own_limit_on_both_engines(
    engine: Literal["native", "hypercorn"], chunked: bool
) -> None:
    """``max_body`` of a route replaces the server's, for bodies with a length and in chunks."""
    router = APIRouter(prefix="/limits")

    @router.post("/high", max_body=300_000)
    @router.post("/low", max_body=1_000)
    @router.post("/default")
    async def take(data: Annotated[bytes, Body()]) -> int:
        return len(data)

    config = {"server": {"engine": engine, "max_body": 100_000}}
    async with open_tangram([Plugin(routers=[router])], config, fakes=True) as running:
        for path, size, status in (
            ("high", 300_000, 200),
            ("high", 300_001, 413),
            ("low", 1_000, 200),
            ("low", 1_001, 413),
            ("default", 100_000, 200),
            ("default", 100_001, 413),
        ):
            body = b"x" * size
            content = pieces(body) if chunked else body
            answer = await running.http.post(f"/limits/{path}", content=content)
            assert (path, size, answer.status_code) == (path, size, status)


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 50_000):
        yield body[at : at + 50_000]
