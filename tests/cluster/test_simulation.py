"""Nodes under drawn faults: one active incarnation, and no message of an older holder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import pytest

from tangram.chaos.nodes_simulation import NodesOutcome, simulate
from tangram.cluster.identity import Identity
from tangram.cluster.lease import Lease
from tangram.testing.fakes.valkey import node_functions
from tangram.testing.fakes.valkey.node_functions import NODE_FUNCTIONS

pytestmark = pytest.mark.slow


def findings(seeds: range, kind: str) -> list[str]:
    """Return the findings of a kind, up to the first seed with one."""
    for seed in seeds:
        found: Sequence[str] = getattr(simulate(seed), kind)
        if found:
            return [f"seed {seed}: {one}" for one in found]
    return []


def test_a_plugin_is_active_once_and_an_older_holder_is_fenced() -> None:
    """Over 100 seeds of crashes, cuts, pauses, late messages and a Redis that loses its data."""
    outcomes: list[NodesOutcome] = [simulate(seed) for seed in range(100)]

    assert [one for one in outcomes if one.overlaps or one.stale or one.names] == []
    assert sum(one.starts for one in outcomes) > 300
    assert sum(one.refused for one in outcomes) > 100
    assert sum(one.twins for one in outcomes) > 20


def test_a_seed_gives_the_same_run_again() -> None:
    """Nothing depends on the machine."""
    assert simulate(7) == simulate(7)


def from_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the deadline from the time of the answer."""
    take, renew = Lease.take_answered, Lease.renewal_answered
    monkeypatch.setattr(Lease, "take_answered", lambda self, _sent, now, *rest: take(self, now, now, *rest))
    monkeypatch.setattr(
        Lease, "renewal_answered", lambda self, _sent, now, *rest: renew(self, now, now, *rest)
    )


def no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a lease never expire on its holder's clock."""
    monkeypatch.setattr(Lease, "expire", lambda _self, _now: False)


def no_distrust(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a free lease at once after Redis has lost its data."""
    monkeypatch.setattr(Lease, "distrust", lambda _self, _now: None)


def release_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Release a lease whoever holds it."""

    def give(run: Any, keys: Sequence[bytes], _args: Sequence[bytes]) -> int:
        if run.space.get(bytes, keys[0]) is not None:
            run.space.remove(keys[0])
        return 1

    monkeypatch.setitem(NODE_FUNCTIONS, b"tangram_give", give)


def no_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept every token."""
    monkeypatch.setattr(node_functions, "check_fence", lambda *_args: None)


def tokens_of_a_clock_that_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tokens fall from holder to holder."""
    take, tokens = NODE_FUNCTIONS[b"tangram_take"], count(1_000_000, -1)

    def fall(run: Any, keys: Sequence[bytes], args: Sequence[bytes]) -> Any:
        answer: Any = take(run, keys, args)
        if not answer[0]:
            return answer
        token = b"%d" % next(tokens)
        run.space.put(keys[1], token)
        return [1, token, *answer[2:]]

    monkeypatch.setitem(NODE_FUNCTIONS, b"tangram_take", fall)


def no_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the name of another server without asking it."""
    monkeypatch.setattr(Identity, "heard", lambda _self, _change: None)


def beats_of_any_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each server write the record of its name."""
    beaten = Identity.beaten
    monkeypatch.setattr(Identity, "beaten", lambda self, now, _before: beaten(self, now, ""))


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (from_the_answer, "overlaps"),
        (no_deadline, "overlaps"),
        (no_distrust, "overlaps"),
        (release_of_others, "overlaps"),
        (no_fence, "stale"),
        (tokens_of_a_clock_that_goes_back, "stale"),
        (no_question, "names"),
        (beats_of_any_run, "names"),
    ],
)
def test_each_planted_fault_is_found(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None], kind: str
) -> None:
    """Without one of the rules, a seed below 400 shows two active incarnations or an older message."""
    plant(monkeypatch)

    assert findings(range(400), kind)
