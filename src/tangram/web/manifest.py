"""The document ``/manifest.json``, from which the browser's shell starts.

A plugin whose configuration cannot be shown is left out of the manifest; the others stay in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import attrs
import msgspec
import structlog

from tangram.config.model import AdaptiveTheme, Config, MapConfig, ThemeDefinition
from tangram.plugins.registry import LoadedPlugin, cause_line
from tangram.routing import json_schema
from tangram.routing.responses import encode_json
from tangram.web.frontends import Frontends
from tangram.web.styles import DEFAULT_THEMES, default_styles, merge_styles

__all__ = ["FrontendChannelConfig", "FrontendConfig", "FrontendCoreConfig", "Manifest", "core_config"]

log = structlog.get_logger("tangram.web")

_THEME: Final = {"tangram_mutable": True, "tangram_widget": "theme-settings"}


@attrs.frozen(kw_only=True)
class FrontendCoreConfig:
    """The part of ``[core]`` that the shell shows."""

    theme: str | AdaptiveTheme = attrs.field(factory=AdaptiveTheme, metadata=_THEME)
    themes: tuple[ThemeDefinition, ...] = attrs.field(default=(), metadata=_THEME)


@attrs.frozen(kw_only=True)
class FrontendChannelConfig:
    """The address of the channels."""

    url: str


@attrs.frozen(kw_only=True)
class FrontendConfig:
    """The ``core`` part of the manifest."""

    core: FrontendCoreConfig
    map: MapConfig
    channel: FrontendChannelConfig


def core_config(config: Config, channel_url: str) -> FrontendConfig:
    """Return the configuration for browsers, built-in themes and styles included."""
    own = {theme.name for theme in config.core.themes}
    themes = (*(theme for theme in DEFAULT_THEMES if theme.name not in own), *config.core.themes)
    return FrontendConfig(
        core=FrontendCoreConfig(theme=config.core.theme, themes=themes),
        map=attrs.evolve(config.map, styles=tuple(merge_styles(default_styles(), config.map.styles))),
        channel=FrontendChannelConfig(url=channel_url),
    )


@cache
def core_schema() -> dict[str, Any]:
    """Return the schema of the ``core`` part, with the ``tangram_*`` keys of its fields.

    Every call returns the same object, so that an incarnation need not make it again; it is never changed.
    """
    schema = json_schema(FrontendConfig)
    schema.pop("description", None)
    for definition in schema["$defs"].values():
        definition.pop("description", None)  # it describes a class of this server, not a setting
    for cls in (FrontendCoreConfig, MapConfig, ThemeDefinition, AdaptiveTheme):
        properties = schema["$defs"][cls.__name__]["properties"]
        for field in attrs.fields(cls):
            shown = properties[field.name]
            if isinstance(field.default, attrs.Factory) or field.default == ():  # type: ignore[arg-type]
                shown.pop("default", None)  # as pydantic's schemas, which the shell knows, have it
            shown.update({key: value for key, value in field.metadata.items() if key.startswith("tangram_")})
    return schema


class Manifest:
    """The manifest of one incarnation, encoded once for each address that clients use."""

    MAX_ADDRESSES = 64
    """Number of encodings that are kept.

    Only this server's own addresses appear in the document, but clients choose the port in theirs.
    """

    def __init__(self, config: Config, frontends: Frontends) -> None:
        self._config = config
        self.failures: dict[str, str] = {}
        """Names of plugins that are left out, with the cause."""
        self._plugins = self._entries(frontends)
        self._schema = core_schema()
        self._encoded: dict[str, bytes] = {}

    def encoded(self, channel_url: str) -> bytes:
        """Return the encoded document for a browser that reaches the channels at this address."""
        known = self._encoded.get(channel_url)
        if known is None:
            if len(self._encoded) >= self.MAX_ADDRESSES:
                self._encoded.clear()
            known = self._encoded[channel_url] = encode_json(self.document(channel_url))
        return known

    def document(self, channel_url: str) -> dict[str, Any]:
        """Return the document for a browser that reaches the channels at this address."""
        core = {"config": core_config(self._config, channel_url), "config_json_schema": self._schema}
        return {"core": core, "plugins": self._plugins}

    def _entries(self, frontends: Frontends) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for frontend in frontends:
            if frontend.described is None:
                continue
            loaded = frontend.loaded
            try:
                shown = shown_config(loaded, self._config.plugins.get(loaded.key, {}))
                entry = {**frontend.described, **shown}
                # A value that JSON cannot hold must be found here, not when the browser asks for everything.
                entries[loaded.key] = msgspec.Raw(encode_json(entry))
            except Exception as error:
                cause = cause_line(error, loaded.source)
                self.failures[loaded.name] = cause
                log.exception("plugin left out of the manifest", plugin=loaded.name, cause=cause)
        return entries


def shown_config(loaded: LoadedPlugin, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` and ``config_json_schema`` of a plugin's entry, if it shows them."""
    plugin = loaded.plugin
    if plugin.frontend_config_class is None or plugin.config_class is None:
        return {}
    if plugin.into_frontend_config_function is None:
        log.warning(
            "front end without configuration: into_frontend_config_function is missing",
            plugin=loaded.name,
        )
        return {}
    shown = plugin.into_frontend_config_function(plugin.structure_config(raw, key=loaded.key))
    return plugin.frontend_entry(shown)
