from __future__ import annotations

from typing import Any

import pytest

import tangram
from tangram.declared.binding import compile_handler
from tangram.declared.channel import Incoming
from tangram.declared.table import DeclaredTable
from tangram.errors import PluginError
from tangram.plugins.state import BackendState


def declared(handler: Any, kind: type[Any] = dict, topic: str = "t:{place}") -> Incoming:
    channel = tangram.Plugin().channel(topic)
    channel.receives("event", kind)(handler)
    return channel.incoming["event"]


def test_parameters_are_bound_by_annotation_and_by_name() -> None:
    """A handler names what it needs, in any order after the message."""

    async def handler(
        message: dict[str, int],
        state: tangram.BackendState,
        place: int,
        who: tangram.Sender,
        more: str = "unbound",
    ) -> None: ...

    compiled = compile_handler(declared(handler), BackendState)
    arguments = compiled.named.arguments({"sender": "S", "state": "B"}, {"place": "7"})

    assert compiled.is_async
    assert arguments == {"state": "B", "who": "S", "place": 7}


async def _without_message() -> None: ...
async def _place_first(place: str) -> None: ...
async def _unknown(message: object, level: int) -> None: ...
async def _generator(message: object) -> Any:
    yield


def _unresolved(message: object, sender: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - the name is missing on purpose


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (_without_message, "expected the message as its first parameter"),
        (_place_first, "not 'place'"),
        (_unknown, "no value is known for the parameter 'level', expected one of 'place', 'sender', 'state'"),
        (_generator, "without yield"),
        (_unresolved, "'Missing' is not known at run time"),
    ],
)
def test_the_error_of_a_wrong_handler_names_the_remedy(handler: Any, reason: str) -> None:
    """The error names the event, the topic and the remedy."""
    with pytest.raises(PluginError, match=reason) as raised:
        compile_handler(declared(handler), BackendState)

    assert "the handler of 'event' on 't:{place}'" in str(raised.value)


@pytest.mark.parametrize("event", ["", "a:b", "phx_join", "heartbeat", "x" * 256])
def test_events_of_the_protocol_cannot_be_declared(event: str) -> None:
    """Names that the protocol uses, or that would be another topic's, are refused at once."""
    channel = tangram.Plugin().channel("t")

    with pytest.raises(PluginError):
        channel.sends(event, dict)
    with pytest.raises(PluginError):
        channel.receives(event, dict)


def test_nothing_is_declared_twice() -> None:
    """A second channel of the name, message, handler or authorize function is an error."""
    plugin = tangram.Plugin()
    channel = plugin.channel("t:{place}")
    channel.sends("out", dict)
    channel.receives("in", dict)(lambda message: None)
    channel.authorize(lambda: None)

    for again in (
        lambda: plugin.channel("t:{place}"),
        lambda: channel.sends("out", dict),
        lambda: channel.receives("in", dict),
        lambda: channel.authorize(lambda: None),
    ):
        with pytest.raises(PluginError, match="already"):
            again()
    with pytest.raises(PluginError, match="seconds above 0"):
        channel.receives("other", dict, reply_timeout=0)


def test_the_first_plugin_that_declares_an_event_gets_its_pushes() -> None:
    """Plugins are asked in their order, and undeclared events have no handler."""
    first, second = tangram.Plugin(), tangram.Plugin()
    wide, narrow = first.channel("t:{place}"), second.channel("t:eu")
    for channel, event in ((wide, "both"), (narrow, "both"), (narrow, "second")):
        channel.receives(event, dict)(lambda message: None)
    table = DeclaredTable([("first", first.channels), ("second", second.channels)])

    both, other = table.find("t:eu", "both"), table.find("t:eu", "second")
    assert both is not None
    assert other is not None
    assert (both.plugin, both.parameters) == ("first", {"place": "eu"})
    assert (other.plugin, other.parameters) == ("second", {})
    assert table.find("t:us", "second") is None
    assert table.find("u", "both") is None
    assert not DeclaredTable([("none", [tangram.Plugin().channel("t")])])


async def test_a_message_of_another_type_is_not_published() -> None:
    """Code without type checks gets an error, and so does a plugin that does not run."""

    class Position:
        __attrs_attrs__ = ()

    position = tangram.Plugin().channel("t:{place}").sends("position", Position)

    with pytest.raises(TypeError, match="expected Position for the event 'position', not 'x'"):
        await position.publish("x", place="eu")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected the parameters 'place'"):
        await position.publish(Position())
    with pytest.raises(PluginError, match="does not run"):
        await position.publish(Position(), place="eu")
