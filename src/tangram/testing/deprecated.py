"""Names that moved: a module ``__getattr__`` that finds them at their new place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module

__all__ = ["moved_names", "warn_moved"]


def moved_names(module: str, places: Mapping[str, str]) -> Callable[[str], object]:
    """Return a ``__getattr__`` for a module whose names have moved.

    Args:
        module: the old module, for messages.
        places: the new module of each name, below ``tangram.testing``.
    """

    def find(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new = f"tangram.testing.{places[name]}"
        warn_moved(f"{module}.{name}", f"{new}.{name}")
        value: object = getattr(import_module(new), name)
        return value

    return find


def warn_moved(old: str, new: str) -> None:
    """Warn the code that uses an old name where it is now."""
    warnings.warn(f"{old} has moved, use {new}", DeprecationWarning, stacklevel=3)
