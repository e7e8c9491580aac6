"""Compile the signature of a handler into a plan.

A plan has the source and the converter of each parameter. A route is compiled once, when the server starts.
``calls.py`` runs plans for requests.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from tangram.errors import RouteError
from tangram.routing.connection import HTTPConnection
from tangram.routing.constraints import checker, from_metadata
from tangram.routing.containers import COLLECTIONS, MAPPINGS
from tangram.routing.convert import is_class_like, origin_of, structurer
from tangram.routing.params import MISSING, DependsMarker, Marker
from tangram.routing.request import Request
from tangram.routing.responses import Response
from tangram.routing.router import Route

__all__ = [
    "Dependency",
    "Overrides",
    "Param",
    "Plan",
    "call_kind",
    "compile_plan",
    "compile_route",
    "hints_of",
]

_BODILESS: Final = frozenset(("GET", "HEAD", "DELETE", "OPTIONS"))
"""Methods whose requests have no body by themselves."""

Overrides = Mapping[Callable[..., Any], Callable[..., Any]]
"""Replacements of dependencies, for tests."""

CallKind = Literal["async", "thread", "class", "async_generator", "thread_generator"]
Structure = Callable[[object], object]


@attrs.frozen(eq=False)
class Param:
    """A parameter that is read from the request."""

    name: str
    source: str
    """``path``, ``query``, ``header``, ``cookie``, ``body``, or ``member`` for one member of the body."""
    key: str
    """The parameter's name in its source."""
    kind: Any
    convert: Structure
    many: bool
    """All values of the key are read, not only the last one."""
    default: object
    default_factory: Callable[[], object] | None
    loc: tuple[str | int, ...]
    """The place of its faults."""
    marker: Marker
    metadata: tuple[object, ...]

    @property
    def required(self) -> bool:
        """It has neither a default nor a ``default_factory``."""
        return self.default is MISSING and self.default_factory is None


@attrs.frozen(eq=False)
class Dependency:
    """A parameter whose value another callable returns.

    Without a ``name`` the callable is called for its exceptions only.
    """

    name: str | None
    plan: Plan
    use_cache: bool


@attrs.frozen(eq=False)
class Plan:
    """A callable, and the parameters to call it with."""

    call: Callable[..., Any]
    how: CallKind
    params: tuple[Param, ...] = ()
    """Parameters from path, query, headers and cookies."""
    body: tuple[Param, ...] = ()
    """Parameters from the body."""
    special: tuple[tuple[str, str, Any], ...] = ()
    """Triples of a parameter, ``"request"``, ``"response"`` or ``"inject"``, and a type."""
    dependencies: tuple[Dependency, ...] = ()
    returns: Any = None
    """The return annotation."""

    def everything(self) -> Iterable[Plan]:
        """Yield the plans of all dependencies, depth first, then this plan."""
        for dependency in self.dependencies:
            yield from dependency.plan.everything()
        yield self


@attrs.define
class _Context:
    """The settings of a route whose plans are being compiled, and the plans compiled so far."""

    names: tuple[str, ...]
    bodiless: bool
    injectable: frozenset[type]
    overrides: Overrides
    connection: type[HTTPConnection]
    done: dict[int, Plan]
    underway: list[Callable[..., Any]]


def compile_plan(
    call: Callable[..., Any],
    *,
    names: tuple[str, ...] = (),
    bodiless: bool = False,
    injectable: frozenset[type] = frozenset(),
    overrides: Overrides | None = None,
    dependencies: Iterable[DependsMarker] = (),
    connection: type[HTTPConnection] = Request,
) -> Plan:
    """Compile a handler and its dependencies.

    Args:
        call: the handler.
        names: the path parameters.
        bodiless: the route's methods have no body, so lists are read from the query.
        injectable: types whose values the server provides.
        overrides: replacements of dependencies.
        dependencies: called before the handler for their exceptions.
        connection: the class that a parameter may be annotated with, ``Request`` or ``WebSocket``.

    Raises:
        RouteError: a parameter cannot be bound.
    """
    context = _Context(names, bodiless, injectable, overrides or {}, connection, {}, [])
    plan = _compile(call, context)
    if dependencies:
        before = tuple(_dependency(None, marker, None, context) for marker in dependencies)
        plan = attrs.evolve(plan, dependencies=before + plan.dependencies)
    used = {param.key for part in plan.everything() for param in part.params if param.source == "path"}
    if missing := [name for name in names if name not in used]:
        raise RouteError(f"expected {_name(call)} to have a parameter {missing[0]!r}, as in the path")
    return _embedded(plan)


