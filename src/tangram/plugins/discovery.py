"""Which plugins are installed, and which of them a name in ``[core] plugins`` means. Imports none of them.

Both entry-point groups are scanned at once, ours first. A name is looked for among the entry points, then the
distributions (which means all of their entry points), then the modules, always normalised; so ``My.Plugin``,
``my-plugin`` and ``my_plugin`` are one name.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import Distribution, EntryPoint, entry_points

import attrs

from tangram.config.names import nearest, normalise
from tangram.errors import PluginError, PluginNotFound

__all__ = ["GROUPS", "Candidate", "find", "scan"]

GROUPS = ("tangram.plugins", "tangram_core.plugins")
"""Ours first: a plugin that is in both is loaded from ours."""


@attrs.frozen
class Candidate:
    """An installed entry point that claims to be a plugin."""

    name: str
    """The entry point's name, as written."""
    dist_name: str
    """The distribution's ``Name``; the entry point's name where the distribution is not known."""
    entry_point: EntryPoint = attrs.field(eq=False)
    foreign: bool = attrs.field(default=False, eq=False)
    """Its distribution names it in the published server's group, whether or not it does in ours."""

    @property
    def module(self) -> str:
        """The module that the entry point names; not imported."""
        return self.entry_point.value.partition(":")[0].strip()

    @property
    def distribution(self) -> Distribution | None:
        return self.entry_point.dist

    @property
    def native(self) -> bool:
        """It is in our own group."""
        return self.entry_point.group == GROUPS[0]

    def __str__(self) -> str:
        return f"{self.name} ({self.dist_name})"


def scan(points: Iterable[EntryPoint] | None = None) -> list[Candidate]:
    """All installed plugins, ours first, a plugin that is in both groups once."""
    if points is None:
        # All groups are read at once whatever is asked for: ask once.
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
    """What ``name`` means; raises `PluginNotFound` with the nearest known name, or for a name that means
    several.
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
    # A distribution without METADATA (a half-removed install) has no name and raises or says None.
    if point.dist is None:
        return point.name
    try:
        return point.dist.name or point.name
    except (KeyError, TypeError, AttributeError):
        return point.name
