"""Read the signatures of push handlers and ``authorize`` functions of channels.

A handler gets the message first. Its other parameters are bound by annotation (``Sender``, the state) or by
name (the parameters of the topic, and ``sender`` and ``state`` without annotation).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from tangram.declared.channel import DeclaredChannel, Incoming
from tangram.declared.payload import PayloadReader, payload_reader
from tangram.declared.sender import Sender
from tangram.errors import PluginError, RouteError
from tangram.routing.binding import call_kind, hints_of
from tangram.routing.convert import problems_of, structurer
from tangram.routing.exceptions import InvalidRequest, Problem

__all__ = ["Handler", "Named", "compile_authorizer", "compile_handler", "return_type"]

SENDER: Final = "sender"
STATE: Final = "state"


@attrs.frozen(eq=False)
class Named:
    """The parameters of a function beside its message: where each one's value comes from."""

    values: tuple[tuple[str, str], ...]
    """Pairs of a parameter and the name of its value, as it is."""
    converted: tuple[tuple[str, Callable[[object], object]], ...]
    """Parameters of the topic with the functions that convert their text."""

    def arguments(self, values: Mapping[str, object], topic: Mapping[str, str]) -> dict[str, Any]:
        """Return the arguments of a call.

        Raises:
            InvalidRequest: a part of the topic does not fit its annotation.
        """
        made = {parameter: values[name] for parameter, name in self.values}
        problems: list[Problem] = []
        for name, convert in self.converted:
            try:
                made[name] = convert(topic[name])
            except Exception as error:  # noqa: BLE001 - converters of classes may raise anything
                problems.extend(problems_of(error, ("topic", name)))
        if problems:
            raise InvalidRequest(problems)
        return made


@attrs.frozen(eq=False)
class Handler:
    """A handler that is ready to be called."""

    incoming: Incoming
    function: Callable[..., Any]
    reader: PayloadReader
    named: Named
    is_async: bool
    timeout: float
    """Seconds until the reply."""


def compile_handler(incoming: Incoming, state: type[Any]) -> Handler:
    """Return the handler of a push.

    Args:
        incoming: the declaration.
        state: the class whose parameter gets the state.

    Raises:
        PluginError: a parameter cannot be bound, or the payload's type cannot be read.
    """
    what = f"the handler of {incoming.event!r} on {incoming.channel.template.text!r}"
    parameters = _parameters(incoming.handler, what)
    if not parameters or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise PluginError(f"{what}: expected the message as its first parameter")
    first, *others = parameters
    if first.name in incoming.channel.template.names:
        raise PluginError(f"{what}: expected the message as its first parameter, not {first.name!r}")
    hints = _hints(incoming.handler, what)
    kinds: dict[Any, str] = {Sender: SENDER, state: STATE}
    named = _bind(others, hints, incoming.channel, kinds, {SENDER, STATE}, what)
    try:
        reader = payload_reader(incoming.kind)
    except Exception as error:
        raise PluginError(f"{what}: payloads cannot be read as {incoming.kind!r}: {error}") from error
    is_async = _is_async(incoming.handler, what)
    return Handler(incoming, incoming.handler, reader, named, is_async, incoming.reply_timeout)


def return_type(incoming: Incoming) -> Any:
    """Return the annotation of what a handler returns; ``Any`` without a readable one."""
    try:
        return hints_of(incoming.handler).get("return", Any)
    except RouteError:
        return Any


def compile_authorizer(
    channel: DeclaredChannel, state: type[Any], request: type[Any]
) -> tuple[Callable[..., Any], Named, bool]:
    """Return the ``authorize`` function of a channel, its parameters, and whether it is async.

    Raises:
        PluginError: a parameter cannot be bound.
    """
    assert channel.authorizer is not None
    what = f"authorize of {channel.template.text!r}"
    function = channel.authorizer
    kinds = {request: "request", state: STATE}
    names = {"id", "topic", "request", STATE}
    named = _bind(_parameters(function, what), _hints(function, what), channel, kinds, names, what)
    return function, named, _is_async(function, what)


def _bind(  # noqa: PLR0917 - the parts of a signature, and its surroundings
    parameters: list[inspect.Parameter],
    hints: Mapping[str, Any],
    channel: DeclaredChannel,
    kinds: Mapping[Any, str],
    names: set[str],
    what: str,
) -> Named:
    values: list[tuple[str, str]] = []
    converted: list[tuple[str, Callable[[object], object]]] = []
    for parameter in parameters:
        name, hint = parameter.name, hints.get(parameter.name)
        if isinstance(hint, type) and hint in kinds:
            values.append((name, kinds[hint]))
        elif name in channel.template.names:
            converted.append((name, _converter(name, hint, what)))
        elif name in names:
            values.append((name, name))
        elif parameter.default is parameter.empty:
            raise PluginError(
                f"{what}: no value is known for the parameter {name!r}, expected one of "
                f"{', '.join(map(repr, (*channel.template.names, *sorted(names))))}"
            )
    return Named(tuple(values), tuple(converted))


def _converter(name: str, hint: Any, what: str) -> Callable[[object], object]:
    try:
        return structurer(str if hint is None else hint)
    except Exception as error:
        raise PluginError(f"{what}: the parameter {name!r} cannot be read as {hint!r}: {error}") from error


def _parameters(function: Callable[..., Any], what: str) -> list[inspect.Parameter]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise PluginError(f"{what}: cannot read the signature of {function!r}") from None
    return [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]


def _hints(function: Callable[..., Any], what: str) -> dict[str, Any]:
    try:
        return hints_of(function)
    except RouteError as error:
        raise PluginError(f"{what}: {error}") from error.__cause__


def _is_async(function: Callable[..., Any], what: str) -> bool:
    kind = call_kind(function)
    if kind not in ("async", "thread"):
        raise PluginError(f"{what}: expected a function, or an async function, without yield")
    return kind == "async"
