"""The module ``tangram_core.config``: the configuration as plain dataclasses.

Existing plugins build, subclass and read these classes. Their instances are made from the checked
configuration, and each plugin gets a copy, so that its changes stay its own.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar, runtime_checkable

import attrs

from tangram.config import normalise
from tangram.config.model import Config as NativeConfig
from tangram.plugins.frontend import FrontendMutable as NativeMutable

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = [
    "AdaptiveTheme",
    "CacheConfig",
    "CacheEntry",
    "ChannelConfig",
    "Config",
    "CoreConfig",
    "FrontendChannelConfig",
    "FrontendConfig",
    "FrontendCoreConfig",
    "FrontendData",
    "FrontendMutable",
    "HasSidebarUiConfig",
    "HasTopbarUiConfig",
    "IntoConfig",
    "MapConfig",
    "MapStyle",
    "ServerConfig",
    "StrOrPathLike",
    "StyleSpecification",
    "ThemeDefinition",
    "Url",
    "copy_of",
    "core_into_frontend_config",
    "default_config_file",
    "default_styles",
    "get_default_asset",
    "load_built_in_style",
    "merge_styles",
    "parse_frontend_config",
    "style_identifier",
    "styles_match",
    "tables_of",
    "to_frontend_manifest",
    "try_resolve_local_style",
]

T = TypeVar("T")

StyleSpecification: TypeAlias = dict[str, Any]
Url: TypeAlias = str
MapStyle: TypeAlias = str | dict[str, Any]
StrOrPathLike: TypeAlias = str | os.PathLike[str]
FrontendData: TypeAlias = dict[str, Any]

VOYAGER: Final = "https://basemaps.cartocdn.com/gl/voyager-gl-style/style.json"


class FrontendMutable(NativeMutable):
    """Marks a field as editable on the settings page, in the JSON Schema of pydantic."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        schema: dict[str, Any] = handler(core_schema)
        schema.update(self.json_schema_extra)
        return schema


@runtime_checkable
class HasTopbarUiConfig(Protocol):
    """The configuration of a front end that has a place in the top bar."""

    topbar_order: int


@runtime_checkable
class HasSidebarUiConfig(Protocol):
    """The configuration of a front end that has a place in the side bar."""

    sidebar_order: int


@dataclass
class ThemeDefinition:
    """One colour theme; colours are CSS colours."""

    name: str
    background: str
    foreground: str
    surface: str
    border: str
    hover: str
    accent1: str
    accent1_foreground: str
    accent2: str
    accent2_foreground: str
    muted: str
    error: str


@dataclass
class AdaptiveTheme:
    """The names of the themes for a light and for a dark surrounding."""

    light: str = "light"
    dark: str = "dark"


@dataclass
class CoreConfig:
    """The table ``[core]``."""

    redis_url: str = field(default="redis://127.0.0.1:6379", repr=False)
    """It may hold a password."""
    plugins: list[str] = field(default_factory=list)
    log_level: str = "INFO"
    theme: str | AdaptiveTheme = field(default_factory=AdaptiveTheme)
    themes: list[ThemeDefinition] = field(default_factory=list)


@dataclass
class ServerConfig:
    """The table ``[server]``."""

    host: str = "127.0.0.1"
    port: int = 2346


@dataclass
class ChannelConfig:
    """The table ``[channel]``; its address is the server's unless it is set."""

    host: str = "127.0.0.1"
    port: int = 2346
    public_url: str | None = None
    jwt_secret: str = ""
    jwt_expiration_secs: int = 2592000
    id_length: int = 8


@dataclass
class MapConfig:
    """The table ``[map]``."""

    style: MapStyle = VOYAGER
    styles: list[MapStyle] = field(default_factory=list)
    center_lat: float = 48.0
    center_lon: float = 7.0
    zoom: float = 4
    pitch: float = 0
    bearing: float = 0
    lang: str = "en"
    min_zoom: float = 0
    max_zoom: float = 24
    max_pitch: float = 70
    allow_pitch: bool = True
    allow_bearing: bool = True
    layers_visibility: dict[str, bool] | None = None


