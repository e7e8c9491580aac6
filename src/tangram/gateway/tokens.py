"""``POST /token``: a token for one channel, if the access policy allows it.

The status codes are those of existing servers: 400 for a body that is not JSON, 415 for another content
type, 422 for JSON of the wrong shape, and 403, 429 or 503 with the reason if the policy refuses. CORS and
405 are handled by the web.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from tangram import defaults
from tangram.channels.disconnects import BUSY, Refusal
from tangram.channels.policy import ConnectInfo, Gate
from tangram.gateway.admission import connect_info
from tangram.gateway.channels import Channels
from tangram.routing import APIRouter, Request, Response

__all__ = ["MAX_BODY", "TokenAnswer", "issue_token", "token_router"]

MAX_BODY: Final = defaults.MAX_BODY
"""Bytes of a request body, as existing servers allow; a useful one has a few hundred."""
RETRY_AFTER: Final = "1"
"""Seconds after which the bucket of an address holds tokens again at the default rate."""
COOKIE: Final = "tangram_ids"
"""The cookie with the proofs of a browser's ids, one for each page that it has open."""
COOKIE_AGE: Final = 2_592_000
"""Seconds for which a browser keeps it: 30 days, as long as the tokens of the published front end."""
MAX_PROOFS: Final = 16
"""Ids of one browser whose proofs are kept, the newest first: 368 bytes in each request."""
_JSON: Final = re.compile(r"application/(?:[\w.!#$&^+-]+\+)?json\s*(?:;.*)?", re.IGNORECASE)

_REQUEST_BODY: Final = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "channel": {"title": "Channel", "type": "string", "minLength": 1},
                    "id": {"title": "Id", "anyOf": [{"type": "string"}, {"type": "null"}]},
                    "proof": {"title": "Proof", "anyOf": [{"type": "string"}, {"type": "null"}]},
                },
                "required": ["channel"],
            }
        }
    },
}
"""The body in the OpenAPI document: the handler reads it itself, for the statuses of existing servers."""

_TOKEN: Final = {
    "type": "object",
    "properties": {
        name: {"title": name.title(), "type": "string"} for name in ("channel", "id", "token", "proof")
    },
    "required": ["channel", "id", "token"],
}

_DOCUMENTED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"application/json": {"schema": _TOKEN}}},
    400: {"description": "The body is not JSON"},
    403: {"description": "The access policy refuses the token"},
    413: {"description": "The body is larger than allowed"},
    415: {"description": "The body's content type is not application/json"},
    422: {"description": "The JSON has the wrong shape"},
    429: {"description": "The address asks too often"},
    503: {"description": "The channels are restarting"},
}


