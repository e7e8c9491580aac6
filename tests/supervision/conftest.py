from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from tests.supervision.supervisor_harness import Decided, Running, World


@pytest.fixture(params=["decide", "runner"])
async def world(request: pytest.FixtureRequest, nursery: trio.Nursery) -> AsyncIterator[World]:
    world: World = Decided() if request.param == "decide" else Running(nursery)
    yield world
    await world.end()
