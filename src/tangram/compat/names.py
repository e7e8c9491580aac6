"""``import tangram_core``, answered by us, whether or not the published package is installed beside us.

Plugins' wheels bring the published package along as a dependency. A finder in front of all others sees to it
that within our process its name means this room. ``fastapi`` is answered too, but only where FastAPI itself
is not installed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import structlog

__all__ = ["answer_imports", "has_fastapi", "is_answered", "withdraw_imports"]

log = structlog.get_logger("tangram.compat")

CORE: Mapping[str, str] = {
    "tangram_core": "tangram.compat.core",
    "tangram_core.backend": "tangram.compat.core.backend",
    "tangram_core.config": "tangram.compat.configuration",
    "tangram_core.plugin": "tangram.compat.core.plugin",
    "tangram_core.redis": "tangram.compat.core.redis",
}
BARE: Mapping[str, str] = {
    "fastapi": "tangram.compat.bare",
    "fastapi.exceptions": "tangram.compat.bare.exceptions",
    "fastapi.params": "tangram.compat.bare.params",
    "fastapi.requests": "tangram.compat.bare.requests",
    "fastapi.responses": "tangram.compat.bare.responses",
    "fastapi.routing": "tangram.compat.bare.routing",
    "fastapi.status": "tangram.compat.bare.status",
}


class _Alias(Loader):
    """Loads a module by putting ours in its place."""

    def __init__(self, ours: str) -> None:
        self._ours = ours

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:  # noqa: ARG002 - the protocol's signature
        return None

    def exec_module(self, module: ModuleType) -> None:
        # The import system takes from here whatever stands under the name once this returns.
        sys.modules[module.__name__] = import_module(self._ours)


class _Finder(MetaPathFinder):
    def __init__(self, answers: Mapping[str, str]) -> None:
        self._answers = answers
        self._roots = {name.partition(".")[0] for name in answers}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the protocol's signature
        target: ModuleType | None = None,  # noqa: ARG002
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
    """From now on ``import tangram_core`` in this process means tangram's own. Safe to call again.

    Modules that were imported from the published package before are forgotten, with a warning: whoever holds
    them has another ``Plugin`` than ours.
    """
    global _finder  # noqa: PLW0603 - imports belong to the process
    if _finder is not None:
        return
    answers = dict(CORE) if has_fastapi() else {**CORE, **BARE}
    strangers = [name for name in sys.modules if name.partition(".")[0] == "tangram_core"]
    if strangers:
        log.warning("tangram_core was imported before tangram could answer the import", modules=strangers)
    for name in strangers:
        del sys.modules[name]
    _finder = _Finder(answers)
    sys.meta_path.insert(0, _finder)


def has_fastapi() -> bool:
    """Whether FastAPI itself is installed, and not only answered."""
    return not is_answered("fastapi") and find_spec("fastapi") is not None


def withdraw_imports() -> None:
    """Undo `answer_imports`: for tests."""
    global _finder  # noqa: PLW0603
    if _finder is None:
        return
    sys.meta_path.remove(_finder)
    for name in _finder._answers:  # noqa: SLF001 - our own class
        sys.modules.pop(name, None)
    _finder = None


def is_answered(name: str) -> bool:
    """Whether ``import name`` means something of ours now."""
    return _finder is not None and name in _finder._answers  # noqa: SLF001
