"""The clock and the engine names that the tests of this folder use.

The clock skips waiting times, slowly enough for real sockets on loopback.
"""

from __future__ import annotations

import pytest
import trio.testing


@pytest.fixture
def clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0.01)


@pytest.fixture(params=["native", "hypercorn"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)
