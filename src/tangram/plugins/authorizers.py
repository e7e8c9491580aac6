"""The ``authorize`` functions of a plugin, in the form in which the gate asks them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from tangram.channels.disconnects import UNMATCHED_TOPIC
from tangram.channels.policy import Authorizer, ConnectInfo
from tangram.declared.binding import compile_authorizer
from tangram.declared.channel import DeclaredChannel
from tangram.plugins.plugin import Plugin
from tangram.plugins.state import BackendState
from tangram.routing.exceptions import InvalidRequest

__all__ = ["authorizers_of"]


def authorizers_of(name: str, plugin: Plugin) -> list[Authorizer]:
    """Return the functions of a plugin and its channels that decide about joins.

    Args:
        name: the plugin's name, for the log.
        plugin: the plugin.
    """
    found = [] if plugin.authorize is None else Authorizer.of(name, plugin.authorize)
    return found + [
        Authorizer(name, _of_channel(channel), channel.template.glob)
        for channel in plugin.channels
        if channel.authorizer is not None
    ]


def _of_channel(channel: DeclaredChannel) -> Callable[[str, str, ConnectInfo], Any]:
    """Return the function of a channel with the arguments of `Authorizer`."""
    function, named, is_async = compile_authorizer(channel, BackendState, ConnectInfo)

    def call(topic: str, id_: str, request: ConnectInfo) -> str | Awaitable[str | None] | None:
        parameters = channel.template.match(topic)
        if parameters is None:
            return None  # the pattern is wider than the template
        values = {"id": id_, "topic": topic, "request": request, "state": channel.link.state}
        try:
            arguments = named.arguments(values, parameters)
        except InvalidRequest:
            return UNMATCHED_TOPIC.reason
        answer: str | Awaitable[str | None] | None = function(**arguments)
        return answer

    if not is_async:
        return call

    async def call_async(topic: str, id_: str, request: ConnectInfo) -> str | None:
        answer = call(topic, id_, request)
        return answer if answer is None or isinstance(answer, str) else await answer

    return call_async
