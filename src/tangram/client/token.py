"""Fetch a token over HTTP, by h11: no HTTP client needs to be installed."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
import trio

from tangram.channels import codec
from tangram.client.channel import TIMEOUT
from tangram.client.dial import dial
from tangram.errors import ChannelClosed, Refused

__all__ = ["Token", "fetch_token"]


class Token(NamedTuple):
    """The answer of ``POST /token``."""

    channel: str
    id: str
    token: str
    proof: str = ""
    """For later requests with the same id; empty unless the request had a ``proof``."""


async def fetch_token(
    url: str,
    channel: str,
    id: str | None = None,  # noqa: A002 - the protocol's word
    *,
    bearer: str | None = None,
    proof: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> Token:
    """Ask ``POST /token`` for a token.

    Args:
        url: the server, without ``/token``.
        channel: the topic.
        id: the external id; None for a new one.
        bearer: the operator's token, which ``admin`` needs.
        proof: the proof of the id; empty to ask for one with a new id; None to use ids without proof.
        ssl_context: for https.

    Raises:
        Refused: with the reason of the server.
        ChannelClosed: if the server cannot be reached.
    """
    body = codec.encode_json(
        {"channel": channel}
        | ({} if id is None else {"id": id})
        | ({} if proof is None else {"proof": proof or None})
    )
    headers = [("content-type", "application/json")]
    if bearer is not None:
        headers.append(("authorization", f"Bearer {bearer}"))
    status, answer = await _post(url.rstrip("/") + "/token", headers, body, ssl_context)
    if status != 200:
        raise Refused(_reason(answer) or f"status {status}")
    return Token(**msgspec.json.decode(answer, type=dict[str, str]))


def _reason(answer: bytes) -> str:
    """Return the text of a refusal: ``detail`` of JSON, or plain text of another server."""
    try:
        detail = msgspec.json.decode(answer)["detail"]
        if isinstance(detail, str):
            return detail
        return "; ".join(f"{fault['msg']} @ {'.'.join(map(str, fault['loc']))}" for fault in detail)
    except (msgspec.DecodeError, LookupError, TypeError):
        return answer.decode(errors="replace").strip()


async def _post(
    url: str, headers: Sequence[tuple[str, str]], body: bytes, ssl_context: ssl.SSLContext | None
) -> tuple[int, bytes]:
    """Send one request on a connection of its own, and return status and body."""
    import h11

    parts = urlsplit(url)
    machine = h11.Connection(h11.CLIENT)
    request = h11.Request(
        method="POST",
        target=parts.path,
        headers=[
            ("host", parts.netloc),
            ("content-length", str(len(body))),
            ("connection", "close"),
            *headers,
        ],
    )
    data = (machine.send(request) or b"") + (machine.send(h11.Data(data=body)) or b"")
    data += machine.send(h11.EndOfMessage()) or b""
    status, chunks = 0, []
    try:
        with trio.fail_after(TIMEOUT):
            async with await dial(url, ssl_context) as stream:
                await stream.send_all(data)
                while True:
                    event = machine.next_event()
                    if event is h11.NEED_DATA:
                        machine.receive_data(bytes(await stream.receive_some(65536)))
                    elif isinstance(event, h11.Response):
                        status = event.status_code
                    elif isinstance(event, h11.Data):
                        chunks.append(bytes(event.data))
                    elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
                        return status, b"".join(chunks)
    except (OSError, trio.TooSlowError, trio.BrokenResourceError, h11.RemoteProtocolError) as error:
        raise ChannelClosed(f"cannot ask {url!r}: {error}") from error