@dataclass
class CacheEntry:
    """One of ``[[cache.entries]]``."""

    origin: str | None = None
    local_path: Path | None = None
    serve_route: str = ""
    media_type: str = "application/octet-stream"


@dataclass
class CacheConfig:
    """The table ``[cache]``."""

    entries: list[CacheEntry] = field(default_factory=list)


class PluginTables(dict[str, Any]):
    """The tables ``[plugins.*]``, found under any spelling of a distribution's name."""

    def _known(self, key: object) -> Any:
        if dict.__contains__(self, key) or not isinstance(key, str):
            return key
        wanted = normalise(key)
        return next((name for name in self if normalise(name) == wanted), key)

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(self._known(key))

    def __contains__(self, key: object) -> bool:
        return super().__contains__(self._known(key))

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(self._known(key), default)


@dataclass
class Config:
    """The whole ``tangram.toml``, as existing plugins and programs read and write it."""

    core: CoreConfig = field(default_factory=CoreConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    channel: ChannelConfig = field(default_factory=ChannelConfig)
    map: MapConfig = field(default_factory=MapConfig)
    plugins: dict[str, Any] = field(default_factory=PluginTables)
    cache: CacheConfig = field(default_factory=CacheConfig)

    @classmethod
    def from_file(cls, path: StrOrPathLike) -> Config:
        """Read a file.

        Raises:
            tangram.errors.ConfigError: lists every fault of the file.
        """
        from tangram.config import load_config

        return copy_of(load_config(Path(path), os.environ).config)


IntoConfig: TypeAlias = Config | str | os.PathLike[str] | None


@dataclass
class FrontendCoreConfig:
    """The part of ``[core]`` that browsers get."""

    theme: str | AdaptiveTheme = field(default_factory=AdaptiveTheme)
    themes: list[ThemeDefinition] = field(default_factory=list)


@dataclass
class FrontendChannelConfig:
    """The address of the channels."""

    url: str


@dataclass
class FrontendConfig:
    """The part of the server's configuration that browsers get."""

    core: FrontendCoreConfig
    map: MapConfig
    channel: FrontendChannelConfig


# -- from the checked configuration, and back ----------------------------------------------------------------


def copy_of(config: NativeConfig) -> Config:
    """Return the configuration as a plugin's own copy, which shares no object with others."""
    made = Config(
        core=_copy(CoreConfig, config.core),
        server=_copy(ServerConfig, config.server),
        channel=_copy(ChannelConfig, config.channel),
        map=_copy(MapConfig, config.map),
        plugins=PluginTables(copy.deepcopy(dict(config.plugins))),
        cache=CacheConfig([_copy(CacheEntry, entry) for entry in config.cache.entries]),
    )
    if config.channel.port is None:
        made.channel.port = config.server.port
    if config.channel.host is None:
        made.channel.host = config.server.host
    return made


_CLASSES: Final[Mapping[str, type[Any]]] = {
    "AdaptiveTheme": AdaptiveTheme,
    "ThemeDefinition": ThemeDefinition,
}


def _copy(cls: type[T], native: Any) -> T:
    values = {}
    for one in fields(cls):  # type: ignore[arg-type]
        value = getattr(native, one.name)
        # A value that is not set keeps the default of the published class.
        if value is not None:
            values[one.name] = _plain(value)
    return cls(**values)


def _plain(value: Any) -> Any:
    kind = _CLASSES.get(type(value).__name__)
    if kind is not None and attrs.has(type(value)):
        return _copy(kind, value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return copy.deepcopy(dict(value))
    return value


def tables_of(config: Config) -> dict[str, Any]:
    """Return the tables of an equivalent ``tangram.toml``, without default values."""
    tables = _difference(config, Config())
    for name in ("host", "port"):
        # The channel's address is the server's unless a program says otherwise.
        if getattr(config.channel, name) in {getattr(config.server, name), getattr(ChannelConfig(), name)}:
            tables.get("channel", {}).pop(name, None)
    return tables


def _difference(value: Any, default: Any) -> dict[str, Any]:
    found = {}
    for one in fields(value):
        mine, usual = getattr(value, one.name), getattr(default, one.name)
        if mine == usual:
            continue
        same_kind = is_dataclass(mine) and type(mine) is type(usual)
        found[one.name] = _difference(mine, usual) if same_kind else _table(mine)
    return found


def _table(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {
            one.name: _table(getattr(value, one.name))
            for one in fields(value)
            if getattr(value, one.name) is not None
        }
    if isinstance(value, list | tuple):
        return [_table(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _table(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def default_config_file() -> Path:
    """Return the path of the file in the user's configuration folder, which need not exist."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    return Path(home) / "tangram" / "tangram.toml"


# -- front ends ----------------------------------------------------------------------------------------------


def to_frontend_manifest(adapter: TypeAdapter[Any], obj: Any) -> dict[str, Any]:
    """Return ``config`` and ``config_json_schema`` of an entry of the manifest."""
    return {"config": adapter.dump_python(obj, mode="json"), "config_json_schema": adapter.json_schema()}


def parse_frontend_config(adapter: TypeAdapter[Any], data: Any) -> Any:
    """Return the object for values from the settings page.

    Raises:
        pydantic.ValidationError: the values do not fit.
    """
    return adapter.validate_python(data)


def core_into_frontend_config(config: Config) -> FrontendConfig:
    """Return the part of the server's configuration that browsers get."""
    own = {theme.name for theme in config.core.themes}
    themes = [*(theme for theme in default_themes() if theme.name not in own), *config.core.themes]
    shown = copy.deepcopy(config.map)
    shown.styles = merge_styles(default_styles(), shown.styles)
    host = "localhost" if config.channel.host == "0.0.0.0" else config.channel.host  # noqa: S104 - compared
    url = config.channel.public_url or f"http://{host}:{config.channel.port}"
    return FrontendConfig(FrontendCoreConfig(config.core.theme, themes), shown, FrontendChannelConfig(url))


def default_themes() -> list[ThemeDefinition]:
    """Return the built-in light and dark themes."""
    from tangram.web.styles import DEFAULT_THEMES

    return [_copy(ThemeDefinition, theme) for theme in DEFAULT_THEMES]


def default_styles() -> list[MapStyle]:
    """Return the built-in map styles."""
    from tangram.web import styles

    return [dict(one) if isinstance(one, Mapping) else one for one in styles.default_styles()]


def merge_styles(defaults: list[MapStyle], overrides: list[MapStyle]) -> list[MapStyle]:
    """Replace each default style that an override matches, and append the other overrides."""
    from tangram.web import styles

    return [
        dict(one) if isinstance(one, Mapping) else one for one in styles.merge_styles(defaults, overrides)
    ]


def styles_match(one: MapStyle, other: MapStyle) -> bool:
    """Return whether two styles have the same URL, else the same id, else the same name."""
    return len(merge_styles([one], [other])) == 1


def style_identifier(style: MapStyle) -> str | None:
    """Return the identifier of a style: its URL, else its id, else its name."""
    if isinstance(style, str):
        return style
    return style.get("id") or style.get("name")


def load_built_in_style(name: str) -> StyleSpecification:
    """Return a built-in style by its id or name.

    Raises:
        KeyError: there is no such style.
    """
    for style in default_styles():
        if isinstance(style, dict) and name in {
            style.get("id"),
            style.get("name"),
            f"{style.get('id')}.json",
        }:
            return style
    raise KeyError(f"no style called {name!r} comes with the server")


def get_default_asset(*parts: str) -> Path:
    """Return the path of a file of the built-in page."""
    from tangram.web.shell import PAGES

    return PAGES.joinpath(*parts)


def try_resolve_local_style(base_dir: Path, style: MapStyle) -> MapStyle:
    """Read the style that names a local file; return every other style unchanged."""
    if not isinstance(style, str) or style.startswith(("http://", "https://")):
        return style
    path = Path(base_dir) / style
    if not path.is_file():
        return style
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise TypeError(f"expected a JSON object in {str(path)!r}, not {type(content).__name__}")
    return content
