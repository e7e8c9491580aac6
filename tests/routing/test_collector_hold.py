"""Full passes of the garbage collector while large values live."""

from __future__ import annotations

import gc
from typing import Annotated

import pytest

from tangram.routing import APIRouter, Body, HTTPException
from tangram.routing.collector_hold import LONGEST, CollectorHold
from tangram.routing.request import READ_AT_ONCE
from tests.routing.calling import call, table_of


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hold(clock: Clock) -> CollectorHold:
    return CollectorHold(clock)


def third() -> int:
    return gc.get_threshold()[2]


def test_full_passes_are_put_off_until_the_last_value_has_gone(hold: CollectorHold) -> None:
    """The thresholds are those of before when no block runs; the first two stay as they are."""
    before = gc.get_threshold()
    with hold:
        with hold:
            assert third() == 2**31 - 1
        assert gc.get_threshold()[:2] == before[:2]
        assert third() == 2**31 - 1
    assert gc.get_threshold() == before
    assert not any(getattr(one, "__self__", None) is hold for one in gc.callbacks)


def test_a_failure_ends_the_hold(hold: CollectorHold) -> None:
    """An exception in the block changes nothing."""
    before = gc.get_threshold()
    with pytest.raises(KeyError), hold:
        raise KeyError
    assert gc.get_threshold() == before


def test_one_full_pass_is_allowed_after_seconds(hold: CollectorHold, clock: Clock) -> None:
    """While values live for long, other garbage is collected once in a while."""
    before = third()
    with hold:
        clock.now += LONGEST - 1
        gc.collect(0)
        assert third() == 2**31 - 1
        clock.now += 1
        gc.collect(0)
        assert third() == before
        gc.collect()
        assert third() == 2**31 - 1
        clock.now += LONGEST
        gc.collect(1)
        assert third() == before
    assert third() == before


@pytest.mark.parametrize("size", [100, READ_AT_ONCE + 100])
async def test_handlers_of_large_bodies_have_no_full_passes(size: int) -> None:
    """The hold lasts while the handler has the value, and ends with a failure as well."""
    router = APIRouter()
    seen = []

    @router.post("/take")
    async def take(body: Annotated[dict[str, str], Body()]) -> None:
        seen.append(third())
        raise HTTPException(400, body["text"][:1])

    before = third()
    answer = await call(table_of(router), "POST", "/take", b'{"text": "%b"}' % (b"x" * size))

    assert answer.status == 400
    assert seen == [2**31 - 1 if size > READ_AT_ONCE else before]
    assert third() == before