def compile_route(
    route: Route,
    injectable: frozenset[type],
    overrides: Overrides | None,
    *,
    connection: type[HTTPConnection] = Request,
) -> Plan:
    """Compile the handler of a route, for HTTP or for WebSockets; see ``compile_plan``."""
    return compile_plan(
        route.endpoint,
        names=route.template.names,
        bodiless=route.methods <= _BODILESS,  # a WebSocket has no methods
        injectable=injectable,
        overrides=overrides,
        dependencies=route.dependencies,
        connection=connection,
    )


def _name(call: object) -> str:
    return f"{getattr(call, '__module__', '?')}.{getattr(call, '__qualname__', type(call).__qualname__)}"


def _compile(call: Callable[..., Any], context: _Context) -> Plan:
    if id(call) in context.done:
        return context.done[id(call)]
    if call in context.underway:
        raise RouteError(f"the dependency {_name(call)} depends on itself")
    context.underway.append(call)
    hints = hints_of(call)
    groups: dict[str, list[Any]] = {"param": [], "body": [], "special": [], "dependency": []}
    for parameter in _parameters(call):
        hint = hints.get(parameter.name, Any)
        group, entry = _classify(parameter, hint, call, context)
        groups[group].append(entry)
    context.underway.pop()
    plan = Plan(
        call=call,
        how=call_kind(call),
        params=tuple(groups["param"]),
        body=tuple(groups["body"]),
        special=tuple(groups["special"]),
        dependencies=tuple(groups["dependency"]),
        returns=hints.get("return", Any),
    )
    context.done[id(call)] = plan
    return plan


