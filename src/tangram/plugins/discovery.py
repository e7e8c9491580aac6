"""List the installed plugins and resolve names of ``[core] plugins``.

No plugin is imported here.

Plugins are entry points of two groups, ``tangram.plugins`` and ``tangram_core.plugins``. A name is compared
with the entry points first, then with the distributions (all entry points of the distribution match), then
with the modules. Names are normalised: ``My.Plugin``, ``my-plugin`` and ``my_plugin`` are equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import Final

import attrs

from tangram.config.names import nearest, normalise
from tangram.errors import PluginError, PluginNotFound

__all__ = ["GROUPS", "Candidate", "find", "scan"]

GROUPS: Final = ("tangram.plugins", "tangram_core.plugins")
"""The entry-point groups, in order of preference: a plugin in both is loaded from the first."""


@attrs.frozen
class Candidate:
    """A plugin that is not imported yet: an entry point, or a place (see ``places.py``)."""

    name: str
    """The entry point's name, as written."""
    dist_name: str
    """The ``Name`` of its distribution, or the entry point's name if the distribution is unknown."""
    entry_point: EntryPoint = attrs.field(eq=False)
    file: Path | None = attrs.field(default=None, eq=False)
    """The file to import, for a plugin that is named by its path."""
    foreign: bool = attrs.field(default=False, eq=False)
    """It is in the group of the published server, ``tangram_core.plugins``, perhaps also in ours."""

    @property
    def module(self) -> str:
        """The name of the entry point's module."""
        return self.entry_point.value.partition(":")[0].strip()

    @property
    def distribution(self) -> Distribution | None:
        """The distribution that installed the entry point, if known."""
        return self.entry_point.dist

    @property
    def native(self) -> bool:
        """It is in the group ``tangram.plugins``."""
        return self.entry_point.group == GROUPS[0]

    def __str__(self) -> str:
        return f"{self.name} ({self.dist_name})"


def scan(points: Iterable[EntryPoint] | None = None) -> list[Candidate]:
    """Return all installed plugins, those of ``tangram.plugins`` first, each once.

    Args:
        points: the entry points to look at; all that are installed by default.
    """
    if points is None:
        # entry_points() reads every distribution, also for one group: read once for both groups.
        installed = entry_points()
        points = [point for group in GROUPS for point in installed.select(group=group)]
    ours_first = sorted(
        (one for one in points if one.group in GROUPS), key=lambda one: GROUPS.index(one.group)
    )
    candidates: dict[tuple[str, str], Candidate] = {}
    for point in ours_first:
        foreign = point.group != GROUPS[0]
        candidate = Candidate(
            name=point.name, dist_name=_dist_name(point), entry_point=point, foreign=foreign
        )
        key = (normalise(candidate.dist_name), normalise(candidate.name))
        known = candidates.setdefault(key, candidate)
        if foreign and not known.foreign:
            candidates[key] = attrs.evolve(known, foreign=True)
    return list(candidates.values())


def find(name: str, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the candidates that ``name`` selects: several if it names a distribution.

    Raises:
        PluginNotFound: no candidate fits; the message suggests the nearest name.
        PluginError: entry points of several distributions have this name.
    """
    known = list(candidates)
    wanted = normalise(name)
    by_entry_point = [one for one in known if normalise(one.name) == wanted]
    by_distribution = [one for one in known if normalise(one.dist_name) == wanted]
    if len({normalise(one.dist_name) for one in by_entry_point}) > 1 and not by_distribution:
        raise PluginError(
            f"plugin {name!r} is ambiguous: {', '.join(map(str, by_entry_point))} are installed; "
            "write the distribution's name",
            plugin=name,
        )
    if by_entry_point and not (by_distribution and by_entry_point[0] not in by_distribution):
        return by_entry_point[:1]
    by_module = [
        one for one in known if wanted in {normalise(one.module), normalise(one.module.partition(".")[0])}
    ]
    found = by_distribution or by_module
    if not found:
        raise PluginNotFound(_not_found(name, known), plugin=name)
    return found


def _not_found(name: str, known: list[Candidate]) -> str:
    near = nearest(
        name,
        (spelling for one in known for spelling in (one.module.partition(".")[0], one.dist_name, one.name)),
    )
    if near:
        return f"no installed plugin is called {name!r}: did you mean {near!r}?"
    if not known:
        return f"no installed plugin is called {name!r}: none is installed in this environment"
    installed = ", ".join(sorted(one.name for one in known))
    return f"no installed plugin is called {name!r}: installed are {installed}"


def _dist_name(point: EntryPoint) -> str:
    # The name of a distribution without METADATA (a half-removed install) raises or is None.
    if point.dist is None:
        return point.name
    try:
        return point.dist.name or point.name
    except (KeyError, TypeError, AttributeError):
        return point.name
