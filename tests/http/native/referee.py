"""Read the same bytes by the native engine and by h11, for comparison."""

from __future__ import annotations

from typing import NamedTuple

import h11

from tangram.http.native.body import ChunkedBody, LengthBody
from tangram.http.native.head import CHUNKED, HeadReader, RejectedRequest, premature_fault


class Read(NamedTuple):
    method: bytes
    target: bytes
    version: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Reading(NamedTuple):
    requests: list[Read]
    refused: RejectedRequest | Exception | None


def read_natively(data: bytes, max_headers: int = 100) -> Reading:
    """Read requests as a connection does, without a socket."""
    requests: list[Read] = []
    heads = HeadReader()
    try:
        while data:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                fault = premature_fault(data)
                return Reading(requests, fault)
            request = heads.read(data, end + 4, max_headers)
            data = data[end + 4 :]
            body = b""
            if request.length:
                reader = ChunkedBody() if request.length == CHUNKED else LengthBody(request.length)
                body, data = reader.feed(data)
                if not reader.done:
                    return Reading(requests, None)
            headers = tuple(
                (name, value.lower() if name == b"transfer-encoding" else value)
                for name, value in request.headers
            )
            version = request.version.encode()
            requests.append(Read(request.method.encode(), request.target, version, headers, body))
            if not request.keep_alive or version == b"1.0":
                break
    except RejectedRequest as error:
        return Reading(requests, error)
    return Reading(requests, None)


def read_by_h11(data: bytes) -> Reading:
    """Read requests by h11; each one is answered so that the next can be read."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    requests: list[Read] = []
    head: h11.Request | None = None
    body = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                head, body = event, b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                headers = tuple((bytes(name), bytes(value)) for name, value in head.headers)
                requests.append(
                    Read(bytes(head.method), bytes(head.target), bytes(head.http_version), headers, body)
                )
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    break
                connection.start_next_cycle()
            else:
                break
    except (h11.RemoteProtocolError, h11.LocalProtocolError) as error:
        return Reading(requests, error)
    return Reading(requests, None)