def _parameters(call: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        raise RouteError(f"cannot read the signature of {_name(call)}") from None
    found = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue  # *args and **kwargs receive nothing: they have no names to read by
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise RouteError(
                f"{_name(call)}: parameter {parameter.name!r} is positional-only and cannot be bound by name"
            )
        found.append(parameter)
    return found


def hints_of(call: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function, or of a class or object that is called.

    Raises:
        RouteError: an annotation cannot be resolved.
    """
    target: Any = call
    while hasattr(target, "func") and not inspect.isroutine(target):  # functools.partial
        target = target.func
    owner = target
    if inspect.isclass(target) and not is_class_like(target):
        target = target.__init__
    elif not inspect.isclass(target) and not inspect.isroutine(target):
        target = type(target).__call__
    try:
        hints = get_type_hints(inspect.unwrap(target), include_extras=True)
    except NameError as exc:
        raise RouteError(
            f"{_name(call)}: the annotation {exc.name!r} is not known at run time;"
            " import it outside of TYPE_CHECKING"
        ) from exc
    except Exception as exc:
        raise RouteError(f"{_name(call)}: an annotation cannot be resolved: {exc}") from exc
    # The generated __init__ of an attrs class calls the private field _x by the name x.
    private = inspect.isclass(owner) and target is owner
    return {name.lstrip("_"): hint for name, hint in hints.items()} if private else hints


def call_kind(call: Callable[..., Any]) -> CallKind:
    """Return how a handler or dependency is called."""
    target: Any = call
    while hasattr(target, "func") and not inspect.isroutine(target):
        target = target.func
    if inspect.isclass(target):
        return "class"
    if not inspect.isroutine(target):
        target = type(target).__call__
    target = inspect.unwrap(target)
    if inspect.isasyncgenfunction(target):
        return "async_generator"
    if inspect.isgeneratorfunction(target):
        return "thread_generator"
    return "async" if inspect.iscoroutinefunction(target) else "thread"


def _classify(
    parameter: inspect.Parameter, hint: Any, call: Callable[..., Any], context: _Context
) -> tuple[str, Any]:
    base, metadata = _unwrap(hint)
    default = MISSING if parameter.default is parameter.empty else parameter.default
    markers = [item for item in (*metadata, default) if isinstance(item, (Marker, DependsMarker))]
    if isinstance(default, DependsMarker):
        default = MISSING
    marker = markers[-1] if markers else None
    if isinstance(marker, DependsMarker):
        return "dependency", _dependency(parameter.name, marker, base, context)
    if marker is None:
        if base in _hashable(context.injectable, base):
            return "special", (parameter.name, "inject", base)
        if base is context.connection:
            return "special", (parameter.name, "request", base)
        if isinstance(base, type) and issubclass(base, HTTPConnection):
            raise RouteError(
                f"{_name(call)}: parameter {parameter.name!r} is a {base.__name__}, "
                f"and this route has a {context.connection.__name__}"
            )
        if isinstance(base, type) and issubclass(base, Response):
            if context.connection is not Request:
                raise RouteError(f"{_name(call)}: a WebSocket has no Response: see {parameter.name!r}")
            return "special", (parameter.name, "response", base)
    param = _param(parameter.name, base, metadata, default, marker, call, context)
    return ("body" if param.source == "body" else "param"), param


def _hashable(kinds: frozenset[type], base: Any) -> frozenset[type]:
    return kinds if isinstance(base, type) else frozenset()


def _unwrap(hint: Any) -> tuple[Any, tuple[object, ...]]:
    if get_origin(hint) is Annotated:
        base, *metadata = get_args(hint)
        return base, tuple(metadata)
    return hint, ()


def _dependency(name: str | None, marker: DependsMarker, base: Any, context: _Context) -> Dependency:
    call = marker.dependency or base
    if not callable(call) or getattr(type(call), "__hash__", None) is None:
        raise RouteError(f"expected Depends(function), of something hashable, not {marker!r}")
    call = context.overrides.get(call, call)
    return Dependency(name, _compile(call, context), marker.use_cache)


def _param(  # noqa: PLR0917 - the parts of a parameter
    name: str,
    base: Any,
    metadata: tuple[object, ...],
    default: object,
    marker: Marker | None,
    call: Callable[..., Any],
    context: _Context,
) -> Param:
    if isinstance(default, Marker):
        metadata = (*metadata, default)
        default = default.default
    if marker is None:
        marker = Marker(_source(name, base, context))
    elif marker.default is not MISSING and default is MISSING:
        default = marker.default
    if name in context.names and marker.source in ("path", "query") and not marker.alias:
        marker_source = "path"
    else:
        marker_source = marker.source
    key = _key(name, marker, marker_source)
    if marker_source == "path" and key not in context.names:
        raise RouteError(f"{_name(call)}: parameter {name!r} is not in the route's path")
    many = marker_source in ("query", "header") and _is_many(base)
    if marker_source != "body" and _needs_body(base):
        raise RouteError(
            f"{_name(call)}: parameter {name!r} is an object, and a {marker_source} parameter is text"
        )
    loc = ("body",) if marker_source == "body" else (marker_source, key)
    convert = _converter(name, base, metadata, call)
    factory = marker.default_factory
    return Param(name, marker_source, key, base, convert, many, default, factory, loc, marker, metadata)


def _key(name: str, marker: Marker, source: str) -> str:
    if marker.alias:
        return marker.alias.lower() if source == "header" else marker.alias
    if source == "header":
        return (name.replace("_", "-") if marker.underscores else name).lower()
    return name


def _converter(name: str, base: Any, metadata: tuple[object, ...], call: Callable[..., Any]) -> Structure:
    if base is inspect.Parameter.empty:
        base = Any
    try:
        convert, check = structurer(base), checker(from_metadata(metadata))
    except RecursionError:
        raise
    except Exception as exc:
        raise RouteError(f"{_name(call)}: parameter {name!r} cannot be read as {base!r}: {exc}") from exc
    if check is None:
        return convert

    def checked(value: object) -> object:
        made = convert(value)
        check(made)
        return made

    return checked


def _source(name: str, base: Any, context: _Context) -> str:
    if name in context.names:
        return "path"
    if _needs_body(base) or (_is_many(base) and not context.bodiless):
        return "body"
    return "query"


def _needs_body(kind: Any) -> bool:
    """Return whether values of a type are, or contain, objects, which text cannot represent."""
    origin = origin_of(kind)
    if origin is Annotated or origin in (Union, UnionType):
        return any(
            _needs_body(argument)
            for argument in (get_args(kind)[:1] if origin is Annotated else get_args(kind))
        )
    if is_class_like(kind) or _in(origin, MAPPINGS):
        return True
    return _in(origin, COLLECTIONS) and any(_needs_body(argument) for argument in get_args(kind))


def _is_many(kind: Any) -> bool:
    origin = origin_of(kind)
    if origin is Annotated:
        return _is_many(get_args(kind)[0])
    if origin in (Union, UnionType):
        return any(_is_many(argument) for argument in get_args(kind))
    return _in(origin, COLLECTIONS)


def _in(kind: Any, kinds: Any) -> bool:
    try:
        return kind in kinds
    except TypeError:
        return False


def _embedded(plan: Plan) -> Plan:
    """Make each body parameter a member of the body, if there are several."""
    body = {param.name: param for part in plan.everything() for param in part.body}
    if len(body) < 2 and not any(param.marker.embed for param in body.values()):
        return plan
    return _embed(plan, {})


def _embed(plan: Plan, done: dict[int, Plan]) -> Plan:
    if id(plan) not in done:
        body = tuple(
            attrs.evolve(
                param,
                source="member",
                key=param.marker.alias or param.name,
                loc=("body", param.marker.alias or param.name),
            )
            for param in plan.body
        )
        below = tuple(attrs.evolve(d, plan=_embed(d.plan, done)) for d in plan.dependencies)
        done[id(plan)] = attrs.evolve(plan, body=body, dependencies=below)
    return done[id(plan)]
