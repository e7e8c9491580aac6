"""The import contract of asyncio covers every module; no import hides in a string."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src"

ASYNCIO = {
    "tangram.bus.redis_loop": "runs redis-py",
    "tangram.testing.threaded.remote_call": "is called from asyncio tests",
    "tangram.testing.checks.census": "counts asyncio tasks",
}
"""Modules outside of compat that may import asyncio, with the reason."""


def modules() -> list[str]:
    paths = (SOURCES / "tangram").rglob("*.py")
    dotted = (".".join(path.relative_to(SOURCES).with_suffix("").parts) for path in paths)
    return sorted(name.removesuffix(".__init__") for name in dotted)


def contract(name: str) -> dict[str, Any]:
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    found: dict[str, Any] = next(table for table in tables if table["name"].startswith(name))
    return found


def is_below(name: str, packages: list[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_the_asyncio_contract_covers_every_other_module() -> None:
    """Each module is listed, belongs to compat, or is one of three with a reason."""
    listed = contract("asyncio's world")["source_modules"]
    exempt = {"tangram", "tangram.__main__"} | set(ASYNCIO)
    packages = {name.rpartition(".")[0] for name in listed} | {"tangram.testing.checks", "tangram.testing"}
    missing = [
        name
        for name in modules()
        if not is_below(name, [*listed, "tangram.compat"]) and name not in exempt | packages
    ]

    assert missing == []
    assert [name for name in listed if is_below("tangram.compat", [name]) or name in ASYNCIO] == []
    assert contract("asyncio's world").get("ignore_imports", []) == []


def test_compat_names_no_module_above_it() -> None:
    """No string in compat holds the name of a package above it."""
    above = re.compile(r"""["']tangram\.(app|cli|chaos|testing)\b""")
    sources = {path: path.read_text() for path in (SOURCES / "tangram" / "compat").rglob("*.py")}

    assert [str(path) for path, text in sources.items() if above.search(text)] == []


def test_the_version_is_that_of_the_project() -> None:
    """``tangram.__version__`` is the version in pyproject.toml."""
    import tangram

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert tangram.__version__ == project["version"]
