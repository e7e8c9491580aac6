"""Run a target on generated inputs, and report the first that breaks an invariant."""

from __future__ import annotations

import gc
import time
import traceback
import tracemalloc
from collections.abc import Callable, Hashable, Iterable
from typing import Final

import attrs

from tests.fuzz.generator import Generator

__all__ = ["Finding", "Outcome", "Target", "run_target"]

SLOW_SECONDS: Final = 0.02
"""Seconds of processor time for an input of up to 1 KiB; see ``_limit``."""

SLOW_PER_BYTE: Final = 4e-6
"""Seconds of processor time for each further byte: referees in Python need one or two microseconds."""

MEMORY_BYTES: Final = 300_000
"""Bytes that an input may allocate, besides ``MEMORY_PER_BYTE`` for each of its own."""

MEMORY_PER_BYTE: Final = 120
"""Bytes for each byte of an input: the objects of a JSON array, twice."""

MEASURED: Final = 500
"""The memory of every such input is measured, because tracemalloc is slow."""

FAILED: Final = object()
"""The result of an input that raised."""

SHRINKING: Final = 400
"""Attempts to make an input smaller that breaks an invariant."""


@attrs.frozen
class Target:
    """A parser under test."""

    name: str
    check: Callable[[bytes], Hashable]
    """Gives one input to the parser, and raises if an invariant does not hold; any exception is a finding.

    The result tells kinds of inputs apart: an input with a new result joins the corpus.
    """
    corpus: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()
    """Inserted at random places."""
    weight: int = 1
    """The target's share of the inputs of a run."""


@attrs.frozen
class Finding:
    """An input that breaks an invariant."""

    target: str
    data: bytes
    problem: str
    """The traceback, or the limit that was exceeded."""


@attrs.frozen
class Outcome:
    """The result of a run of one target."""

    target: str
    inputs: int
    results: int
    """Different results of ``check``."""
    seconds: float
    slowest: float
    """Seconds of processor time of the slowest input."""
    finding: Finding | None


def run_target(target: Target, inputs: int, seed: int) -> Outcome:
    """Run ``inputs`` inputs, or fewer up to the first finding."""
    generator = Generator(target.corpus, target.words, f"{seed}-{target.name}")
    results: set[Hashable] = set()
    slowest, began = 0.0, time.perf_counter()
    finding = None
    done = 0
    for data in _inputs(target, generator, inputs):
        done += 1
        start = time.thread_time()
        try:
            result = target.check(data)
        except Exception:
            result = FAILED
        if result is FAILED:
            finding = Finding(target.name, *_shrunk(target, data))
            break
        took = time.thread_time() - start
        slowest = max(slowest, took)
        problem = _too_slow(target, data, took) or (_too_large(target, data) if done % MEASURED == 0 else "")
        if problem:
            finding = Finding(target.name, data, problem)
            break
        results.add(result)
        generator.learn(data, result)
    return Outcome(target.name, done, len(results), time.perf_counter() - began, slowest, finding)


def _inputs(target: Target, generator: Generator, inputs: int) -> Iterable[bytes]:
    yield from target.corpus[:inputs]
    for _ in range(inputs - len(target.corpus)):
        yield generator.next()


def _limit(data: bytes) -> float:
    return SLOW_SECONDS + SLOW_PER_BYTE * len(data)


def _too_slow(target: Target, data: bytes, took: float) -> str:
    """Measure an input again that was slow: the machine may have been busy."""
    for _ in range(4):
        if took <= _limit(data):
            return ""
        gc.collect()
        start = time.thread_time()
        target.check(data)
        took = time.thread_time() - start
    return f"{took * 1000:.1f} ms of processor time for {len(data)} bytes"


def _too_large(target: Target, data: bytes) -> str:
    tracemalloc.start()
    try:
        target.check(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    most = MEMORY_BYTES + MEMORY_PER_BYTE * len(data)
    return f"{peak} bytes of memory for {len(data)} bytes" if peak > most else ""


def _problem(target: Target, data: bytes) -> tuple[str, str] | None:
    """Return the kind of the exception for an input, and its traceback."""
    try:
        target.check(data)
    except Exception as error:
        innermost = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} {innermost.filename}:{innermost.lineno}", traceback.format_exc()
    return None


def _shrunk(target: Target, data: bytes) -> tuple[bytes, str]:
    """Remove parts of an input as long as it raises the same exception at the same line."""
    found = _problem(target, data)
    if found is None:
        return data, "it raised once, but not when it was run again"
    kind, told = found
    size, left = len(data) // 2, SHRINKING
    while size and left:
        for at in range(0, len(data), size):
            left -= 1
            smaller = data[:at] + data[at + size :]
            again = _problem(target, smaller)
            if again is not None and again[0] == kind:
                data, told = smaller, again[1]
                break
            if not left:
                break
        else:
            size //= 2
    return data, told
