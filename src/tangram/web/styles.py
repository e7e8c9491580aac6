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


def _layer(name: str, kind: str, source_layer: str, paint: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return a layer of the vector tiles that CARTO serves, in the schema of OpenMapTiles."""
    layer = {"id": name, "type": kind, "source": "carto", "source-layer": source_layer, "paint": dict(paint)}
    return {**layer, **more}


def _place(name: str, classes: list[str], size: int, minzoom: int) -> dict[str, Any]:
    return _layer(
        name,
        "symbol",
        "place",
        {"text-color": "#8fb8a8", "text-halo-color": "#0a0f14", "text-halo-width": 1},
        filter=["in", "class", *classes],
        minzoom=minzoom,
        layout={"text-field": "{name_en}", "text-font": ["Montserrat Regular"], "text-size": size},
    )


_BORDER: Final = {"line-color": "#2f6f5e", "line-width": 0.8}
_ROAD: Final = {"line-color": "#1c2f38", "line-width": 0.7}
_RADAR: Final[Mapping[str, Any]] = {
    "version": 8,
    "name": "Radar Dark",
    "id": "radar-dark",
    "sources": {
        "carto": {
            "type": "vector",
            "url": "https://tiles.basemaps.cartocdn.com/vector/carto.streets/v1/tiles.json",
        }
    },
    "sprite": "https://basemaps.cartocdn.com/gl/dark-matter-gl-style/sprite",
    "glyphs": "https://tiles.basemaps.cartocdn.com/fonts/{fontstack}/{range}.pbf",
    "layers": [
        {"id": "background", "type": "background", "paint": {"background-color": "#101a20"}},
        _layer("wood", "fill", "landcover", {"fill-color": "#12211f"}, filter=["==", "class", "wood"]),
        _layer("park", "fill", "park", {"fill-color": "#12241f"}, minzoom=6),
        _layer("water", "fill", "water", {"fill-color": "#0a0f14"}),
        _layer("river", "line", "waterway", {"line-color": "#0a0f14", "line-width": 0.6}, minzoom=7),
        _layer("runway", "line", "aeroway", {"line-color": "#3d8f79", "line-width": 2}, minzoom=10),
        _layer(
            "road", "line", "transportation", _ROAD, filter=["in", "class", "motorway", "trunk"], minzoom=6
        ),
        _layer("street", "line", "transportation", _ROAD, minzoom=11),
        _layer("border", "line", "boundary", _BORDER, filter=["==", "admin_level", 2]),
        _layer("region", "line", "boundary", {**_BORDER, "line-opacity": 0.4}, minzoom=5),
        _place("country-names", ["country"], 12, 2),
        _place("city-names", ["city"], 11, 5),
        _place("town-names", ["town", "village"], 10, 9),
    ],
}
"""A map of outlines for traffic. Without internet access it shows its background."""


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
