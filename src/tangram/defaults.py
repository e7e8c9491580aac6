"""Default values that a setting of ``tangram.toml`` shares with a parameter of a function.

The default of a setting alone stands in ``tangram.config.model``. One that a parameter has as well, for
example of ``tangram.supervision.open_supervisor``, stands here, below the rooms that use it.
"""

from typing import Final

REDIS_PORT: Final = 6379
"""Redis's own TCP port."""

MAX_BODY: Final = 2 * 1024 * 1024
"""Bytes of a request's body. The published server's limit on ``/token``."""
MAX_MESSAGE: Final = 16 * 1024 * 1024
"""Bytes of one WebSocket message. The published server's limit."""
MAX_BACKLOG: Final = 262144
"""Bytes that may wait for one client behind the message in flight.

256 KiB are about 1,300 messages of 200 bytes, which is more than a second of all but the heaviest streams.
The backlogs of 10,000 stuck clients still fit into memory.
"""
MAX_JOINS: Final = 100
"""Topics that one socket may be joined to. Phoenix's default."""
PING_INTERVAL: Final = 30.0
"""Seconds between WebSocket pings to a quiet client; proxies usually close after 60 s of silence."""

START_TIMEOUT: Final = 30.0
"""Seconds for one child to report that it is ready."""
STOP_TIMEOUT: Final = 5.0
"""Seconds for one child to end after it was cancelled. OTP's default for a worker."""
SHUTDOWN_TIMEOUT: Final = 10.0
"""Seconds for all children to end. Most service managers kill after 10 to 90."""
RESTARTS: Final = 3
"""Restarts within ``RESTART_WINDOW`` that a supervisor allows."""
RESTART_WINDOW: Final = 60.0
"""Seconds over which the restarts of a supervisor are counted."""
BACKOFF_INITIAL: Final = 0.05
"""Seconds before the second restart in a row. A port or a file is released in less than 50 ms."""
BACKOFF_MAXIMUM: Final = 5.0
"""Seconds of the longest wait before a restart: a few needless attempts cost less than a long wait."""
BACKOFF_RESET: Final = 60.0
"""Seconds without a crash after which the waits begin anew."""
STALL_AFTER: Final = 1.0
"""Seconds for which the event loop may be blocked before this is reported."""
LEASE_TTL: Final = 6.0
"""Seconds after which another node takes over the plugins of a node that has died."""
