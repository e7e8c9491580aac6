"""The public names of ``tangram``, their types, and imports that they must not cause."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import tangram

INIT = Path(tangram.__file__)


def typed_names() -> set[str]:
    tree = ast.parse(INIT.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {alias.asname for node in imports for alias in node.names if alias.asname}


def test_every_public_name_is_the_object_of_its_room() -> None:
    """Each name of ``__all__`` is the same object as in its own module."""
    for name in tangram.__all__:
        if name != "__version__":
            assert getattr(tangram, name) is getattr(import_module(tangram._HOME[name]), name)


def test_type_checkers_see_the_same_names() -> None:
    """The names for type checkers are the names that can be imported."""
    assert typed_names() | {"__version__"} == set(tangram.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails as on any other module."""
    with pytest.raises(AttributeError, match="no attribute 'Plugn'"):
        tangram.Plugn  # noqa: B018 - the access raises


@pytest.mark.slow
def test_importing_tangram_imports_nothing_heavy() -> None:
    """``import tangram`` imports nothing heavy, and not trio-asyncio (it changes asyncio.run)."""
    code = "import sys, tangram; print(*sorted(sys.modules))"

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()

    assert not {"trio_asyncio", "asyncio", "quart", "hypercorn", "redis", "fastapi", "httpx"} & set(loaded)


@pytest.mark.slow
def test_a_plugin_module_does_not_import_asyncio_into_the_server() -> None:
    """Names that a native plugin imports do not change ``asyncio.run``."""
    code = (
        "import sys; from tangram import APIRouter, BackendState, HTTPException, Plugin, Subscriber;"
        "print(*sorted(sys.modules))"
    )

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()

    assert not {"trio_asyncio", "quart", "hypercorn", "redis", "fastapi", "httpx"} & set(loaded)
