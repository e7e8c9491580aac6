"""Markers for the source and the constraints of a parameter.

A marker stands in ``Annotated`` or is the default: ``limit: Annotated[int, Query(ge=1)] = 10`` or
``limit: int = Query(10, ge=1)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypedDict, Unpack, cast

__all__ = ["MISSING", "Body", "Cookie", "Depends", "DependsMarker", "Header", "Marker", "Path", "Query"]


class _Missing:
    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False


MISSING: Final = _Missing()
"""Stands for a value that is not there, where None is a value."""


class Marker:
    """The source of a parameter, its name there, and its constraints.

    The constraints have the attribute names of ``annotated_types``, so that ``from_metadata`` reads both.
    """

    __slots__ = (
        "alias", "default", "default_factory", "deprecated", "description", "embed", "examples", "ge", "gt",
        "include_in_schema", "le", "lt", "max_length", "media_type", "min_length", "multiple_of", "pattern",
        "source",
        "title", "underscores",
    )  # fmt: skip

    def __init__(
        self,
        source: str,
        default: object = MISSING,
        *,
        default_factory: Callable[[], object] | None = None,
        alias: str | None = None,
        title: str | None = None,
        description: str | None = None,
        gt: float | None = None,
        ge: float | None = None,
        lt: float | None = None,
        le: float | None = None,
        multiple_of: float | None = None,
        min_length: int | None = None,
        max_length: int | None = None,
        pattern: str | None = None,
        examples: Sequence[object] | None = None,
        deprecated: bool = False,
        include_in_schema: bool = True,
        convert_underscores: bool = True,
        embed: bool = False,
        media_type: str = "application/json",
    ) -> None:
        self.source = source
        self.default = MISSING if default is ... else default
        self.default_factory = default_factory
        self.alias, self.title, self.description = alias, title, description
        self.gt, self.ge, self.lt, self.le = gt, ge, lt, le
        self.multiple_of = multiple_of
        self.min_length, self.max_length, self.pattern = min_length, max_length, pattern
        self.examples, self.deprecated, self.include_in_schema = examples, deprecated, include_in_schema
        self.underscores, self.embed, self.media_type = convert_underscores, embed, media_type

    def __repr__(self) -> str:
        return f"{self.source.capitalize()}({self.default!r})"


class ParamSettings(TypedDict, total=False):
    """The keyword arguments of markers; all are optional."""

    default_factory: Callable[[], object] | None
    alias: str | None
    title: str | None
    description: str | None
    gt: float | None
    ge: float | None
    lt: float | None
    le: float | None
    multiple_of: float | None
    min_length: int | None
    max_length: int | None
    pattern: str | None
    examples: Sequence[object] | None
    deprecated: bool
    include_in_schema: bool
    convert_underscores: bool
    embed: bool
    media_type: str


class DependsMarker:
    """Marks a parameter whose value ``dependency`` returns or yields."""

    __slots__ = ("dependency", "use_cache")

    def __init__(self, dependency: Callable[..., object] | None, *, use_cache: bool) -> None:
        self.dependency = dependency
        self.use_cache = use_cache

    def __repr__(self) -> str:
        return f"Depends({getattr(self.dependency, '__name__', self.dependency)!s})"


# These return Any, not Marker, because a marker may be the default of a parameter of any type.


def Path(default: Any = MISSING, **settings: Unpack[ParamSettings]) -> Any:  # noqa: N802 - a marker is written like a class, as in FastAPI
    """Read the parameter from the path, for example ``/items/{item_id}``."""
    return Marker("path", default, **settings)


def Query(default: Any = MISSING, **settings: Unpack[ParamSettings]) -> Any:  # noqa: N802 - a marker is written like a class, as in FastAPI
    """Read the parameter from the query; lists, sets and tuples take all values of the name."""
    return Marker("query", default, **settings)


def Header(default: Any = MISSING, **settings: Unpack[ParamSettings]) -> Any:  # noqa: N802 - a marker is written like a class, as in FastAPI
    """Read the parameter from a header.

    The parameter ``x_token`` reads the header ``x-token`` unless ``convert_underscores=False``.
    """
    return Marker("header", default, **settings)


def Cookie(default: Any = MISSING, **settings: Unpack[ParamSettings]) -> Any:  # noqa: N802 - a marker is written like a class, as in FastAPI
    """Read the parameter from a cookie."""
    return Marker("cookie", default, **settings)


def Body(default: Any = MISSING, **settings: Unpack[ParamSettings]) -> Any:  # noqa: N802 - a marker is written like a class, as in FastAPI
    """Read the parameter from the JSON body.

    With several body parameters, or ``embed=True``, each is one member of the body. A parameter of type
    ``bytes`` receives the body unchanged.
    """
    return Marker("body", default, **settings)


def Depends(dependency: Callable[..., object] | None = None, *, use_cache: bool = True) -> Any:  # noqa: N802 - a marker is written like a class, as in FastAPI
    """Call ``dependency`` for the value of the parameter.

    Args:
        dependency: a function, a class or a generator, async or sync. A generator yields the value, and the
            rest of it runs after the response. The annotated class by default.
        use_cache: call the dependency once per request, also if several functions depend on it.
    """
    return cast("Any", DependsMarker(dependency, use_cache=use_cache))
