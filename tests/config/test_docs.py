"""The page of the settings."""

import ast
import inspect
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from tangram.config import model
from tangram.config.load import load_config

DOCS = Path("docs/configuration.md")
WORDS: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    Path: "path",
    model.MapStyle: "string or table",
    Mapping[str, bool]: "table of booleans",
    Mapping[str, str]: "table of strings",
    model.AdaptiveTheme: "table",
    bool | tuple[model.PresenceEntry, ...]: "boolean or array of tables",
    tuple[model.MapStyle, ...]: "array of strings or tables",
}


def type_words(type_: Any) -> str:
    if type_ in WORDS:
        return WORDS[type_]
    if get_origin(type_) is Literal:
        return " or ".join(f'`"{word}"`' for word in get_args(type_))
    if get_origin(type_) is tuple:
        item = get_args(type_)[0]
        return "array of tables" if attrs.has(item) else f"array of {type_words(item)}s"
    assert get_origin(type_) in {types.UnionType, Union}
    return " or ".join(type_words(part) for part in get_args(type_) if part is not type(None))


def default_words(field: "attrs.Attribute[Any]") -> str:
    default = field.default
    if default is not None and hasattr(default, "factory"):
        default = default.factory()
    if default is attrs.NOTHING:
        return "required"
    if default is None:
        return "unset"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return f"`[{', '.join(repr(item) for item in default)}]`".replace("'", '"')
    if isinstance(default, model.AdaptiveTheme):
        return '`{ light = "light", dark = "dark" }`'
    return f"`{default!r}`".replace("'", '"')


def tables() -> dict[str, type]:
    found: dict[str, type] = {
        field.name: field.type
        for field in attrs.fields(model.Config)
        if isinstance(field.type, type) and attrs.has(field.type)
    }
    found |= {
        "core.theme": model.AdaptiveTheme,
        "core.themes[]": model.ThemeDefinition,
        "cache.entries[]": model.CacheEntry,
        "channel.history[]": model.HistoryEntry,
        "channel.presence[]": model.PresenceEntry,
    }
    return found


def expected() -> dict[str, tuple[str, str]]:
    return {
        f"`{name}.{field.name}`": (type_words(field.type), default_words(field))
        for name, cls in tables().items()
        for field in attrs.fields(cls)
    }


def test_every_setting_has_its_row() -> None:
    """The page has one row for each setting, with type and default, and no other row."""
    text, after = DOCS.read_text().split("## Coming from the published server")
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith("| `")
    ]

    assert {row[0]: (row[1], row[2]) for row in rows} == expected()
    assert len(rows) == len(expected())
    assert all(len(row) == 4 and row[3] for row in rows)
    assert after


def test_every_setting_is_explained_in_the_model() -> None:
    """Each field has a docstring, which names seconds or bytes where they are the unit."""
    explained: dict[tuple[str, str], str] = {}
    for node in ast.parse(inspect.getsource(model)).body:
        if isinstance(node, ast.ClassDef):
            for field, text in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    assert isinstance(field.target, ast.Name)
                    assert isinstance(text.value, ast.Constant)
                    explained[node.name, field.target.id] = str(text.value.value)

    for cls in tables().values():
        for field in attrs.fields(cls):
            text_of = explained[cls.__name__, field.name].lower()
            if field.name.endswith(
                ("_timeout", "_grace", "_secs", "_window", "_after", "_interval", "_reset")
            ):
                assert "second" in text_of, field.name
            if field.name.endswith(("_bytes", "_body", "_backlog", "_message")):
                assert "bytes" in text_of, field.name


def test_the_example_is_a_configuration(tmp_path: Path) -> None:
    """The page's example is a valid configuration."""
    example = DOCS.read_text().split("```toml\n")[1].split("```")[0]
    (tmp_path / "tangram.toml").write_text(example)

    loaded = load_config(tmp_path / "tangram.toml", {})

    assert loaded.config.plugins["tangram_demo"] == {"interval": 1.0}
    assert loaded.warnings == ()


def test_settings_that_pages_name_exist() -> None:
    """Every ``[table] key`` in the documentation is a setting."""
    tables = get_type_hints(model.Config)
    pages = [
        *Path("docs").rglob("*.md"),
        *map(Path, ("README.md", "SECURITY.md", "CHANGES.md", "CONTRIBUTING.md")),
    ]
    named = {
        (str(page), table, key)
        for page in pages
        for table, key in re.findall(r"`\[(\w+)\]\s+(\w+)", page.read_text())
        if table != "plugins"  # its keys belong to plugins
    }

    assert len(named) > 80
    assert [
        one for one in named if one[1] not in tables or one[2] not in attrs.fields_dict(tables[one[1]])
    ] == []
