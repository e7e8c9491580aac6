"""The short version of ``make hostile`` for CI: a promise that held must hold."""

from __future__ import annotations

from typing import Final

import pytest

from tests.hostile.__main__ import SHORT_SECONDS
from tests.hostile.campaign import Kind, run_scenario
from tests.hostile.scenarios import SCENARIOS, Scenario

OPEN: Final[dict[str, set[Kind]]] = {
    "large_unjoined": {"lines"},
    "unfinished_unjoined": {"lines"},
    "tiny_fragments": {"blocked", "lines"},
    "large_pushes": {"lines"},
    "push_flood": {"blocked", "lines"},
    "slow_heads": {"lines"},
    "bombs_unjoined": {"lines"},
    "bombs_joined": {"lines"},
    "rapid_resets": {"blocked"},
    "zero_windows": {"lines"},
}
"""Promises that are not kept yet, by attack; ``make hostile`` reports them as red. Remove mended ones."""


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [pytest.param(one, id=one.attack) for one in SCENARIOS if one.short])
async def test_no_further_promise_is_broken(scenario: Scenario) -> None:
    """Memory, good clients, crashes and the loop are judged; p99 depends on the machine too much for CI."""
    judged = await run_scenario(scenario, SHORT_SECONDS)

    allowed = OPEN.get(scenario.attack, set()) | {"p99"}
    assert [str(one) for one in judged.faults if one.kind not in allowed] == []
