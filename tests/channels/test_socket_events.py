"""Events that the socket machine refuses."""

from __future__ import annotations

import pytest

from tangram.channels.frames import SocketMessage
from tangram.channels.socket import Authorize
from tests.channels.test_socket import Client, error, from_channels


@pytest.mark.parametrize("event", ["staff:delete", "staff:phx_join", ":", "staff:"])
def test_an_event_with_a_colon_is_refused(event: str) -> None:
    """It would be read as an event of another topic.

    It is refused as text and as bytes, also behind a pending join, and not published.
    """
    client = Client()
    (request,) = client.say("1", "1", "obs", "phx_join", {})
    assert client.say("1", "2", "obs", event, {}) == []
    assert isinstance(request, Authorize)
    effects = client.socket.authorized(request, "alice")
    assert [name for name, _ in from_channels(effects)] == ["from:obs:phx_join"]
    assert client.received()[-1] == error("1", "2", "obs", "colon in event")

    for binary in (False, True):
        message = SocketMessage("1", "3", "obs", event, b"{}", binary)
        assert client.socket.push(message) is None
        assert client.socket.receive(message) == []
        assert client.received() == [error("1", "3", "obs", "colon in event")]
