"""Validators of single values; each raises ``ValueError`` with the expectation. No I/O."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
from attrs import validators as v

from tangram.config.listen import split_hosts
from tangram.redis_url import read_redis_url, redact_url

MOST_WORKERS: Final = 128
"""Processes of one server: one for each core of a large machine."""

_NODE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
Check = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def repr_url(url: str | None) -> str:
    return repr(url and redact_url(url))


def between(low: float, high: float) -> Check:
    return v.and_(v.ge(low), v.le(high))


def port(_instance: object, _attribute: "attrs.Attribute[Any]", value: int) -> None:
    if not 0 <= value <= 65535:
        msg = "expected a port between 0 (any free one) and 65535"
        raise ValueError(msg)


def workers(_instance: object, _attribute: "attrs.Attribute[Any]", value: object) -> None:
    if value != "auto" and not (isinstance(value, int) and 1 <= value <= MOST_WORKERS):
        msg = f"expected a number of processes between 1 and {MOST_WORKERS}, or 'auto'"
        raise ValueError(msg)


def filled(_instance: object, _attribute: "attrs.Attribute[Any]", value: str) -> None:
    if not value.strip():
        msg = "expected some text; leave the key out for its default"
        raise ValueError(msg)


def listen_hosts(_instance: object, _attribute: "attrs.Attribute[Any]", value: str) -> None:
    if value and not value.strip():
        msg = "expected some text; leave the key out for its default"
        raise ValueError(msg)
    try:
        split_hosts(value)
    except ValueError as error:
        # The place in the configuration shows the whole value already.
        raise ValueError(str(error).partition(", got ")[0]) from None


def each(check: Callable[[str], None]) -> Check:
    """Return a validator of every item; an error has the item's index as second argument."""

    def run(_instance: object, _attribute: "attrs.Attribute[Any]", value: tuple[str, ...]) -> None:
        errors = []
        for index, item in enumerate(value):
            try:
                check(item)
            except ValueError as error:
                errors.append(ValueError(str(error), index))
        if errors:
            msg = "items"
            raise ExceptionGroup(msg, errors)

    return run


def log_level(_instance: object, _attribute: "attrs.Attribute[Any]", value: str) -> None:
    # Compiled plugins read the same value as an env-filter ("info,jet1090=debug"), so only a single word can
    # be wrong.
    words = {"trace", "debug", "info", "warn", "warning", "error", "critical", "off"}
    if not set(value) & set(",=[") and value.lower() not in words:
        msg = f"expected one of {', '.join(sorted(words))}, or a filter such as 'info,module=debug'"
        raise ValueError(msg)


def log_levels(instance: object, attribute: "attrs.Attribute[Any]", value: Mapping[str, str]) -> None:
    for name, level in value.items():
        if set(level) & set(",=["):
            msg = f"expected a level as in {{ 'tangram.http' = 'debug' }}, got {level!r} for {name!r}"
            raise ValueError(msg)
        log_level(instance, attribute, level)


def root_path(_instance: object, _attribute: "attrs.Attribute[Any]", value: str) -> None:
    if not re.fullmatch(r"(/[A-Za-z0-9_.~-]+)*/?", value):
        msg = "expected a path such as '/tangram'"
        raise ValueError(msg)


def redis_url(_instance: object, _attribute: "attrs.Attribute[Any]", value: str) -> None:
    read_redis_url(value)


def http_url(_instance: object, _attribute: "attrs.Attribute[Any]", value: str) -> None:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        msg = "expected a URL that begins with http:// or https://, as the browser will use it"
        raise ValueError(msg)


def origin(value: str) -> None:
    parts = urlsplit(value)
    if (
        parts.scheme not in {"http", "https"}
        or not parts.hostname
        or parts.path
        or parts.query
        or parts.fragment
    ):
        msg = (
            "expected an origin: scheme and host, and a port if there is one, as in https://maps.example.org"
        )
        raise ValueError(msg)


def network(value: str) -> None:
    from ipaddress import ip_network

    if value == "*":
        return
    try:
        ip_network(value, strict=False)
    except ValueError:
        msg = "expected an address, a network such as 10.0.0.0/8, or '*' for every address"
        raise ValueError(msg) from None


def conflation(value: str) -> None:
    topic, colon, event = value.rpartition(":")
    if not (topic and colon and event) or value.startswith(("to:", "from:")):
        msg = "expected a pattern on <topic>:<event> without 'to:', as in 'streaming-*:new-*-data'"
        raise ValueError(msg)


def topics(_instance: object, _attribute: "attrs.Attribute[Any]", value: str) -> None:
    if not value or value.startswith(("to:", "from:")):
        msg = "expected a pattern of topics without 'to:', as in 'flights:*'"
        raise ValueError(msg)


def topic_pattern(value: str) -> None:
    if not value.strip() or value.startswith(("to:", "from:")):
        msg = "expected a pattern on topics without 'to:', as in 'flights:*'"
        raise ValueError(msg)


def route(_instance: object, _attribute: "attrs.Attribute[Any]", value: str) -> None:
    if not value.startswith("/"):
        msg = "expected a path that begins with '/', as in '/fonts/{fontstack}/{range}.pbf'"
        raise ValueError(msg)


def node_name(_instance: object, _attribute: "attrs.Attribute[Any]", value: str) -> None:
    if not _NODE.fullmatch(value):
        msg = "expected a name of at most 64 letters, digits, '.', '_' and '-'"
        raise ValueError(msg)


def host_and_port(_instance: object, _attribute: "attrs.Attribute[Any]", value: str) -> None:
    host, colon, number = value.rpartition(":")
    valid = host.startswith("[") == host.endswith("]") and (":" not in host or host.startswith("["))
    if not (host and colon and valid and number.isascii() and number.isdigit() and int(number) < 65536):
        msg = "expected an address and a port, as in '10.0.0.5:2350' or '[fd00::5]:2350'"
        raise ValueError(msg)
    if host in {"0.0.0.0", "[::]", "*"}:  # noqa: S104 - compared, not bound
        msg = "expected the address at which the other nodes reach this one, not all addresses"
        raise ValueError(msg)


def without_slash(url: str | None) -> str | None:
    """Return a URL without its last slash: browsers append ``/websocket`` and ``/token``."""
    return url.rstrip("/") if url else url
