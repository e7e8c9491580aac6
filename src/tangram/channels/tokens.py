"""Tokens of the channels: JSON Web Tokens, HS256, three claims.

1. The time is an argument; a refused token is a ``Refusal`` from ``disconnects``.
2. Tokens are accepted as existing servers and clients of this protocol do: ``exp`` is an integer, sixty
   seconds of leeway, private claims are ignored, ``aud`` is refused, ``nbf`` is ignored.
3. PyJWT's signing layer (JWS) reads and writes the format and does the cryptography. Its upper layer is not
   used, because it reads a clock of its own and refuses a future ``nbf``. The library is imported with the
   first token, to keep the start of the server fast.
4. Tokens with a usual header and a good signature, which are nearly all, take a shorter way: the signature
   of the text is computed and compared as text. The library, five times as slow, judges the others.
"""

from __future__ import annotations

import hmac
from base64 import b64decode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec

from tangram.channels.disconnects import TOKEN_EXPIRED, UNAUTHORIZED, Refusal

if TYPE_CHECKING:
    from jwt.api_jws import PyJWS

__all__ = [
    "LEEWAY",
    "MAX_TOKEN",
    "Claims",
    "bearer",
    "mint",
    "private_claims",
    "verify",
    "warm_up",
]

LEEWAY: Final = 60
"""Seconds for which a token is still accepted after its expiry, because clocks differ."""
MAX_TOKEN: Final = 8192
"""Characters of a token. A longer one was not minted here, and is refused without hashing it."""
MAX_KNOWN: Final = 1024
"""Tokens whose signature is not checked again: clients join several topics, and come back, with the same
one. Each takes half a kilobyte."""
_BEARER: Final = "base64url.bearer.phx."

_USUAL_HEADERS: Final = frozenset(
    {
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9",  # {"alg":"HS256","typ":"JWT"}, of tokens minted here
        "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9",  # {"typ":"JWT","alg":"HS256"}, of the published server
    }
)

_CHECKED: Final = frozenset({"id", "channel", "exp"})

_library: PyJWS | None = None


@attrs.frozen
class Claims:
    """The claims of a token."""

    id: str
    """The external id of the client."""
    channel: str
    """The only topic that the token allows to join."""
    exp: int
    """Expiry in seconds since 1970."""


class _Body(msgspec.Struct):
    id: str
    channel: str
    exp: int
    aud: msgspec.Raw | None = None


_decode_body: Final = msgspec.json.Decoder(_Body).decode


def warm_up() -> PyJWS:
    """Import the library, unless that has been done, and return it."""
    global _library  # noqa: PLW0603 - made once, like an import
    if _library is None:
        _library = _make_library()
    return _library


def _make_library() -> PyJWS:
    from jwt.algorithms import HMACAlgorithm
    from jwt.api_jws import PyJWS

    class Quiet(HMACAlgorithm):
        def check_key_length(self, key: bytes) -> str | None:  # noqa: ARG002 - the library's signature
            # The operator chose the secret; a warning for each token would add nothing.
            return None

    library = PyJWS()
    library.unregister_algorithm("HS256")
    library.register_algorithm("HS256", Quiet(Quiet.SHA256))
    return library


def mint(claims: Claims, secret: str, private: Mapping[str, Any] | None = None) -> str:
    """Return a signed token for ``claims``.

    Args:
        claims: the claims that are checked.
        secret: the key.
        private: further claims, which handlers of pushes see as ``Sender.metadata``.
    """
    body = msgspec.json.encode(
        {**(private or {}), "id": claims.id, "channel": claims.channel, "exp": claims.exp}
    )
    return warm_up().encode(body, secret.encode(), "HS256")


def verify(token: str, secret: str, now: float) -> Claims | Refusal:
    """Return the claims of a valid token, or the refusal.

    ``now`` is wall time in seconds since 1970.
    """
    if len(token) > MAX_TOKEN:
        return UNAUTHORIZED
    from jwt import PyJWTError

    try:
        body = _read(token, secret)
    except (PyJWTError, ValueError, RecursionError):
        return UNAUTHORIZED
    if body.aud is not None:
        return UNAUTHORIZED
    if body.exp + LEEWAY <= now:
        return TOKEN_EXPIRED
    return Claims(body.id, body.channel, body.exp)


@lru_cache(MAX_KNOWN)
def _read(token: str, secret: str) -> _Body:
    """Check the signature of a token, and return its body; its time is checked at each use.

    Raises:
        PyJWTError: the token is malformed, or its signature is wrong.
        ValueError: the body is.
    """
    payload = _verify_usual(token, secret)
    if payload is None:
        payload = warm_up().decode(token, secret.encode(), ["HS256"])
    return _decode_body(payload)


def private_claims(token: str) -> dict[str, Any]:
    """Return the further claims of a token that ``verify`` has accepted."""
    payload = token.split(".")[1]
    claims: dict[str, Any] = msgspec.json.decode(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return {name: value for name, value in claims.items() if name not in _CHECKED}


def _verify_usual(token: str, secret: str) -> bytes | None:
    """Return the payload of a token with one of `_USUAL_HEADERS` and a good signature.

    Return None for any other token: PyJWT decides about those.
    """
    signed, _, signature = token.rpartition(".")
    header, _, payload = signed.partition(".")
    if header not in _USUAL_HEADERS or not token.isascii():
        return None
    expected = urlsafe_b64encode(hmac.digest(secret.encode(), signed.encode(), "sha256")).rstrip(b"=")
    if not hmac.compare_digest(expected, signature.encode()):
        return None
    return urlsafe_b64decode(payload + "=" * (-len(payload) % 4))


def bearer(subprotocols: Sequence[str]) -> str | None:
    """Return the ``authToken`` of phoenix.js, which it sends as a WebSocket subprotocol.

    It is base64 without padding, in either alphabet. None if there is no such subprotocol, or if it is
    malformed.
    """
    for offered in subprotocols:
        if offered.startswith(_BEARER):
            part = offered.removeprefix(_BEARER).replace("-", "+").replace("_", "/")
            try:
                return b64decode(part + "=" * (-len(part) % 4), validate=True).decode()
            except ValueError:
                return None
    return None
