"""The scenarios of ``make hostile``: attacks, servers, and bounds on their memory."""

from __future__ import annotations

from typing import Final, Literal

import attrs

__all__ = ["SCENARIOS", "Scenario"]

MIB: Final = 1024 * 1024

PENDING: Final = 32 * MIB
"""``[server] max_pending_bytes`` of these servers, small enough to be exceeded by an attack."""

BACKLOG: Final = 256 * 1024
"""``[channel] max_backlog``, the default."""

MESSAGE: Final = 16 * MIB
"""``[channel] max_message``, the default."""

Where = Literal["before a join", "after a join", "HTTP/1.1", "HTTP/2", "compression"]


@attrs.frozen
class Scenario:
    """One attack and its server."""

    attack: str
    where: Where
    memory: int
    """Bytes by which the settings let the server grow."""
    bound: str
    """The settings that give this number."""
    short: bool = False
    """Whether it belongs to the short version."""
    compression: bool = False
    log: bool = True
    """Whether the server must log a line with the client's address; not for a client that stays within all
    limits.
    """

    @property
    def engine(self) -> str:
        """Return the engine that serves: Hypercorn has HTTP/2."""
        return "hypercorn" if self.where == "HTTP/2" else "native"


def _pending(attack: str, where: Where, *, short: bool = False, **more: bool) -> Scenario:
    return Scenario(attack, where, PENDING, "max_pending_bytes", short, **more)


def _per_client(attack: str, where: Where, clients: int, **more: bool) -> Scenario:
    each = BACKLOG + 2 * 64 * 1024
    return Scenario(attack, where, clients * each, f"{clients} x max_backlog and 128 KiB in flight", **more)


SCENARIOS: Final = (
    _pending("large_unjoined", "before a join", short=True),
    _pending("unfinished_unjoined", "before a join", short=True),
    _per_client("pings", "before a join", 4),
    _per_client("unread_pings", "before a join", 20),
    _pending("tiny_fragments", "before a join", short=True),
    _per_client("malformed", "before a join", 4),
    _per_client("refused_joins", "before a join", 4),
    _per_client("upgrades", "before a join", 20, log=False),
    Scenario("large_pushes", "after a join", 3 * 2 * MESSAGE, "3 x 2 x max_message", short=True),
    Scenario("deep_pushes", "after a join", 3 * 2 * MESSAGE, "3 x 2 x max_message"),
    _per_client("push_flood", "after a join", 4, short=True),
    _per_client("rejoins", "after a join", 98),
    _per_client("unread", "after a join", 40),
    Scenario("slow_heads", "HTTP/1.1", 300 * 32768, "300 x max_header_bytes", short=True),
    _pending("unfinished_bodies", "HTTP/1.1", short=True),
    _pending("nested_bodies", "HTTP/1.1"),
    Scenario(
        "dense_bodies", "HTTP/1.1", 4 * 42 * MIB, "4 x max_body and 262,144 arrays of 160 bytes", log=False
    ),
    Scenario("idle_connections", "HTTP/1.1", 1200 * 32768, "1200 x max_header_bytes"),
    _per_client("pipelined", "HTTP/1.1", 20),
    Scenario("garbage_heads", "HTTP/1.1", 20 * 65536, "20 x 64 KiB"),
    _pending("chunks_of_one", "HTTP/1.1"),
    _pending("bombs_unjoined", "compression", short=True, compression=True),
    Scenario(
        "bombs_joined", "compression", 5 * 2 * MESSAGE, "5 x 2 x max_message", short=True, compression=True
    ),
    Scenario("broken_deflate", "compression", 10 * 65536, "10 x 64 KiB", compression=True),
    _per_client("rapid_resets", "HTTP/2", 4, short=True),
    _per_client("window_updates", "HTTP/2", 4),
    _per_client("priorities", "HTTP/2", 4),
    _per_client("h2_settings", "HTTP/2", 4),
    _per_client("h2_pings", "HTTP/2", 4),
    Scenario("continuations", "HTTP/2", 4 * 65536, "4 x max_header_bytes and what is read at once"),
    Scenario("zero_windows", "HTTP/2", 1000 * 65536, "1000 streams x 64 KiB", short=True),
)
"""All scenarios, in the order of the table."""
