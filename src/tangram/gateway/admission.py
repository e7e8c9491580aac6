"""The upgrade request of a channel client: its version, its token and its subprotocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from tangram.channels.disconnects import TWO_TOKENS, VERSION, Refusal
from tangram.channels.policy import ConnectInfo
from tangram.channels.serializers import V1, V2, Serializer
from tangram.channels.tokens import bearer

__all__ = ["Admission", "connect_info", "read_upgrade"]

_SERIALIZERS: Final = {"1": V1, "2": V2}


class Admission(NamedTuple):
    """The parameters of an upgrade that may go on."""

    user_token: str | None
    """The connection's own token, from the query or from the bearer subprotocol; not checked yet."""
    subprotocol: str | None
    """The subprotocol to select in the answer."""
    serializer: Serializer = V2
    """By ``vsn``: 1.x or 2.x. Without it V2, as existing servers of this protocol do."""


def read_upgrade(query_string: bytes, subprotocols: Sequence[str] = ()) -> Admission | Refusal:
    """Read the parameters of an upgrade: ``vsn``, ``userToken`` and the offered subprotocols."""
    parameters = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)
    versions = {value.partition(".")[0] for name, value in parameters if name == "vsn"} or {"2"}
    if len(versions) > 1 or not versions <= _SERIALIZERS.keys():
        return VERSION
    given = [value for name, value in parameters if name == "userToken"]
    if len(given) > 1:
        return TWO_TOKENS
    subprotocol = "phoenix" if "phoenix" in subprotocols else None
    user_token = given[0] if given else bearer(subprotocols)
    return Admission(user_token, subprotocol, _SERIALIZERS[versions.pop()])


def connect_info(scope: Mapping[str, object]) -> ConnectInfo:
    """Return the parts of an ASGI scope that access policy needs."""
    client = scope.get("client")
    address = str(client[0]) if isinstance(client, (tuple, list)) and client else ""
    raw = scope.get("headers")
    headers: dict[str, str] = {}
    if isinstance(raw, (tuple, list)):
        headers = {
            bytes(name).decode("latin-1").lower(): bytes(value).decode("latin-1") for name, value in raw
        }
    query_string = scope.get("query_string", b"")
    assert isinstance(query_string, bytes)
    query = dict(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True))
    query.pop("userToken", None)
    return ConnectInfo(address, headers, query, headers.get("origin"), str(scope.get("path", "")))
