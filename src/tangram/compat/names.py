"""An import finder that answers ``import tangram_core`` with tangram's own modules.

The wheels of plugins depend on the published package. A finder in front of all others makes its name mean
`tangram.compat.core` in this process. ``fastapi`` is answered as well, but only where FastAPI itself is not
installed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Final

import structlog

__all__ = ["answer_imports", "has_fastapi", "is_answered", "modules_of", "withdraw_imports"]

log = structlog.get_logger("tangram.compat")

CORE: Final[Mapping[str, str]] = {
    "tangram_core": "tangram.compat.core",
    "tangram_core.backend": "tangram.compat.core.backend",
    "tangram_core.config": "tangram.compat.configuration",
    "tangram_core.plugin": "tangram.compat.core.plugin",
    "tangram_core.redis": "tangram.compat.core.redis",
}
BARE: Final[Mapping[str, str]] = {
    "fastapi": "tangram.compat.bare",
    "fastapi.exceptions": "tangram.compat.bare.exceptions",
    "fastapi.params": "tangram.compat.bare.params",
    "fastapi.requests": "tangram.compat.bare.requests",
    "fastapi.responses": "tangram.compat.bare.responses",
    "fastapi.routing": "tangram.compat.bare.routing",
    "fastapi.status": "tangram.compat.bare.status",
}


class _Alias(Loader):
    """Loads a module by putting one of tangram's into its place."""

    def __init__(self, ours: str) -> None:
        self._ours = ours

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:  # noqa: ARG002 - the protocol's signature
        return None

    def exec_module(self, module: ModuleType) -> None:
        # The import system returns the entry of this name in sys.modules after this call.
        sys.modules[module.__name__] = import_module(self._ours)


class _Finder(MetaPathFinder):
    def __init__(self, answers: Mapping[str, str]) -> None:
        self._answers = answers
        self._roots = {name.partition(".")[0] for name in answers}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the protocol's signature
        target: ModuleType | None = None,  # noqa: ARG002 - the signature of the replaced method
    ) -> ModuleSpec | None:
        root = fullname.partition(".")[0]
        if root not in self._roots:
            return None
        ours = self._answers.get(fullname)
        if ours is None:
            hint = "; install FastAPI itself for it" if root == "fastapi" else ""
            raise ModuleNotFoundError(
                f"no module named {fullname!r}: tangram answers {root!r}, and has no such part{hint}",
                name=fullname,
            )
        return ModuleSpec(fullname, _Alias(ours), is_package=fullname == root)


_finder: _Finder | None = None


def answer_imports() -> None:
    """Let ``import tangram_core`` in this process return tangram's modules.

    It may be called again. Modules that were imported from the published package before are removed from
    ``sys.modules``, with a warning: code that imported them holds another ``Plugin`` class than this one.
    """
    global _finder  # noqa: PLW0603 - imports belong to the process
    if _finder is not None:
        return
    answers = dict(CORE) if has_fastapi() else {**CORE, **BARE}
    published = [name for name in sys.modules if name.partition(".")[0] == "tangram_core"]
    if published:
        log.warning("tangram_core imported too early", modules=published)
    for name in published:
        del sys.modules[name]
    _finder = _Finder(answers)
    sys.meta_path.insert(0, _finder)


def has_fastapi() -> bool:
    """Return whether FastAPI itself is installed."""
    return not is_answered("fastapi") and find_spec("fastapi") is not None


def modules_of(package: str) -> list[ModuleType]:
    """Return the imported modules of a top-level package."""
    return [module for name, module in tuple(sys.modules.items()) if name.partition(".")[0] == package]


def withdraw_imports() -> None:
    """Undo `answer_imports`: for tests."""
    global _finder  # noqa: PLW0603 - set once for the process
    if _finder is None:
        return
    sys.meta_path.remove(_finder)
    for name in _finder._answers:  # noqa: SLF001 - our own class
        sys.modules.pop(name, None)
    _finder = None


def is_answered(name: str) -> bool:
    """Return whether ``import name`` is answered with a module of tangram's."""
    return _finder is not None and name in _finder._answers  # noqa: SLF001 - there is no public name
