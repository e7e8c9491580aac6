"""Probe a quiet subscriber connection: the task beside ``echo``, which decides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog
import trio

from tangram.bus.echo import ECHO_EVERY, ECHO_TIMEOUT, Echo
from tangram.errors import BrokerRefused, BrokerUnavailable

__all__ = ["Publish", "watch_quiet"]

log = structlog.get_logger("tangram.bus")

Publish = Callable[[str], Awaitable[None]]
"""Publishes an empty message on a channel, over another connection."""


async def watch_quiet(echo: Echo, received: Callable[[], int], publish: Publish) -> NoReturn:
    """Probe the connection each time that it is quiet, until a message does not come back.

    Args:
        echo: decides about the probes of this connection.
        received: returns the number of messages that it received so far.
        publish: publishes a probe.

    Raises:
        BrokerUnavailable: Redis took a probe and did not send it back.
    """
    while True:
        await trio.sleep(ECHO_EVERY)
        if echo.look(received()) == "wait":
            continue
        published = await _publish(echo, publish)
        await trio.sleep(ECHO_TIMEOUT)
        # If this process was blocked, the message lies in the socket: let the reader run before the check.
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        if echo.is_deaf(received(), published=published):
            raise BrokerUnavailable(f"redis did not send a message back within {ECHO_TIMEOUT:g} s")


async def _publish(echo: Echo, publish: Publish) -> bool:
    try:
        await publish(echo.channel)
    except BrokerRefused as error:
        echo.allowed = False
        log.info("quiet connections are not probed", cause=str(error))
        return False
    except BrokerUnavailable:
        return False
    return True
