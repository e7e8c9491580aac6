"""Tokens of the channels: JSON Web Tokens, HS256, three claims.

1. Pure: the time is an argument, a refused token is a ``Refusal`` from ``disconnects``.
2. Accepted is what existing servers and clients of this protocol rely on: ``exp`` an integer, sixty seconds
   of leeway, private claims ignored, an ``aud`` refused, ``nbf`` not looked at.
3. PyJWT's signing layer (JWS) reads and writes the format and does the cryptography. Its layer above is not
   used: it reads a clock of its own, and refuses a future ``nbf``. It is imported with the first token:
   until then nobody needs it.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import attrs
import msgspec

from tangram.channels.disconnects import TOKEN_EXPIRED, UNAUTHORIZED, Refusal

if TYPE_CHECKING:
    from jwt.api_jws import PyJWS

__all__ = ["LEEWAY", "MAX_TOKEN", "Claims", "bearer", "mint", "verify", "warm_up"]

LEEWAY: Final = 60
"""Seconds that a token is still good for after its end: clocks differ."""
MAX_TOKEN: Final = 8192
"""Characters: a longer one is not ours, and not worth hashing."""
_BEARER: Final = "base64url.bearer.phx."

_library: PyJWS | None = None


@attrs.frozen
class Claims:
    """What a token says."""

    id: str
    """The external id: who."""
    channel: str
    """The one topic it is good for."""
    exp: int
    """Its end, in seconds since 1970."""


class _Body(msgspec.Struct):
    id: str
    channel: str
    exp: int
    aud: msgspec.Raw | None = None


_decode_body: Final = msgspec.json.Decoder(_Body).decode


def warm_up() -> PyJWS:
    """Import the library, where that has not been done."""
    global _library  # noqa: PLW0603 - made once, like an import
    if _library is None:
        _library = _make_library()
    return _library


def _make_library() -> PyJWS:
    from jwt.algorithms import HMACAlgorithm
    from jwt.api_jws import PyJWS

    class Quiet(HMACAlgorithm):
        def check_key_length(self, key: bytes) -> str | None:  # noqa: ARG002 - the library's signature
            # The operator chooses the secret: a warning at each token would tell nobody anything new.
            return None

    library = PyJWS()
    library.unregister_algorithm("HS256")
    library.register_algorithm("HS256", Quiet(Quiet.SHA256))
    return library


def mint(claims: Claims, secret: str) -> str:
    """A signed token for ``claims``."""
    body = msgspec.json.encode({"id": claims.id, "channel": claims.channel, "exp": claims.exp})
    return warm_up().encode(body, secret.encode(), "HS256")


def verify(token: str, secret: str, now: float) -> Claims | Refusal:
    """The claims of a good token, else why it is none. ``now`` is wall time, in seconds since 1970."""
    if len(token) > MAX_TOKEN:
        return UNAUTHORIZED
    library = warm_up()
    from jwt import PyJWTError

    try:
        body = _decode_body(library.decode(token, secret.encode(), ["HS256"]))
    except (PyJWTError, ValueError, RecursionError):
        return UNAUTHORIZED
    if body.aud is not None:
        return UNAUTHORIZED
    if body.exp + LEEWAY <= now:
        return TOKEN_EXPIRED
    return Claims(body.id, body.channel, body.exp)


def bearer(subprotocols: Sequence[str]) -> str | None:
    """phoenix.js' ``authToken``, which comes as a subprotocol: base64 without padding, in either alphabet;
    None if there is none or it is garbage.
    """
    for offered in subprotocols:
        if offered.startswith(_BEARER):
            part = offered.removeprefix(_BEARER).replace("-", "+").replace("_", "/")
            try:
                return b64decode(part + "=" * (-len(part) % 4), validate=True).decode()
            except ValueError:
                return None
    return None
