"""The pool: runs begin when the first is waited for, two side by side, and each item waits for its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import attrs
import pytest

from tests.mutants.table import MUTANTS
from tests.mutants.workshop import CONTROL_LIMIT, Foreman, Mutant, Run, copy_checkout, link_copy

SIDE_BY_SIDE = 2
"""Runs at once: what CI has cores."""

Verdict = Callable[[Mutant], list[str]]
T = TypeVar("T")


class Pool:
    """As many foremen as runs may go on at once; a run takes one, and gives it back."""

    def __init__(self, clean: Path, threads: ThreadPoolExecutor, foremen: list[Foreman]) -> None:
        self.clean = clean
        self._threads = threads
        self._free: SimpleQueue[Foreman] = SimpleQueue()
        for one in foremen:
            self._free.put(one)

    def begin(self, work: Callable[[Foreman], T]) -> Future[T]:
        """Do it when a foreman is free."""

        def turn() -> T:
            foreman = self._free.get()
            try:
                return work(foreman)
            finally:
                self._free.put(foreman)

        return self._threads.submit(turn)

    def judge(self, mutant: Mutant) -> Future[list[str]]:
        """Have a mutant tried."""
        return self.begin(lambda one: one.run_mutant(mutant, self.clean, self.clean.parent / mutant.id))


def _wanted(items: list[pytest.Item]) -> list[Mutant]:
    """The mutants that this session has items for, in their order."""
    specs = [getattr(item, "callspec", None) for item in items]
    found = [spec.params.get("mutant") for spec in specs if spec is not None]
    return [one for one in found if isinstance(one, Mutant)]


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Where the runs take their turns, on a clean copy of the checkout."""
    clean = copy_checkout(tmp_path_factory.mktemp("mutants") / "clean")
    with ExitStack() as stack:
        foremen = [stack.enter_context(Foreman()) for _ in range(SIDE_BY_SIDE)]
        threads = stack.enter_context(ThreadPoolExecutor(SIDE_BY_SIDE))
        try:
            yield Pool(clean, threads, foremen)
        finally:
            threads.shutdown(cancel_futures=True)


@attrs.frozen
class Begun:
    """What this session has asked for."""

    control: Future[Run] | None
    mutants: Mapping[str, Future[list[str]]]


@pytest.fixture(scope="session")
def begun(request: pytest.FixtureRequest, pool: Pool) -> Begun:
    """The control first, for it takes longest, and then the mutants; each only where an item waits for it."""
    items = request.session.items
    nodes = list(dict.fromkeys(node for mutant in MUTANTS for node in mutant.tests))
    root = pool.clean.parent / "control"
    control = None
    if any("control" in getattr(item, "fixturenames", ()) for item in items):
        control = pool.begin(lambda one: one.run_tests(link_copy(pool.clean, root), nodes, CONTROL_LIMIT))
    return Begun(control, {mutant.id: pool.judge(mutant) for mutant in _wanted(items)})


@pytest.fixture
def verdict(begun: Begun) -> Verdict:
    """What came of a mutant's run: complaints, none where it was caught."""
    return lambda mutant: begun.mutants[mutant.id].result()


@pytest.fixture
def control(begun: Begun) -> Run:
    """All the tests that are to go red, once, on a copy with nothing taken away."""
    assert begun.control is not None
    return begun.control.result()
