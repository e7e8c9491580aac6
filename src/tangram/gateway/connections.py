"""The numbers of one connection, for the operator."""

from __future__ import annotations

import socket
import struct
from typing import Final

import attrs

from tangram.gateway.session import Session, TransportSocket

__all__ = ["TOPICS_SHOWN", "ConnectionStatistics", "round_trip", "statistics_of"]

TOPICS_SHOWN: Final = 8
"""Topics of one connection that are listed; a browser has two or three."""

_TCP_INFO: Final = getattr(socket, "TCP_INFO", None)
_RTT: Final = struct.Struct("=68xI")
"""``tcpi_rtt`` of Linux' ``struct tcp_info``, the smoothed round-trip time in microseconds, is at byte 68."""


@attrs.frozen
class ConnectionStatistics:
    """The numbers of one connection of the channels."""

    conn: str
    """The id of the connection."""
    address: str
    """The client's address, as a trusted proxy reports it."""
    age: float
    """Seconds since it was accepted."""
    silent: float
    """Seconds since its client sent something."""
    topics: tuple[str, ...]
    """The first `TOPICS_SHOWN` joined topics."""
    joined: int
    """The number of joined topics."""
    received: int
    """Frames of the client."""
    backlog: int
    """Bytes that wait for the client."""
    conflated: int
    """Messages that were replaced by newer ones, because the client was behind."""
    rtt: float | None
    """Seconds of a round trip, measured by the kernel; behind a proxy the way to the proxy. None: unknown."""


def statistics_of(session: Session, now: float) -> ConnectionStatistics:
    """Return the numbers of a connection at a time of Trio's clock."""
    topics = session.socket.topics
    return ConnectionStatistics(
        conn=session.conn,
        address=session.info.address,
        age=now - session.began,
        silent=now - session.last_seen,
        topics=tuple(topics[:TOPICS_SHOWN]),
        joined=len(topics),
        received=session.socket.frames,
        backlog=session.outbox.pending,
        conflated=session.outbox.conflated,
        rtt=round_trip(session.transport),
    )


def round_trip(transport: TransportSocket | None) -> float | None:
    """Return the seconds of a round trip on a TCP socket, or None if it cannot be asked."""
    if transport is None or _TCP_INFO is None:
        return None
    try:
        (microseconds,) = _RTT.unpack(transport.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _RTT.size))
    except (OSError, struct.error):
        return None  # a Unix socket, one in memory, or one that is closed
    return float(microseconds) / 1e6
