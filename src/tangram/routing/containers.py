"""Collection types of annotations, and the types that their values are built with."""

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
"""From each annotation to the type of its values."""

MAPPINGS: Final[frozenset[Any]] = frozenset((dict, abc.Mapping, abc.MutableMapping))
"""Annotations whose values are dictionaries."""
