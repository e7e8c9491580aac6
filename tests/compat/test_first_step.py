"""Services of existing plugins that raise before they wait, for every order of tasks."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from tangram.compat.plugin import Plugin
from tangram.compat.state import BackendState
from tangram.testing import open_tangram
from tangram.testing.checks.log_records import quiet
from tangram.testing.faults.steps import scheduled_from

pytestmark = pytest.mark.slow

QUARANTINED: Final = ("crashed", "quarantined")
RESTARTED: Final = ("started", "crashed", "restarting") * 2 + ("started", "crashed", "quarantined")
TABLES: Final = {"supervisor": {"strategy": "one_for_one", "plugin_restarts": 2, "plugin_window": 1e6}}


async def fails(_state: BackendState) -> None:
    raise ValueError("first line")


async def fails_later(_state: BackendState) -> None:
    await asyncio.sleep(0)
    raise ValueError("second step")


async def reports_and_fails(_state: BackendState, task_status: trio.TaskStatus[None]) -> None:
    await asyncio.sleep(0)
    task_status.started()
    raise ValueError("no step after the report")


async def runs(_state: BackendState) -> None:
    await asyncio.Event().wait()


def made_of(name: str, *functions: Any) -> Any:
    plugin: Any = Plugin()
    plugin.name = name
    for place, function in enumerate(functions):
        plugin.register_service(place)(_named(function, f"service_{place}"))
    return plugin


async def test_a_temporary_service_fails_no_start(autojump_clock: MockClock) -> None:
    """The plugin runs on without it."""
    tables = {**TABLES, "plugins": {"demo": {"restart": "temporary"}}}
    async with open_tangram([made_of("demo", fails, runs)], tables, fakes=True) as running:
        started = [event.child for event in running.events if event.kind == "started"]
        crashed = [event.path for event in running.events if event.kind == "crashed"]

    assert "plugin:demo" in started
    assert [path[-1] for path in crashed] == ["service_0"]


def _named(function: Any, name: str) -> Any:
    async def service(state: BackendState, **more: Any) -> None:
        await function(state, **more)

    service.__name__ = name
    if function is reports_and_fails:
        service.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return service


def outcomes(seeds: range, **plugins: list[Any]) -> Counter[tuple[tuple[str, ...], ...]]:
    """Count the kinds of the plugins' events, by the order in which Trio runs the tasks of each batch."""
    return Counter(_outcome(seed, plugins) for seed in seeds)


def _outcome(seed: int, plugins: dict[str, list[Any]]) -> tuple[tuple[str, ...], ...]:
    async def main() -> tuple[tuple[str, ...], ...]:
        made = [made_of(name, *functions) for name, functions in plugins.items()]
        async with open_tangram(made, TABLES, fakes=True, memory_port=True, seed=seed, checks=()) as running:
            for name, functions in plugins.items():
                if set(functions) != {runs}:
                    await running.wait_event("quarantined", f"plugin:{name}")
            events = list(running.events)
        return tuple(
            tuple(event.kind for event in events if event.child == f"plugin:{name}") for name in plugins
        )

    with scheduled_from(seed), quiet():
        return trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ("functions", "kinds"),
    [
        ([fails, runs], QUARANTINED),
        ([runs, reports_and_fails], QUARANTINED),
        ([fails_later, runs], RESTARTED),
    ],
)
def test_a_service_on_its_loop_is_judged_as_a_native_one(
    functions: list[Any], kinds: tuple[str, ...]
) -> None:
    """A failure before the first wait is a failed start, a later one a crash."""
    assert outcomes(range(8), demo=functions) == {(kinds,): 8}


def test_a_plugin_that_lets_others_start_first_crashes() -> None:
    """Its start is over before its services are called: a failure is charged. The last one's is not."""
    charged = ("started", "crashed", "restarting", "crashed", "restarting", "crashed", "quarantined")
    found = outcomes(range(8), first=[fails, runs], last=[fails, runs])

    assert found == {(charged, QUARANTINED): 8}
