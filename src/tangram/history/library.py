"""The functions of histories on Redis, for the caller: load them, and name their words."""

from __future__ import annotations

import secrets
from typing import Final

import hiredis
import structlog

from tangram.bus.library import Library, ask, load_library
from tangram.bus.resp import Link
from tangram.bus.scripts import Prefixes
from tangram.bus.topics import own_key
from tangram.errors import BrokerRefused

__all__ = [
    "GUARD",
    "LEASE",
    "NAMES",
    "data_key",
    "library",
    "load_functions",
    "new_epoch",
    "script",
    "state_key",
]

log = structlog.get_logger("tangram.history")

GUARD: Final = own_key("history")
"""The key of the guard, which decides whether old epochs can be continued."""
LEASE: Final = own_key("recorder")
"""The key of the lease of the node that records messages of plain ``PUBLISH``."""
NAMES: Final = ("publish", "read", "record", "lease", "release", "begin")
LIBRARY: Final = Library("tangram.history", NAMES)


def data_key(topic: str, mode: str) -> str:
    """Return the key of a topic's messages."""
    return own_key("topic", topic, "l" if mode == "latest" else "h")


def state_key(topic: str) -> str:
    """Return the key of a topic's state."""
    return own_key("topic", topic, "m")


def new_epoch() -> str:
    """Return a name for an epoch that no epoch had before."""
    return secrets.token_hex(6)


def library() -> str:
    """Return the text of the library for ``FUNCTION LOAD``."""
    return LIBRARY.text


def script(name: str) -> str:
    """Return one function as a script for ``SCRIPT LOAD``."""
    return LIBRARY.script(name)


async def load_functions(link: Link, identity: str | None, settings: str) -> Prefixes:
    """Load the functions on a new connection, and return the first words of a call of each.

    Args:
        link: the connection.
        identity: the identity of the storage; None for the ``run_id`` of the Redis that answers.
        settings: a digest of the settings of histories. Other settings begin all epochs anew.

    Returns:
        The first words by the name of the function; empty if Redis allows neither functions nor scripts.
    """
    try:
        prefixes = await load_library(link, LIBRARY)
    except BrokerRefused as error:
        log.error("history is off: redis allows neither functions nor scripts", cause=str(error))  # noqa: TRY400 - Redis' answer needs no traceback
        return {}
    identity = identity or _run_id(await ask(link, "INFO", "server"))
    words = (*prefixes["tangram_begin"], "2", LEASE, GUARD, f"{identity} {settings}")
    begun = await ask(link, *words)
    if isinstance(begun, hiredis.ReplyError):
        log.error("history is off: redis refuses the functions", cause=str(begun))
        return {}
    return prefixes


def _run_id(info: object) -> str:
    for line in bytes(info).decode(errors="replace").splitlines() if isinstance(info, bytes) else ():
        name, _, value = line.partition(":")
        if name == "run_id":
            return value.strip()
    return "unknown"
