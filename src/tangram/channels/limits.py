"""Rate limits: one token bucket for each client address, without a clock of their own."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from functools import lru_cache
from typing import Final

__all__ = ["Limiter", "client_key"]

MAX_KEYS: Final = 16_384
"""Addresses remembered at once. The least recently seen one is forgotten first."""


class Limiter:
    """Allow ``rate`` operations a second and ``burst`` at once for each key.

    A rate of 0 means no limit.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = max(1.0, burst)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str | None, now: float) -> bool:
        """Take one operation from the bucket of ``key``, and return whether it is allowed.

        Args:
            key: as ``client_key`` returns it; None is exempt.
            now: seconds of any clock that does not jump; a step back neither fills nor empties a bucket.
        """
        if key is None or self._rate <= 0:
            return True
        level, at = self._buckets.pop(key, (self._burst, now))
        level = min(self._burst, level + max(0.0, now - at) * self._rate)
        allowed = level >= 1.0
        self._buckets[key] = (level - 1.0 if allowed else level, now)
        if len(self._buckets) > MAX_KEYS:
            self._buckets.popitem(last=False)
        return allowed


@lru_cache(maxsize=4096)
def client_key(address: str) -> str | None:
    """Return the bucket of an IP address; None, which is exempt, for an unknown address.

    Loopback is not exempt: behind a proxy on this machine it stands for every client.

    An IPv6 address is counted by its /64 network, because one host usually owns all addresses of it.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address or None
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(parsed), 64), strict=False))
        parsed = parsed.ipv4_mapped
    return str(parsed)
