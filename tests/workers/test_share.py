"""The numbers of connections that workers share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tangram.workers.share import Share, ShareTable


@pytest.fixture
def table() -> Iterator[ShareTable]:
    table = ShareTable()
    yield table
    table.close()


def open_share(table: ShareTable) -> tuple[Share, int]:
    index = table.take()
    return Share(os.dup(table.descriptor), index), index


def test_workers_see_the_numbers_of_each_other(table: ShareTable) -> None:
    """The one with more connections waits, and publishes its number each time."""
    (first, _), (second, _) = open_share(table), open_share(table)

    assert first.pause(0) == 0.0
    assert second.pause(100) > 0.0
    assert first.pause(50) == 0.0
    assert second.pause(50) == 0.0
    assert table.counts() == [50, 50]


def test_a_worker_that_stops_is_not_counted(table: ShareTable) -> None:
    """The others do not wait for it."""
    (first, _), (second, _) = open_share(table), open_share(table)
    first.pause(0)
    second.pause(100)
    first.leave()

    assert second.pause(100) == 0.0
    assert table.counts() == [100]


def test_the_place_of_a_killed_worker_is_used_again(table: ShareTable) -> None:
    """It is the lowest free one, and starts without connections."""
    (first, index), (second, _) = open_share(table), open_share(table)
    first.pause(0)
    table.give_back(index)

    assert second.pause(100) == 0.0
    assert table.take() == index
    assert table.counts() == [100]
