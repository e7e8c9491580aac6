"""Tokens of the channels: JSON Web Tokens, HS256, three claims.

1. Pure: the time is an argument, a refused token is a ``Refusal`` from ``disconnects``.
2. Accepted is what existing servers and clients of this protocol rely on: ``exp`` an integer, sixty seconds
   of leeway, private claims ignored, an ``aud`` refused, ``nbf`` not looked at.
3. Thirty lines of our own, because importing PyJWT costs 50 ms and brings an HTTP client with it, and
   because it reads its own clock, refuses a future ``nbf`` and warns on short keys. PyJWT is the referee in
   the tests.
"""

from __future__ import annotations

import binascii
import hmac
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Final

import attrs
import msgspec

from tangram.channels.disconnects import TOKEN_EXPIRED, UNAUTHORIZED, Refusal

__all__ = ["LEEWAY", "MAX_TOKEN", "Claims", "mint", "verify"]

LEEWAY: Final = 60
"""Seconds that a token is still good for after its end: clocks differ."""
MAX_TOKEN: Final = 8192
"""Characters: a longer one is not ours, and not worth hashing."""


@attrs.frozen
class Claims:
    """What a token says."""

    id: str
    """The external id: who."""
    channel: str
    """The one topic it is good for."""
    exp: int
    """Its end, in seconds since 1970."""


class _Header(msgspec.Struct):
    alg: str
    typ: str | None = None
    crit: msgspec.Raw | None = None


class _Claims(msgspec.Struct):
    id: str
    channel: str
    exp: int
    aud: msgspec.Raw | None = None


_decode_header: Final = msgspec.json.Decoder(_Header).decode
_decode_claims: Final = msgspec.json.Decoder(_Claims).decode
_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_HEADER: Final = urlsafe_b64encode(b'{"typ":"JWT","alg":"HS256"}').rstrip(b"=")


def mint(claims: Claims, secret: str) -> str:
    """A signed token for ``claims``."""
    body = msgspec.json.encode({"id": claims.id, "channel": claims.channel, "exp": claims.exp})
    signed = _HEADER + b"." + urlsafe_b64encode(body).rstrip(b"=")
    return (signed + b"." + urlsafe_b64encode(_sign(signed, secret)).rstrip(b"=")).decode()


def verify(token: str, secret: str, now: float) -> Claims | Refusal:
    """The claims of a good token, else why it is none. ``now`` is wall time, in seconds since 1970."""
    if len(token) > MAX_TOKEN:
        return UNAUTHORIZED
    try:
        signed, _, signature = token.encode("ascii").rpartition(b".")
        header, body = signed.split(b".")
        if not hmac.compare_digest(_unpad(signature), _sign(signed, secret)):
            return UNAUTHORIZED
        head = _decode_header(_unpad(header))
        claims = _decode_claims(_unpad(body))
    except (binascii.Error, ValueError, RecursionError):
        return UNAUTHORIZED
    if head.alg != "HS256" or head.crit is not None or claims.aud is not None:
        return UNAUTHORIZED
    if claims.exp + LEEWAY <= now:
        return TOKEN_EXPIRED
    return Claims(claims.id, claims.channel, claims.exp)


def _sign(signed: bytes, secret: str) -> bytes:
    return hmac.new(secret.encode(), signed, sha256).digest()


def _unpad(part: bytes) -> bytes:
    if b"=" in part or b"+" in part or b"/" in part:
        raise ValueError("not base64url without padding")
    padded = part.translate(_STANDARD) + b"=" * (-len(part) % 4)
    return binascii.a2b_base64(padded, strict_mode=True)
