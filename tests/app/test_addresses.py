"""The addresses of a server that follow from its configuration and its sockets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tangram.app.addresses import base_url, node_url
from tangram.config import Config


@pytest.mark.parametrize(
    ("host", "internal", "url"),
    [
        ("127.0.0.1", "10.0.0.5:2350", "http://127.0.0.1:2346"),
        ("0.0.0.0", "10.0.0.5:2350", "http://10.0.0.5:2346"),
        ("::", "[fd00::5]:2350", "http://[fd00::5]:2346"),
        ("0.0.0.0", None, "http://127.0.0.1:2346"),
        ("::", None, "http://[::1]:2346"),
    ],
)
def test_a_node_on_every_address_is_named_by_its_internal_one(
    host: str, internal: str | None, url: str
) -> None:
    """Its own loopback address would lead the operator of another machine to another node."""
    held: Any = SimpleNamespace(host=host, port=2346)

    assert node_url(Config(), held, internal) == url
    if internal is None or host == "127.0.0.1":
        assert base_url(Config(), held) == url