class TokenAnswer(NamedTuple):
    """The HTTP answer to a token request."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str]


class _Asked(msgspec.Struct):
    channel: str
    id: str | None = None
    proof: str | msgspec.UnsetType | None = msgspec.UNSET
    """The proof of the id. A client that sends the field, null at first, gets a proof with each answer."""


async def issue_token(
    gate: Gate, body: bytes, *, content_type: str | None, authorization: str | None, info: ConnectInfo
) -> TokenAnswer:
    """Answer one token request.

    Args:
        gate: the access policy.
        body: the request body; any bytes get an answer.
        content_type: the header of that name.
        authorization: the header of that name; ``admin`` needs the operator's bearer token.
        info: the request, for rates, origins and plugins.
    """
    if len(body) > MAX_BODY:
        return _refused(413, f"the body is longer than {MAX_BODY} bytes")
    if content_type is None or not _JSON.fullmatch(content_type.strip()):
        return _refused(415, "expected the content type application/json")
    asked = _read(body)
    if isinstance(asked, TokenAnswer):
        return asked
    asks_proof = asked.proof is not msgspec.UNSET
    keeps_cookie = _is_same_origin(info)
    kept = _proofs_in(info.headers.get("cookie", ""))
    minted = await gate.mint(
        asked.channel,
        asked.id,
        info,
        bearer=_bearer(authorization),
        proofs=[*kept, asked.proof] if isinstance(asked.proof, str) else kept,
        keeps_proof=asks_proof or keeps_cookie,
    )
    if isinstance(minted, Refusal):
        return _refused(minted.status, minted.reason, retry=minted.retry)
    answer = minted._asdict()
    proof = answer["proof"] if asks_proof else answer.pop("proof")
    headers = {"cache-control": "no-store"}
    if keeps_cookie:
        proofs = ".".join([proof, *(one for one in kept if one != proof)][:MAX_PROOFS])
        headers["set-cookie"] = f"{COOKIE}={proofs}; HttpOnly; SameSite=Strict; Max-Age={COOKIE_AGE}"
    return TokenAnswer(200, "application/json", msgspec.json.encode(answer), headers)


def _is_same_origin(info: ConnectInfo) -> bool:
    """Return whether the request is from a page of the server's own origin.

    The browser of such a page keeps the cookie.
    """
    site = info.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return info.origin is not None and info.origin.partition("://")[2] == info.headers.get("host")


def _proofs_in(cookies: str) -> list[str]:
    """Return the proofs in a Cookie header, the newest first."""
    for cookie in cookies.split(";"):
        name, _, value = cookie.strip().partition("=")
        if name == COOKIE:
            return value.split(".")[:MAX_PROOFS]
    return []


def _bearer(authorization: str | None) -> str | None:
    scheme, _, credentials = (authorization or "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else None


def _read(body: bytes) -> _Asked | TokenAnswer:
    """Return the request in a body, or the answer to a wrong one."""
    try:
        msgspec.json.decode(body, type=msgspec.Raw)  # malformed JSON is no wrong field
        asked = msgspec.json.decode(body, type=_Asked)  # skips other fields: 2 MiB of them are 700,000 lists
    except msgspec.ValidationError as error:
        return _invalid(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _refused(400, "the body is not JSON")
    return asked if asked.channel else _invalid("Expected the name of a channel, got '' - at `$.channel`")


def _refused(status: int, detail: object, *, retry: bool = False) -> TokenAnswer:
    headers = {"retry-after": RETRY_AFTER} if retry else {}
    return TokenAnswer(status, "application/json", msgspec.json.encode({"detail": detail}), headers)


def _invalid(fault: str) -> TokenAnswer:
    """Return 422 with the fault and its place, in the form of all routes.

    Args:
        fault: the text of msgspec, as in "Expected `str`, got `int` - at `$.channel`".
    """
    what, _, place = fault.partition(" - at `$")
    names = [name for name in place.strip("`").split(".") if name]
    missing = re.fullmatch(r"Object missing required field `(\w+)`", what)
    if missing is not None:
        what, names = "Field required", [*names, missing[1]]
    problem = {"loc": ["body", *names], "msg": what[0].lower() + what[1:], "type": "value_error"}
    return _refused(422, [problem])


def token_router(channels: Callable[[], Channels | None]) -> APIRouter:
    """Return the route; ``channels`` is called at each request, and None is answered with 503."""
    router = APIRouter(tags=["channels"])

    @router.post(
        "/token",
        summary="A token for one channel",
        responses=_DOCUMENTED,
        openapi_extra={"requestBody": _REQUEST_BODY},
    )
    async def token(request: Request) -> Response:
        """Mint a token for a channel, if the access policy allows it."""
        owner = channels()
        if owner is None:
            answer = _refused(BUSY.status, BUSY.reason, retry=True)
        else:
            answer = await issue_token(
                owner.gate,
                await request.body(),
                content_type=request.headers.get("content-type"),
                authorization=request.headers.get("authorization"),
                info=connect_info(request.scope),
            )
        return Response(
            answer.body, answer.status, headers=dict(answer.headers), media_type=answer.content_type
        )

    return router
