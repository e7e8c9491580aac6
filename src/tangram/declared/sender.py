"""The client whose push a handler answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

__all__ = ["Sender"]


@attrs.frozen
class Sender:
    """The client that sent a push, as its token and its connection say."""

    id: str
    """The id of its token."""
    connection: str
    """The id of its connection; each connection has another one."""
    topic: str
    """The topic that it has joined, for example ``flights:eu``."""
    address: str = ""
    """Its IP address; from forwarded headers only if the proxy is trusted."""
    metadata: Mapping[str, Any] = attrs.Factory(dict)
    """The claims of its token besides ``id``, ``channel`` and ``exp``."""
