"""The functions on Redis, for the caller: load them on a connection, and name their words.

``FUNCTION LOAD`` needs Redis 7 or Valkey. Where it is unknown or not allowed, the same text is loaded as one
script for each function (``SCRIPT LOAD``, ``EVALSHA``), which Redis 6.2 knows.
"""

from __future__ import annotations

import re
import secrets
from functools import cache
from importlib.resources import files
from typing import Any, Final

import hiredis
import structlog

from tangram.bus.resp import Link, pack
from tangram.bus.scripts import Prefixes
from tangram.bus.topics import own_key
from tangram.errors import BrokerUnavailable

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
_REGISTRATION: Final = re.compile(r"^redis\.register_function.*\n", re.MULTILINE)


def data_key(topic: str, mode: str) -> str:
    """Return the key of a topic's messages."""
    return own_key("topic", topic, "l" if mode == "latest" else "h")


def state_key(topic: str) -> str:
    """Return the key of a topic's state."""
    return own_key("topic", topic, "m")


def new_epoch() -> str:
    """Return a name for an epoch that no epoch had before."""
    return secrets.token_hex(6)


@cache
def library() -> str:
    """Return the text of the library for ``FUNCTION LOAD``."""
    return files("tangram.history").joinpath("functions.lua").read_text(encoding="utf-8")


@cache
def script(name: str) -> str:
    """Return one function as a script for ``SCRIPT LOAD``."""
    _, _, rest = library().partition("\n")
    # Before Redis 7, a script that reads the time must ask for the replication of its effects.
    return f"redis.replicate_commands()\n{_REGISTRATION.sub('', rest)}\nreturn {name}(KEYS, ARGV)"


async def load_functions(link: Link, identity: str | None, settings: str) -> Prefixes:
    """Load the functions on a new connection, and return the first words of a call of each.

    Args:
        link: the connection.
        identity: the identity of the storage; None for the ``run_id`` of the Redis that answers.
        settings: a digest of the settings of histories. Other settings begin all epochs anew.

    Returns:
        The first words by the name of the function; empty if Redis allows neither functions nor scripts.
    """
    answer = await _ask(link, "FUNCTION", "LOAD", "REPLACE", library())
    if not isinstance(answer, hiredis.ReplyError):
        prefixes: dict[str, tuple[str | bytes, ...]] = {
            f"tangram_{name}": ("FCALL", f"tangram_{name}") for name in NAMES
        }
    else:
        prefixes = {}
        for name in NAMES:
            sha = await _ask(link, "SCRIPT", "LOAD", script(name))
            if isinstance(sha, hiredis.ReplyError):
                log.error("history is off: redis allows neither functions nor scripts", cause=str(sha))
                return {}
            prefixes[f"tangram_{name}"] = ("EVALSHA", sha)
    identity = identity or _run_id(await _ask(link, "INFO", "server"))
    words = (*prefixes["tangram_begin"], "2", LEASE, GUARD, f"{identity} {settings}")
    begun = await _ask(link, *words)
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


async def _ask(link: Link, *words: str | bytes) -> Any:
    """Send one command and return its answer, an error included."""
    await link.stream.send_all(pack(words))
    while (reply := link.reader.gets()) is False:
        await link.receive()
    if isinstance(reply, hiredis.ReplyError) and str(reply).partition(" ")[0] in {"LOADING", "BUSY"}:
        raise BrokerUnavailable(f"redis is not ready: {reply}")
    return reply
