"""A declared channel whose handler replies with a value from the checked payload."""

from __future__ import annotations

import msgspec

import tangram


class Measured(msgspec.Struct):
    n: int
    t: float
    z: str


class Taken(msgspec.Struct):
    n: int


plugin = tangram.Plugin()
bench = plugin.channel("{name}")


@bench.receives("push", Measured)
async def push(message: Measured) -> Taken:
    return Taken(message.n)
