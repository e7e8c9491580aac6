"""Find wrong signatures of declared channels, and pushes with two handlers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from inspect import getsourcefile, unwrap
from typing import Any

from tangram.declared.binding import compile_authorizer, compile_handler
from tangram.declared.channel import DeclaredChannel
from tangram.errors import PluginError

__all__ = ["declared_twice", "signature_faults"]


def signature_faults(
    channels: Iterable[DeclaredChannel], state: type[Any], request: type[Any]
) -> Iterator[str]:
    """Yield the faults of handlers and of ``authorize`` functions, with their places.

    Args:
        channels: the channels of one plugin.
        state: the class whose parameter gets the state.
        request: the class whose parameter gets the request of ``authorize``.
    """
    for channel in channels:
        for incoming in channel.incoming.values():
            try:
                compile_handler(incoming, state)
            except PluginError as error:
                yield f"{error}{_place(incoming.handler)}"
        if channel.authorizer is not None:
            try:
                compile_authorizer(channel, state, request)
            except PluginError as error:
                yield f"{error}{_place(channel.authorizer)}"


def declared_twice(channels: Iterable[tuple[str, Iterable[DeclaredChannel]]]) -> Iterator[str]:
    """Yield a sentence for each push of which two plugins have a handler.

    Args:
        channels: pairs of a plugin's name and its channels, in the order of the plugins.
    """
    seen: list[tuple[str, str, DeclaredChannel]] = []
    for plugin, some in channels:
        own = [(plugin, event, channel) for channel in some for event in channel.incoming]
        for _, event, channel in own:
            for other, known, first in seen:
                if known == event and _overlap(first, channel):
                    yield (
                        f"{plugin!r} handles the push {event!r} of {channel.template.text!r}, and so does "
                        f"{other!r}, which comes first and gets it: rename one of the events"
                    )
                    break
        seen += own


def _overlap(first: DeclaredChannel, second: DeclaredChannel) -> bool:
    """Return whether one of two forms of topics includes the other one."""
    return _includes(first, second) or _includes(second, first)


def _includes(outer: DeclaredChannel, inner: DeclaredChannel) -> bool:
    return outer.template.match(re.sub(r"\{[^{}]*\}", "x", inner.template.text)) is not None


def _place(function: Callable[..., Any]) -> str:
    """Return file and line of a function; nothing where it has none."""
    code = getattr(unwrap(function), "__code__", None)
    try:
        file = getsourcefile(function)
    except TypeError:
        file = None
    return f" ({file}:{code.co_firstlineno})" if file and code is not None else ""
