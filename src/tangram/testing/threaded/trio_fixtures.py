"""The fixtures of a test of pytest-trio; imported only where pytest-trio is installed.

None of these functions is asynchronous itself: pytest-asyncio in auto mode and anyio would take over an
asynchronous fixture. They return an asynchronous generator, which pytest-trio runs because of
``trio_fixture``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
from pytest_trio import trio_fixture

from tangram.testing.markers import Wanted, wanted

if TYPE_CHECKING:
    from tangram.client import ClientSocket
    from tangram.testing.faults.catalogue import Chaos
    from tangram.testing.run.server import RunningTangram


@trio_fixture  # type: ignore[untyped-decorator]  # pytest-trio ships no types
def _tangram_on_trio(request: pytest.FixtureRequest) -> AsyncIterator[RunningTangram]:
    return _serve(wanted(request.node))


async def _serve(want: Wanted) -> AsyncIterator[RunningTangram]:
    from tangram.testing.checks.log_records import server_log
    from tangram.testing.checks.quarantines import print_quarantines
    from tangram.testing.faults.catalogue import Chaos
    from tangram.testing.run.server import open_tangram

    with server_log(printed=want.prints_log):
        async with open_tangram(**want.settings) as running:
            try:
                if not want.faults:
                    yield running
                    return
                async with Chaos(running, **want.chaos).striking(*want.faults):
                    yield running
            finally:
                print_quarantines(running.events)


@trio_fixture  # type: ignore[untyped-decorator]  # pytest-trio ships no types
def _tangram_socket_on_trio(_tangram_on_trio: RunningTangram) -> AsyncIterator[ClientSocket]:
    return _connect(_tangram_on_trio)


async def _connect(running: RunningTangram) -> AsyncIterator[ClientSocket]:
    async with running.open_socket() as client:
        yield client


@trio_fixture  # type: ignore[untyped-decorator]  # pytest-trio ships no types
def _chaos_on_trio(_tangram_on_trio: RunningTangram) -> Chaos:
    from tangram.testing.faults.catalogue import Chaos

    return Chaos(_tangram_on_trio)
