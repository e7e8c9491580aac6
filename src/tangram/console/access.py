"""The check of requests to the operator's routes.

1. A program shows the operator's token: ``Authorization: Bearer TOKEN``. A browser has a session's cookie.
2. Being on this machine replaces neither: a proxy on this machine makes every client local, and any page in a
   browser here can send a request to loopback.
3. A change by a browser needs the session's change key in a header, which no other page knows and no form can
   send, and must come from a page of this server.
4. Wrong tokens are bounded by address: see ``attempts``.
"""

from __future__ import annotations

import hmac
import math
import secrets
import time
from typing import Final
from urllib.parse import urlsplit

import structlog

from tangram.console.attempts import Attempts
from tangram.console.sessions import OpenedSession, Sessions
from tangram.http.engine import network_of
from tangram.http.forward.heads import Envelope
from tangram.http.forward.receiver import FORWARDED
from tangram.routing import HTTPException, Request, Response

__all__ = ["CHANGE_HEADER", "COOKIE_PATH", "OperatorAccess"]

log = structlog.get_logger("tangram.web")

CHANGE_HEADER: Final = "x-tangram-change"
"""The header with the session's change key."""

COOKIE_PATH: Final = "/-"
"""The cookie is sent to the operator's routes only."""


class OperatorAccess:
    """Decides which requests may read details and which may change something.

    It outlives incarnations, as sessions and counted attempts must.

    Args:
        token: the operator's token; an empty one opens nothing.
        root_path: the prefix below which browsers reach the server, as ``[server] root_path`` has it.
    """

    def __init__(self, token: str, root_path: str = "") -> None:
        self.root_path = root_path
        self._token = token.encode()
        self.sessions = Sessions(token, clock=time.time, new_id=secrets.token_hex)
        self.attempts = Attempts(time.monotonic)

    def renew(self, token: str, root_path: str = "") -> None:
        """Use another token and prefix after a reload."""
        self.root_path = root_path
        self._token = token.encode()
        self.sessions.renew(token)

    def may_read(self, request: Request) -> bool:
        """Return whether a request may see details: it has the token, or the cookie of a session.

        Raises:
            HTTPException: 429, the address has shown too many wrong tokens.
        """
        forwarded: Envelope | None = request.scope.get(FORWARDED)
        if forwarded is not None:
            return forwarded.right != ""
        return self.has_token(request) or self.sessions.is_valid(self._cookie(request))

    def require_read(self, request: Request) -> None:
        """Raise 401 for a request that may not see details, or 429."""
        if not self.may_read(request):
            raise _unauthorized()

    def require_token(self, request: Request) -> None:
        """Raise 401 for a request without the token, or 429; a session is not enough."""
        if not self.has_token(request):
            raise _unauthorized()

    def require_change(self, request: Request) -> None:
        """Raise for a request that may change nothing.

        That is 401 without token and session, and 403 without the session's key.

        A request with the token needs no key: a browser sends no such header by itself.
        """
        if self.has_token(request):
            return
        cookie = self._cookie(request)
        if not self.sessions.is_valid(cookie):
            raise _unauthorized()
        require_own_page(request)
        if not self.sessions.may_change(cookie, request.headers.get(CHANGE_HEADER, "")):
            raise HTTPException(
                403, f"a change needs the header {CHANGE_HEADER} of this session: log in again"
            )

    def has_token(self, request: Request) -> bool:
        """Return whether a request has the operator's token, and count a wrong one.

        Raises:
            HTTPException: 429, the address has shown too many wrong tokens.
        """
        forwarded: Envelope | None = request.scope.get(FORWARDED)
        if forwarded is not None:
            return forwarded.right == "token"  # the node that the client has asked has checked it
        values = request.headers.getlist("authorization")
        scheme, _, given = (values[0] if len(values) == 1 else "").partition(" ")
        # Another scheme is for a proxy that asks for a password of its own, and is not counted.
        return scheme.lower() == "bearer" and self.check_token(request, given.strip().encode("latin-1"))

    def check_token(self, request: Request, given: bytes) -> bool:
        """Return whether a text is the operator's token, and count a wrong one.

        Raises:
            HTTPException: 429, the address has shown too many wrong tokens.
        """
        network = network_of(request.client.host if request.client is not None else "")
        wait = self.attempts.wait(network)
        if wait > 0:
            seconds = str(math.ceil(wait))
            detail = f"too many wrong tokens from this address: wait {seconds} s"
            raise HTTPException(429, detail, {"retry-after": seconds})
        # A comparison in constant time does not reveal how many characters were right.
        if self._token and hmac.compare_digest(given, self._token):
            return True
        self.attempts.note_wrong(network)
        log.warning("wrong operator token", address=network)
        return False

    def open_session(self, request: Request, response: Response) -> OpenedSession:
        """Open a session and set its cookie on a response."""
        session = self.sessions.open()
        response.set_cookie(
            self.sessions.cookie_name,
            session.cookie,
            max_age=session.seconds,
            path=self._cookie_path,
            secure=request.scope.get("scheme") == "https",
            httponly=True,
            samesite="strict",
        )
        return session

    def end_session(self, request: Request, response: Response) -> None:
        """End the session of a request and remove its cookie."""
        self.sessions.end(self._cookie(request))
        response.delete_cookie(self.sessions.cookie_name, path=self._cookie_path)

    @property
    def _cookie_path(self) -> str:
        return f"{self.root_path}{COOKIE_PATH}"

    def _cookie(self, request: Request) -> str:
        return request.cookies.get(self.sessions.cookie_name, "")


def require_own_page(request: Request) -> None:
    """Raise 403 for a request that a page of another origin has sent.

    Browsers say so in ``Sec-Fetch-Site``, or by ``Origin`` where the connection is not trustworthy to them
    (plain HTTP in a local network). Programs send neither.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        own = site == "same-origin"
    else:
        own = origin is None or urlsplit(origin).netloc == request.headers.get("host", "")
    if not own:
        raise HTTPException(403, "a page of another origin may not change anything here")


def _unauthorized() -> HTTPException:
    return HTTPException(
        401,
        "the operator's token is needed: Authorization: Bearer TOKEN",
        {"www-authenticate": 'Bearer realm="tangram"'},
    )
