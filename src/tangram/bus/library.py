"""Libraries of functions on Redis: their texts, and how a new connection loads them.

``FUNCTION LOAD`` needs Redis 7 or Valkey. Where it is unknown or not allowed, the same text is loaded as one
script for each function (``SCRIPT LOAD``, ``EVALSHA``), which Redis 6.2 knows.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any, Final

import attrs
import hiredis

from tangram.bus.resp import Link, pack
from tangram.bus.scripts import Prefixes
from tangram.errors import BrokerRefused, BrokerUnavailable
from tangram.primary.answers import is_moved

__all__ = ["Library", "ask", "load_library"]

_REGISTRATION: Final = re.compile(r"^redis\.register_function.*\n", re.MULTILINE)


@attrs.frozen
class Library:
    """A file of functions in Lua, in a package of this server.

    Each function ``NAME`` of the file is registered as ``tangram_NAME``.
    """

    package: str
    """The package with the file ``functions.lua``."""
    names: tuple[str, ...]
    """The functions."""

    @property
    def text(self) -> str:
        """The text for ``FUNCTION LOAD``."""
        return _text(self.package)

    def script(self, name: str) -> str:
        """Return one function as a script for ``SCRIPT LOAD``."""
        _, _, rest = self.text.partition("\n")
        # Before Redis 7, a script that reads the time must ask for the replication of its effects.
        return f"redis.replicate_commands()\n{_REGISTRATION.sub('', rest)}\nreturn {name}(KEYS, ARGV)"


@cache
def _text(package: str) -> str:
    return files(package).joinpath("functions.lua").read_text(encoding="utf-8")


async def load_library(link: Link, library: Library) -> Prefixes:
    """Load a library on a new connection; return the first words of each function's call.

    Raises:
        BrokerRefused: Redis allows neither functions nor scripts.
        BrokerUnavailable: Redis is not ready.
    """
    answer = await ask(link, "FUNCTION", "LOAD", "REPLACE", library.text)
    if not isinstance(answer, hiredis.ReplyError):
        return {f"tangram_{name}": ("FCALL", f"tangram_{name}") for name in library.names}
    prefixes: dict[str, tuple[str | bytes, ...]] = {}
    for name in library.names:
        sha = await ask(link, "SCRIPT", "LOAD", library.script(name))
        if isinstance(sha, hiredis.ReplyError):
            raise BrokerRefused(f"redis allows neither functions nor scripts: {sha}")
        prefixes[f"tangram_{name}"] = ("EVALSHA", sha)
    return prefixes


async def ask(link: Link, *words: str | bytes) -> Any:
    """Send one command and return its answer, an error included.

    Raises:
        BrokerUnavailable: Redis is not ready.
    """
    await link.stream.send_all(pack(words))
    while (reply := link.reader.gets()) is False:
        await link.receive()
    away = isinstance(reply, hiredis.ReplyError) and str(reply).partition(" ")[0] in {"LOADING", "BUSY"}
    if away or (link.located and is_moved(reply)):
        raise BrokerUnavailable(f"redis is not ready: {reply}")
    return reply
