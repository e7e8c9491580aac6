"""Built-in themes and map styles, and the way in which the operator's styles replace them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from tangram.config.model import DEFAULT_STYLE, MapStyle, ThemeDefinition

__all__ = ["DEFAULT_THEMES", "default_styles", "merge_styles"]

DEFAULT_THEMES: Final = (
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

_CARTO: Final = "https://basemaps.cartocdn.com/gl/{}-gl-style/style.json"
# It needs no service and no key, so the map shows something without internet access.
_RADAR: Final[Mapping[str, Any]] = {
    "version": 8,
    "name": "Radar Dark",
    "id": "radar-dark",
    "sources": {},
    "layers": [{"id": "background", "type": "background", "paint": {"background-color": "#0a0f14"}}],
}


def default_styles() -> list[MapStyle]:
    """Return the four built-in styles."""
    return [DEFAULT_STYLE, _CARTO.format("positron"), _CARTO.format("dark-matter"), _RADAR]


def merge_styles(defaults: Iterable[MapStyle], own: Iterable[MapStyle]) -> list[MapStyle]:
    """Replace each default style that one of the operator's matches, and append the others.

    Styles match by URL, else by id, else by name.
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
