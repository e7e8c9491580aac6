"""The collections that a parameter or field may ask for, and what builds each."""

from __future__ import annotations

from collections import abc
from typing import Any, Final

__all__ = ["COLLECTIONS", "MAPPINGS"]

COLLECTIONS: Final[dict[Any, type]] = {
    list: list,
    set: set,
    frozenset: frozenset,
    tuple: tuple,
    abc.Sequence: list,
    abc.MutableSequence: list,
    abc.Collection: list,
    abc.Iterable: list,
    abc.Set: frozenset,
    abc.MutableSet: set,
}

MAPPINGS: Final[frozenset[Any]] = frozenset((dict, abc.Mapping, abc.MutableMapping))
