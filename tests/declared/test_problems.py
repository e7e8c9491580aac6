"""Faults of declared channels that are found without a push."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tangram
from tangram.channels.policy import ConnectInfo
from tangram.declared.problems import declared_twice, signature_faults
from tangram.plugins.state import BackendState


def plugin_of(topic: str, *events: str) -> tangram.Plugin:
    plugin = tangram.Plugin()
    channel = plugin.channel(topic)
    for event in events:

        @channel.receives(event, dict)
        async def handle(message: dict[str, Any]) -> None: ...

    return plugin


def test_wrong_signatures_are_found_with_their_places() -> None:
    """Handlers without a message or with an unknown parameter, and an ``authorize`` with one."""
    plugin = plugin_of("good:{area}", "select")
    flights = plugin.channel("flights:{area}")

    @flights.authorize
    def may_join(who: str) -> str | None:
        return who

    @flights.receives("empty", dict)  # type: ignore[arg-type]
    async def empty() -> None: ...

    @flights.receives("unknown", dict)
    async def unknown(message: dict[str, Any], zone: str) -> None: ...

    found = list(signature_faults(plugin.channels, BackendState, ConnectInfo))

    assert [("empty" in fault, "zone" in fault, "who" in fault) for fault in found] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    for fault, function in zip(found, (empty, unknown, may_join), strict=True):
        assert f"{Path(__file__)}:{function.__code__.co_firstlineno}" in fault


def test_a_push_with_handlers_in_two_plugins_is_named() -> None:
    """The same form of topics, or one that includes another; other events and topics are not."""
    first = plugin_of("flights:{area}", "select", "note")
    same = plugin_of("flights:{zone}", "select")
    inner = plugin_of("flights:eu", "note", "other")
    apart = plugin_of("ships:{area}", "select")

    def found(*plugins: tangram.Plugin) -> list[str]:
        return list(declared_twice((f"p{at}", one.channels) for at, one in enumerate(plugins)))

    assert found(first, apart) == []
    (twice,) = found(first, same)
    assert all(word in twice for word in ("'p0'", "'p1'", "'select'", "'flights:{zone}'"))
    assert ["'note'" in one for one in found(first, inner)] == [True]
    assert ["'note'" in one for one in found(inner, first)] == [True]
