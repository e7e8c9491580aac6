"""A service that raises before it waits has not begun, for every order of Trio's tasks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import pytest
import trio
from trio.abc import Clock
from trio.testing import MockClock

from tangram.errors import BadMessage, StartFailed
from tangram.plugins.host import PluginHost
from tangram.plugins.plugin import Plugin, ServiceFunction
from tangram.plugins.state import BackendState
from tangram.supervision import Backoff, Child, Strategy, SupervisionEvent, Window
from tangram.testing import Supervised, open_supervised
from tangram.testing.checks.log_records import quiet
from tangram.testing.faults.steps import scheduled_from
from tests.plugins.fakes import loaded, make_state, state_of

pytestmark = pytest.mark.slow

CHILD: Final = "plugin:demo"
RESTARTS: Final = 2

QUARANTINED: Final = ("crashed", "quarantined")
"""A failed start."""
RESTARTED: Final = ("started", "crashed", "restarting") * RESTARTS + ("started", "crashed", "quarantined")
"""Crashes of a plugin that runs."""

VirtualClock: Final = partial(MockClock, autojump_threshold=0)
Act = Callable[[Supervised], Awaitable[object]]


async def fails(state: BackendState) -> None:
    raise ValueError("first line")


async def fails_later(state: BackendState) -> None:
    await trio.lowlevel.checkpoint()
    raise ValueError("second step")


def fails_in_thread(state: BackendState) -> None:
    raise ValueError("in a thread")


async def reports_and_fails(state: BackendState, *, task_status: trio.TaskStatus[None]) -> None:
    await trio.sleep(1)
    task_status.started()
    raise ValueError("no step after the report")


async def fails_before_its_report(state: BackendState, *, task_status: trio.TaskStatus[None]) -> None:
    await trio.lowlevel.checkpoint()
    raise ValueError("before the report")


async def runs(state: BackendState) -> None:
    await trio.sleep_forever()


async def starts_slowly(state: BackendState, *, task_status: trio.TaskStatus[None]) -> None:
    await trio.sleep(1)
    task_status.started()
    await trio.sleep_forever()


async def do_nothing(_supervised: Supervised) -> None:
    """Leave the plugin alone."""


def made_of(*functions: ServiceFunction) -> Plugin:
    plugin = Plugin()
    for place, function in enumerate(functions):
        plugin.register_service(place, name=f"service-{place}")(function)
    return plugin


class Played:
    """Plugins below one supervisor, and the kinds of each plugin's events until all are in quarantine."""

    def __init__(self, plugins: dict[str, Plugin]) -> None:
        self.plugins = plugins
        self.kinds: dict[str, tuple[str, ...]] = dict.fromkeys(plugins, ())
        self._at_rest = trio.Event()

    def note(self, event: SupervisionEvent) -> None:
        name = event.child or ""
        if name in self.kinds and event.kind != "stopped":
            self.kinds[name] += (event.kind,)
            if all(kinds[-1:] == ("quarantined",) for kinds in self.kinds.values()):
                self._at_rest.set()

    async def run(self, strategy: Strategy, act: Act) -> None:
        children = [self._child(name, plugin) for name, plugin in self.plugins.items()]
        children.append(Child("last", trio.sleep_forever))
        but = {"starts_in_order": "each plugin comes back after its own delay"}
        async with open_supervised(
            children,
            but=but,
            strategy=strategy,
            backoff=Backoff(initial=0.0),
            on_event=self.note,
        ) as supervised:
            await act(supervised)
            with trio.fail_after(100):
                await self._at_rest.wait()

    def _child(self, name: str, plugin: Plugin) -> Child:
        host = PluginHost(loaded(plugin, name), state=state_of(make_state()))
        budget = Window(RESTARTS, 1e9)
        return Child(name, host.run, window=budget, exhausted="quarantine", start_failure="quarantine")


def outcomes(
    make: Callable[[], dict[str, Plugin]],
    seeds: int,
    *,
    strategy: Strategy = "one_for_one",
    act: Act = do_nothing,
    clock: Callable[[], Clock] | None = VirtualClock,
) -> dict[str, Counter[tuple[str, ...]]]:
    """Count the outcomes of each plugin, over several orders in which Trio runs the tasks of a batch."""
    found: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for seed in range(seeds):
        played = Played(make())
        with scheduled_from(seed), quiet():
            trio.run(played.run, strategy, act, clock=clock and clock())
        for name, kinds in played.kinds.items():
            found[name][kinds] += 1
    return found


FAILED_STARTS: Final[dict[str, list[ServiceFunction]]] = {
    "alone": [fails],
    "before another": [fails, runs],
    "behind another": [runs, fails],
    "before a slow one": [fails, starts_slowly],
    "with its report": [reports_and_fails, runs],
    "before its report": [fails_before_its_report],
    "during a slow start": [fails_later, starts_slowly],
}
CRASHES: Final[dict[str, list[ServiceFunction]]] = {
    "later": [fails_later],
    "later, before another": [fails_later, runs],
    "later, behind another": [runs, fails_later],
}


def every_case() -> dict[str, Plugin]:
    return {name: made_of(*functions) for name, functions in {**FAILED_STARTS, **CRASHES}.items()}


