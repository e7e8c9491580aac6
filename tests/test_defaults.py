"""A default number is written once."""

import ast
from pathlib import Path

import attrs

from tangram.config import model

OWN = {"config/model.py", "defaults.py", "compat/configuration.py"}
"""The places of defaults; the third has the published server's, which differ."""


def settings() -> dict[str, set[object]]:
    """Return the numeric defaults of the settings by their names."""
    found: dict[str, set[object]] = {}
    for table in attrs.fields(model.Config):
        if isinstance(table.type, type) and attrs.has(table.type):
            for field in attrs.fields(table.type):
                if isinstance(field.default, int | float) and not isinstance(field.default, bool):
                    found.setdefault(field.name, set()).add(field.default)
    return found


def written(tree: ast.AST) -> list[tuple[int, str, object]]:
    """Return line, name and value of each constant that is a default of a parameter or a field."""
    pairs = list[tuple[int, str, ast.expr | None]]()
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            plain = [*zip((node.posonlyargs + node.args)[::-1], node.defaults[::-1], strict=False)]
            named = [*zip(node.kwonlyargs, node.kw_defaults, strict=True)]
            pairs += [(arg.lineno, arg.arg, default) for arg, default in plain + named]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            pairs.append((node.lineno, node.target.id, node.value))
    return [(line, name, value.value) for line, name, value in pairs if isinstance(value, ast.Constant)]


def test_no_default_of_a_setting_is_written_a_second_time() -> None:
    """A parameter or constant with a setting's name and default takes it from ``tangram.defaults``."""
    known = settings()
    assert known["max_message"] == {16 * 1024 * 1024}
    twice = [
        f"{path}:{line}: {name} = {value!r}"
        for path in sorted(Path("src/tangram").rglob("*.py"))
        if path.relative_to("src/tangram").as_posix() not in OWN
        for line, name, value in written(ast.parse(path.read_text()))
        if isinstance(value, int | float) and not isinstance(value, bool) and value in known.get(name, ())
    ]

    assert twice == []
