"""How a server closes its WebSockets at a stop, with and without other nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import attrs
import pytest

from tangram.app.engines import closing_of
from tangram.config import Config
from tangram.config.model import ServerConfig
from tangram.http.closing import CLOSE_EACH, MOVE_EACH


@attrs.define
class FakeNodes:
    """The nodes that are alive."""

    me: str
    ids: tuple[str, ...]

    def alive(self) -> Mapping[str, None]:
        return dict.fromkeys(self.ids)


@attrs.define
class FakeChannels:
    """Channels of which three members are away."""

    away: int = 3
    settled: int = 0

    async def wait_settled(self) -> None:
        self.settled += 1


@attrs.define
class FakeTree:
    """A tree at its stop."""

    nodes: FakeNodes | None
    ends: bool = True
    """Whether the process ends, and no other incarnation follows."""
    stops: bool = True
    """Whether its sockets are closed, too: no other process has them."""
    workers: int = 1

    @property
    def config(self) -> Config:
        return Config(server=ServerConfig(workers=self.workers))

    def keep_adopted(self) -> bool:
        return not self.ends

    def last_request_time(self) -> float:
        return 0.05

    def takes_waiting(self) -> bool:
        return self.ends and self.stops


@attrs.define
class FakeIncarnation:
    channels: FakeChannels | None = attrs.field(factory=FakeChannels)


WORKERS = FakeNodes("a.1", ("a.1", "a.2"))


@pytest.mark.parametrize(
    ("tree", "moving"),
    [
        (FakeTree(None), False),
        (FakeTree(FakeNodes("a", ("a",))), False),
        (FakeTree(FakeNodes("a", ())), False),  # cut off from Redis
        (FakeTree(FakeNodes("a", ("a", "b"))), True),
        (FakeTree(FakeNodes("a", ("a", "b")), ends=False), False),
        (FakeTree(WORKERS, workers=2), False),  # the other worker stops at the same time
        (FakeTree(WORKERS, workers=2, stops=False), True),  # this one is replaced
        (FakeTree(FakeNodes("a.1", ("a.1", "a.2", "b.1")), workers=2), True),
        (FakeTree(FakeNodes("a.1", ("a.1", "a.2"))), True),  # names of two machines
    ],
)
async def test_the_pace_is_slower_where_other_nodes_take_the_clients(tree: FakeTree, moving: bool) -> None:
    """They have to take them; without others the clients come back to the next start of this one."""
    incarnation = FakeIncarnation()
    closing = closing_of(cast("Any", tree), cast("Any", incarnation))
    await closing.settle()
    assert incarnation.channels is not None

    assert (closing.each(), closing.away()) == ((MOVE_EACH, 3) if moving else (CLOSE_EACH, 0))
    assert incarnation.channels.settled == tree.ends


async def test_a_stop_before_the_channels_have_started_waits_for_nothing() -> None:
    """There is no client then."""
    tree = FakeTree(FakeNodes("a", ("a", "b")))
    closing = closing_of(cast("Any", tree), cast("Any", FakeIncarnation(None)))
    await closing.settle()

    assert closing.away() == 0
