"""Run the tests of the npm package ``phoenix`` against the native engine."""

from __future__ import annotations

from functools import partial

import pytest

from tangram.testing import open_transport
from tests.http import test_phoenix as shared
from tests.http.test_phoenix import (
    browser,
    node_modules,
    test_a_foreign_version_cannot_connect,
    test_a_full_socket_refuses_the_next_join,
    test_a_refused_join_is_not_retried,
    test_an_interrupted_feed_makes_members_rejoin,
    test_clients_rejoin_after_a_restart,
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
    "test_a_refused_join_is_not_retried",
    "test_an_interrupted_feed_makes_members_rejoin",
    "test_clients_rejoin_after_a_restart",
    "test_join_event_push_leave",
    "test_joining_twice_ends_the_old_channel",
    "test_presence_of_three",
    "test_the_user_token_is_good_for_its_own_channel",
]

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def on_the_native_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "open_server", partial(open_transport, engine="native"))
