"""The npm package ``phoenix`` against the native engine: the same tests as over Quart, on another engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from tangram.channels.policy import Authorizer
from tangram.transports.listeners import close_listeners, open_listeners
from tangram.transports.native import serve_native
from tests.channels.fakes import FakeBus, Settings
from tests.transports import harness
from tests.transports import test_phoenix as shared
from tests.transports.serving import Server, make_app, make_channels
from tests.transports.test_phoenix import (
    browser,
    node_modules,
    test_a_foreign_version_cannot_connect,
    test_a_full_socket_refuses_the_next_join,
    test_a_hopeless_join_is_refused_and_forgotten,
    test_a_restart_brings_everybody_back,
    test_an_interrupted_feed_makes_members_rejoin,
    test_join_event_push_leave,
    test_joining_twice_ends_the_old_channel,
    test_presence_of_three,
    test_the_user_token_is_good_for_its_own_channel,
)

__all__ = [
    "browser",
    "node_modules",
    "test_a_foreign_version_cannot_connect",
    "test_a_full_socket_refuses_the_next_join",
    "test_a_hopeless_join_is_refused_and_forgotten",
    "test_a_restart_brings_everybody_back",
    "test_an_interrupted_feed_makes_members_rejoin",
    "test_join_event_push_leave",
    "test_joining_twice_ends_the_old_channel",
    "test_presence_of_three",
    "test_the_user_token_is_good_for_its_own_channel",
]

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def on_the_native_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "open_server", open_native)


@asynccontextmanager
async def open_native(
    settings: Settings | None = None, *, authorizers: Sequence[Authorizer] = (), **more: Any
) -> AsyncIterator[Server]:
    bus = FakeBus()
    channels = make_channels(bus, settings, authorizers=authorizers, **more)
    app: Any = make_app(channels)
    held = open_listeners("127.0.0.1", 0)
    run = partial(serve_native, app, held, harness.Settings(), grace=lambda: 1.0, channels=channels)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(channels.run)
            await nursery.start(run)
            yield Server(f"http://127.0.0.1:{held[0].port}", channels, bus, app)
            await channels.drain(within=1.0)
            nursery.cancel_scope.cancel()
    finally:
        close_listeners(held)
