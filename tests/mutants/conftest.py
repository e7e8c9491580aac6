"""Fixtures that try mutants, two at a time or one in each worker of pytest-xdist.

In one process all runs begin when an item waits for the first of them. A worker of pytest-xdist does not know
which items it will get, so each of its runs begins with its item.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Final, TypeVar

import attrs
import pytest

from tests.mutants.table import MUTANTS
from tests.mutants.workshop import CONTROL_LIMIT, Mutant, MutationRunner, Run, copy_checkout, link_copy

IN_WORKER: Final = "PYTEST_XDIST_WORKER" in os.environ
"""Whether this process shares the items of the session with others."""

SIDE_BY_SIDE: Final = 1 if IN_WORKER else 2
"""Runs at once in this process: CI has two cores."""

Verdict = Callable[[Mutant], list[str]]
T = TypeVar("T")


class Pool:
    """A queue of runs, and one runner process for each run that may go on at once."""

    def __init__(self, clean: Path, threads: ThreadPoolExecutor, runners: list[MutationRunner]) -> None:
        self.clean = clean
        self._threads = threads
        self._free: SimpleQueue[MutationRunner] = SimpleQueue()
        for runner in runners:
            self._free.put(runner)

    def begin(self, work: Callable[[MutationRunner], T]) -> Future[T]:
        """Run ``work`` as soon as a runner is free."""

        def turn() -> T:
            runner = self._free.get()
            try:
                return work(runner)
            finally:
                self._free.put(runner)

        return self._threads.submit(turn)

    def judge(self, mutant: Mutant) -> Future[list[str]]:
        """Try one mutant on a copy of its own."""
        return self.begin(lambda runner: runner.run_mutant(mutant, self.clean, self.clean.parent / mutant.id))

    def control(self) -> Future[Run]:
        """Run the tests of all mutants once on a copy without a mutation."""
        nodes = list(dict.fromkeys(node for mutant in MUTANTS for node in mutant.tests))
        root = self.clean.parent / "control"
        return self.begin(lambda runner: runner.run_tests(link_copy(self.clean, root), nodes, CONTROL_LIMIT))


def _wanted(items: list[pytest.Item]) -> list[Mutant]:
    """Return the mutants that this session has items for, in their order."""
    specs = [getattr(item, "callspec", None) for item in items]
    found = [spec.params.get("mutant") for spec in specs if spec is not None]
    return [mutant for mutant in found if isinstance(mutant, Mutant)]


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Open a pool over a clean copy of the checkout."""
    clean = copy_checkout(tmp_path_factory.mktemp("mutants") / "clean")
    with ExitStack() as stack:
        runners = [stack.enter_context(MutationRunner()) for _ in range(SIDE_BY_SIDE)]
        threads = stack.enter_context(ThreadPoolExecutor(SIDE_BY_SIDE))
        try:
            yield Pool(clean, threads, runners)
        finally:
            threads.shutdown(cancel_futures=True)


@attrs.frozen
class Begun:
    """Runs that this session has begun before their items."""

    control: Future[Run] | None
    mutants: Mapping[str, Future[list[str]]]


@pytest.fixture(scope="session")
def begun(request: pytest.FixtureRequest, pool: Pool) -> Begun:
    """Begin the control first, because it takes longest, and then the mutants that have items."""
    if IN_WORKER:
        return Begun(None, {})
    items = request.session.items
    has_control = any("control" in getattr(item, "fixturenames", ()) for item in items)
    control = pool.control() if has_control else None
    return Begun(control, {mutant.id: pool.judge(mutant) for mutant in _wanted(items)})


@pytest.fixture
def verdict(begun: Begun, pool: Pool) -> Verdict:
    """Return the complaints about a mutant's run: none for a mutant that was caught."""
    return lambda mutant: (begun.mutants.get(mutant.id) or pool.judge(mutant)).result()


@pytest.fixture
def control(begun: Begun, pool: Pool) -> Run:
    """Return the run of all tests that must go red, on a copy without a mutation."""
    return (begun.control or pool.control()).result()
