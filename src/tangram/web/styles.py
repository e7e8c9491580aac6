"""Built-in themes and map styles, and how the operator's lie over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tangram.config.model import DEFAULT_STYLE, MapStyle, ThemeDefinition

__all__ = ["DEFAULT_THEMES", "default_styles", "merge_styles"]

DEFAULT_THEMES = (
    ThemeDefinition(
        name="light",
        background="#ffffff",
        foreground="#1b1f24",
        surface="#f6f7f9",
        border="#d9dde3",
        hover="#eceff3",
        accent1="#0b6bcb",
        accent1_foreground="#ffffff",
        accent2="#b4490f",
        accent2_foreground="#ffffff",
        muted="#5c6672",
        error="#c2252d",
    ),
    ThemeDefinition(
        name="dark",
        background="#14171b",
        foreground="#e6e9ed",
        surface="#1d2127",
        border="#333a43",
        hover="#272d35",
        accent1="#5aa9f5",
        accent1_foreground="#0c1116",
        accent2="#f0a06a",
        accent2_foreground="#14100c",
        muted="#98a2ae",
        error="#ff7b7f",
    ),
)

_CARTO = "https://basemaps.cartocdn.com/gl/{}-gl-style/style.json"
# No service, no key: what is shown where there is no internet access.
_RADAR: Mapping[str, Any] = {
    "version": 8,
    "name": "Radar Dark",
    "id": "radar-dark",
    "sources": {},
    "layers": [{"id": "background", "type": "background", "paint": {"background-color": "#0a0f14"}}],
}


def default_styles() -> list[MapStyle]:
    """The four that are there without any configuration."""
    return [DEFAULT_STYLE, _CARTO.format("positron"), _CARTO.format("dark-matter"), _RADAR]


def merge_styles(defaults: Iterable[MapStyle], own: Iterable[MapStyle]) -> list[MapStyle]:
    """Each of the operator's styles replaces the one that it matches (URL, else id, else name), or is
    appended.
    """
    merged = list(defaults)
    for style in own:
        place = next((index for index, known in enumerate(merged) if _match(known, style)), None)
        if place is None:
            merged.append(style)
        else:
            merged[place] = style
    return merged


def _match(one: MapStyle, other: MapStyle) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    for key in ("id", "name"):
        if one.get(key) is not None and other.get(key) is not None:
            return bool(one[key] == other[key])
    return False
