"""Sessions of the console, without I/O.

1. A session is a signed cookie and not a record, so that it is valid after a restart of the server: the page
   comes back by itself.
2. Reading needs the cookie. A change needs the session's change key as well, which is sent once, in the
   answer to the login, and never again: a cookie that was read elsewhere (a log, a proxy, another server on
   this host) cannot change anything.
3. Both are signed with a key that is derived from the operator's token: another token ends every session.
4. A code opens one session, once, within a minute. The command ``tangram console`` puts it into a URL.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Final, NamedTuple

__all__ = ["CODE_SECONDS", "MAX_CODES", "MAX_ENDED", "SESSION_SECONDS", "OpenedSession", "Sessions"]

SESSION_SECONDS: Final = 12 * 3600
"""Seconds for which a session is valid: a shift, and a night."""

CODE_SECONDS: Final = 60.0
"""Seconds for which the code of a one-time URL is valid: a browser opens it at once."""

MAX_CODES: Final = 16
"""Codes that wait at once; a new one replaces the oldest."""

MAX_ENDED: Final = 1024
"""Sessions that were ended by a logout and are remembered until they expire."""


class OpenedSession(NamedTuple):
    """A new session."""

    cookie: str
    """The value of the cookie."""
    change_key: str
    """The value that a request with a change must have in its header."""
    seconds: int
    """For how long it is valid."""


class Sessions:
    """Opens and checks sessions.

    Args:
        token: the operator's token; without one no session can be opened.
        clock: returns seconds since the epoch.
        new_id: returns a new random text that cannot be guessed.
    """

    def __init__(self, token: str, *, clock: Callable[[], float], new_id: Callable[[], str]) -> None:
        self._clock = clock
        self._new_id = new_id
        self._codes: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._key = b""
        self.renew(token)

    def renew(self, token: str) -> None:
        """Use another token; if it differs from the last one, every session ends."""
        self._key = hmac.digest(token.encode(), b"tangram console", "sha256") if token else b""

    @property
    def cookie_name(self) -> str:
        """The cookie's name.

        It differs for servers with different tokens, because browsers send cookies to every port of a host.
        """
        return f"tangram-{hashlib.sha256(self._key).hexdigest()[:12]}"

    def open(self) -> OpenedSession:
        """Open a session for a client that has shown the token or a code.

        Raises:
            ValueError: the server has no token.
        """
        if not self._key:
            raise ValueError("a server without an operator's token has no sessions")
        body = f"{int(self._clock()) + SESSION_SECONDS}.{self._new_id()}"
        return OpenedSession(
            f"{body}.{self._sign('read', body)}", self._sign("change", body), SESSION_SECONDS
        )

    def is_valid(self, cookie: str) -> bool:
        """Return whether a cookie is that of an open session."""
        body, _, signature = cookie.rpartition(".")
        if not self._key or not hmac.compare_digest(
            signature.encode(errors="replace"), self._sign("read", body).encode()
        ):
            return False
        expires = body.partition(".")[0]
        return expires.isdigit() and int(expires) > self._clock() and body not in self._ended

    def may_change(self, cookie: str, change_key: str) -> bool:
        """Return whether a session is valid and the change key is its own."""
        expected = self._sign("change", cookie.rpartition(".")[0])
        return self.is_valid(cookie) and hmac.compare_digest(
            change_key.encode(errors="replace"), expected.encode()
        )

    def end(self, cookie: str) -> None:
        """End a session before it expires."""
        if not self.is_valid(cookie):
            return
        now = self._clock()
        for body in [body for body, expires in self._ended.items() if expires <= now]:
            del self._ended[body]
        if len(self._ended) >= MAX_ENDED:
            del self._ended[next(iter(self._ended))]
        body = cookie.rpartition(".")[0]
        self._ended[body] = float(body.partition(".")[0])

    def new_code(self) -> str:
        """Return a code that opens one session."""
        if len(self._codes) >= MAX_CODES:
            del self._codes[next(iter(self._codes))]
        code = self._new_id()
        self._codes[code] = self._clock() + CODE_SECONDS
        return code

    def redeem(self, code: str) -> bool:
        """Return whether a code is valid, and use it up."""
        expires = self._codes.pop(code, None)
        return expires is not None and expires > self._clock()

    def _sign(self, purpose: str, body: str) -> str:
        # The body may be any text of a client; one that is not ASCII was not signed here.
        text = f"{purpose}.{body}".encode(errors="replace")
        return hmac.digest(self._key, text, "sha256").hex()
