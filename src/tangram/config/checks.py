"""Checks of settings that depend on each other: faults and warnings. It does no I/O."""

from collections.abc import Iterator, Mapping
from keyword import iskeyword
from typing import Final

from tangram.config.model import Config, CoreConfig
from tangram.config.names import nearest
from tangram.errors import Fault

__all__ = ["cross_faults", "cross_warnings"]

_STRONG_SECRET: Final = 32
"""Bytes below which a signing secret is weak: as many as the hash has (RFC 7518, 3.2)."""
_WORKER_NODE: Final = 48
"""Characters of a node's name from which the names of its workers are made."""
_STRONG_TOKEN: Final = 16
"""Bytes below which the operator's token is weak."""


def cross_faults(config: Config) -> Iterator[Fault]:
    """Yield a fault for each combination of settings that cannot work."""
    server, channel = config.server, config.channel
    if server.engine == "native" and (server.tls_cert or server.tls_key):
        what = (
            "the native engine does not speak TLS: leave engine out, or set it to 'hypercorn'; got 'native'"
        )
        yield Fault(what, "server.engine")
    if (server.tls_cert is None) != (server.tls_key is None):
        there, missing = ("tls_cert", "tls_key") if server.tls_cert else ("tls_key", "tls_cert")
        yield Fault(f"{there} is set: expected {missing} as well", f"server.{missing}", "missing")
    if channel.port and channel.port == server.port and channel.host in {None, server.host}:
        what = f"expected another port than server.port: leave it out to share that one, got {channel.port!r}"
        yield Fault(what, "channel.port")
    if config.map.min_zoom > config.map.max_zoom:
        what = f"expected at most max_zoom ({config.map.max_zoom!r}), got {config.map.min_zoom!r}"
        yield Fault(what, "map.min_zoom")
    if config.supervisor.backoff_initial > config.supervisor.backoff_max:
        first, longest = config.supervisor.backoff_initial, config.supervisor.backoff_max
        what = f"expected at most backoff_max ({longest!r}), got {first!r}"
        yield Fault(what, "supervisor.backoff_initial")
    node = config.cluster.node
    if node is not None and server.workers != 1 and len(node) > _WORKER_NODE:
        what = f"expected at most {_WORKER_NODE} characters, because each worker gets a part of its own"
        yield Fault(f"{what}, got {node!r}", "cluster.node")
    yield from _cache_faults(config)


def _cache_faults(config: Config) -> Iterator[Fault]:
    for index, entry in enumerate(config.cache.entries):
        path = f"cache.entries[{index}]"
        parameters = placeholders(entry.serve_route)
        if parameters is None:
            yield Fault(f"expected balanced {{name}}, got {entry.serve_route!r}", f"{path}.serve_route")
            continue
        if len(set(parameters)) < len(parameters):
            yield Fault(f"expected each {{name}} once, got {entry.serve_route!r}", f"{path}.serve_route")
        for name in filter(iskeyword, parameters):
            what = f"expected a name other than {{{name}}}, which is a keyword of Python"
            yield Fault(what, f"{path}.serve_route")
        if not parameters and entry.local_path is None:
            what = f"the route {entry.serve_route!r} has no {{name}}, so the file must be named here"
            yield Fault(what, f"{path}.local_path", "missing")
        for name in sorted(set(placeholders(entry.origin or "") or ())):
            if name not in parameters:
                yield Fault(f"expected only names of serve_route, got {{{name}}}", f"{path}.origin")


def placeholders(route: str) -> list[str] | None:
    """Return the names in a route in order; None if its braces do not match.

    For example, ``/fonts/{fontstack}/{range}.pbf`` has ``fontstack`` and ``range``.
    """
    names = list[str]()
    for part in route.split("{")[1:]:
        name, closing, _ = part.partition("}")
        if not closing or not name.isidentifier():
            return None
        names.append(name)
    return names if route.count("{") == route.count("}") else None


def cross_warnings(config: Config, written: Mapping[str, object]) -> Iterator[str]:
    """Yield a warning for each combination that works, but probably not as intended.

    Args:
        config: the configuration.
        written: the tables as they were written in the file.
    """
    channel = written.get("channel")
    if isinstance(channel, Mapping) and "host" in channel and config.channel.port is None:
        yield "channel.host has no effect without channel.port: channels share the address of [server]"
    secret = config.channel.jwt_secret
    if secret is not None and len(secret.encode()) < _STRONG_SECRET:
        yield f"channel.jwt_secret is short: {_STRONG_SECRET} random bytes are not guessed, or leave it out"
    token = config.server.operator_token
    if token is not None and len(token.encode()) < _STRONG_TOKEN:
        yield f"server.operator_token is short: {_STRONG_TOKEN} random bytes are not guessed, or leave it out"
    yield from _theme_warnings(config.core)


def _theme_warnings(core: CoreConfig) -> Iterator[str]:
    known = {"light", "dark", *(theme.name for theme in core.themes)}
    wanted = (
        {"core.theme": core.theme}
        if isinstance(core.theme, str)
        else {
            "core.theme.light": core.theme.light,
            "core.theme.dark": core.theme.dark,
        }
    )
    for path, name in wanted.items():
        if name not in known:
            guess = nearest(name, known)
            yield f"no theme has the name {name!r} @ {path}" + (f": did you mean {guess!r}?" if guess else "")