def test_the_outcome_does_not_depend_on_the_order_of_tasks() -> None:
    """A failure before the first wait fails the start; a later one is charged."""
    found = outcomes(every_case, 200)

    assert {name: set(found[name]) for name in FAILED_STARTS} == {
        name: {QUARANTINED} for name in FAILED_STARTS
    }
    assert {name: set(found[name]) for name in CRASHES} == {name: {RESTARTED} for name in CRASHES}


def test_a_thread_always_crashes() -> None:
    """A plain function has begun with its thread, which real time decides about: its failure is charged."""
    cases: dict[str, list[ServiceFunction]] = {
        "alone": [fails_in_thread],
        "before others": [fails_in_thread, runs, runs],
    }
    # A virtual clock would jump while a thread works.
    found = outcomes(lambda: {name: made_of(*functions) for name, functions in cases.items()}, 40, clock=None)

    assert found == {name: {RESTARTED: 40} for name in cases}


@pytest.mark.parametrize("functions", [[fails], [fails, runs], [runs, fails]])
def test_a_failed_start_takes_no_sibling_along(functions: list[ServiceFunction]) -> None:
    """With the default strategy, too, one failure is enough."""
    found = outcomes(lambda: {CHILD: made_of(*functions)}, 20, strategy="one_for_all")

    assert found == {CHILD: {QUARANTINED: 20}}


def test_a_plugin_with_handlers_of_pushes_is_no_exception() -> None:
    """The child that handles pushes starts last; it takes part in no decision."""

    def with_handler(service: ServiceFunction) -> Plugin:
        plugin = made_of(service)

        @plugin.channel("flights").receives("select", dict)
        async def select(message: dict[str, Any]) -> None:
            raise AssertionError("there are no pushes")

        return plugin

    assert outcomes(lambda: {CHILD: with_handler(fails)}, 20) == {CHILD: {QUARANTINED: 20}}
    assert outcomes(lambda: {CHILD: with_handler(fails_later)}, 20) == {CHILD: {RESTARTED: 20}}


def test_no_service_begins_after_one_that_has_not() -> None:
    """The failed start ends before the function of the next service is called."""
    begun: list[int] = []

    async def begins(state: BackendState) -> None:
        begun.append(1)
        await trio.sleep_forever()

    assert outcomes(lambda: {CHILD: made_of(fails, begins)}, 20) == {CHILD: {QUARANTINED: 20}}
    assert not begun


def test_a_restart_that_fails_at_its_first_line_is_charged() -> None:
    """A plugin that has run before gets the whole budget; a failed restart never counts as started."""

    def make() -> dict[str, Plugin]:
        lives = iter(range(10))

        async def breaks(state: BackendState) -> None:
            if not next(lives):
                await trio.sleep(1)
            raise ValueError("broken")

        return {CHILD: made_of(breaks, runs)}

    failed = ("crashed", "restarting") * (RESTARTS - 1)
    kinds = ("started", "crashed", "restarting", *failed, "crashed", "quarantined")
    assert outcomes(make, 40) == {CHILD: {kinds: 40}}


def test_the_operator_learns_of_a_failed_start() -> None:
    """A requested start fails with the service's exception, and the plugin stays in quarantine."""
    answers: list[str] = []

    async def restart(supervised: Supervised) -> None:
        with pytest.raises(StartFailed) as caught:
            await supervised.supervisor.restart_child(CHILD)
        answers.append(str(caught.value))

    found = outcomes(lambda: {CHILD: made_of(runs, fails)}, 40, act=restart)
    assert found == {CHILD: {(*QUARANTINED, "planned", *QUARANTINED): 40}}
    assert all("first line" in answer for answer in answers)


def test_a_bad_message_at_the_first_line_is_no_failed_start() -> None:
    """The message is dropped, and the service is called again."""

    def make() -> dict[str, Plugin]:
        calls = iter(range(10))

        async def read(state: BackendState) -> None:
            if not next(calls):
                raise BadMessage("no such field")
            await trio.sleep(1)
            raise ValueError("later")

        return {CHILD: made_of(read, runs)}

    assert outcomes(make, 20) == {CHILD: {RESTARTED: 20}}


def test_a_temporary_service_fails_no_start() -> None:
    """Its failure is logged, and the plugin goes on without it: the other service crashes it later."""

    def make() -> dict[str, Plugin]:
        plugin = Plugin()
        plugin.register_service(0, name="once", restart="temporary")(fails)
        plugin.register_service(1, name="other")(fails_later)
        return {CHILD: plugin}

    assert outcomes(make, 20) == {CHILD: {RESTARTED: 20}}


@pytest.mark.parametrize("others", [[], [runs, runs]])
def test_a_permanent_service_that_returns_at_once_crashes(others: list[ServiceFunction]) -> None:
    """It has started, and a return is charged."""

    async def returns(state: BackendState) -> None:
        """Return at once."""

    def make() -> dict[str, Plugin]:
        plugin = made_of(*others)
        plugin.register_service(-1, name="returning", restart="permanent")(returns)
        return {CHILD: plugin}

    assert outcomes(make, 20) == {CHILD: {RESTARTED: 20}}
