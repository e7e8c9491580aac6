"""``top``: the rates of a running server, again and again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tangram.cli.operate import walk
from tangram.cli.output import bytes_text, duration, is_terminal, make_table, print_json
from tangram.cli.remote import ServerAddress, Unreachable

__all__ = ["run_top", "sample_rates"]

SHOWN_TOPICS: Final = 10
"""The topics with the most traffic are shown, so that the table fits a terminal."""


def run_top(server: ServerAddress, *, interval: float, count: int | None, as_json: bool) -> int:
    """Print rates every ``interval`` seconds: a live table, or a JSON object a line.

    Args:
        server: the server.
        interval: seconds between two samples.
        count: samples after which to end; None for no end.
        as_json: print JSON on a terminal, too.
    """
    before = _look(server)  # a server that cannot be reached at first is an error
    if is_terminal(as_json=as_json):
        _show_live(server, before, interval, count)
        return 0
    shown = 0
    while count is None or shown < count:
        time.sleep(interval)
        now = _look(server)
        print_json([sample_rates(before, now)])
        before = now
        shown += 1
    return 0


def _look(server: ServerAddress) -> dict[str, Any]:
    seen = server.get("/-/supervision")
    return {**seen, "topics": server.get("/-/topics") if seen["channels"] else []}


def sample_rates(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of now and the rates since the last look.

    A counter that began anew counts from 0.
    """
    seconds = max(now["now"] - before["now"], 1e-3)

    def rate(*path: str) -> float:
        return _rounded(max(0.0, _value(now, path) - _value(before, path)) / seconds)

    earlier = {one["topic"]: one for one in before["topics"]}
    channels = now["channels"] or {}
    restarts = sum(child["restarts"] for _, child in walk(now["tree"]))
    return {
        "time": now["now"],
        "uptime": round(now["uptime"], 1),
        "ready": now["ready"],
        "connections": channels.get("connections", 0),
        "memberships": _value(now, ("channels", "hub", "members")),
        "messages_per_second": rate("channels", "hub", "messages"),
        "deliveries_per_second": rate("channels", "hub", "deliveries"),
        "published_per_second": rate("bus", "published"),
        "backlog": channels.get("pending", 0),
        "largest_backlog": channels.get("furthest_behind", 0),
        "restarts": restarts,
        "stalls": _value(now, ("watchdog", "stalls")),
        "topics": sorted(
            (_topic(one, earlier.get(one["topic"]), seconds) for one in now["topics"]),
            key=lambda one: (-one["bytes_per_second"], one["topic"]),
        ),
    }


def _rounded(rate: float) -> float:
    return round(rate, 1)


def _value(seen: Mapping[str, Any], path: Sequence[str]) -> Any:
    found: Any = seen
    for key in path:
        found = (found or {}).get(key)
    return found or 0


def _topic(one: Mapping[str, Any], earlier: Mapping[str, Any] | None, seconds: float) -> dict[str, Any]:
    def rate(key: str) -> float:
        base = earlier[key] if earlier is not None and earlier[key] <= one[key] else 0
        return _rounded((one[key] - base) / seconds)

    return {
        "topic": one["topic"],
        "members": one["members"],
        "messages_per_second": rate("messages"),
        "bytes_per_second": rate("sent_bytes"),
        "backlog": one["backlog"],
    }


def _show_live(server: ServerAddress, before: Mapping[str, Any], interval: float, count: int | None) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    shown = 0
    with Live(Text("sampling ..."), console=console, auto_refresh=False) as live:
        while count is None or shown < count:
            time.sleep(interval)
            try:
                now = _look(server)
            except Unreachable as error:
                live.update(Text(f"{error}", style="red"), refresh=True)
                continue
            live.update(_picture(server, sample_rates(before, now), now), refresh=True)
            before = now
            shown += 1


def _picture(server: ServerAddress, rates: Mapping[str, Any], now: Mapping[str, Any]) -> Any:
    from rich.console import Group
    from rich.text import Text

    ready = "ready" if rates["ready"] else "not ready"
    backlog = f"backlog {bytes_text(rates['backlog'])}, the largest {bytes_text(rates['largest_backlog'])}"
    delivered = f"{rates['messages_per_second']}/s messages, {rates['deliveries_per_second']}/s deliveries"
    lines = [
        f"{server.unix or server.url}  {ready}, up {duration(rates['uptime'])}",
        f"{rates['connections']} connections, {rates['memberships']} memberships, {backlog}",
        f"{delivered}, {rates['published_per_second']}/s published, {rates['restarts']} restarts",
        "",
    ]
    parts = make_table(
        {"part": "left", "state": "left", "restarts": "right"},
        (
            ["  " * depth + one["name"], one["state"], one["restarts"] or None]
            for depth, one in walk(now["tree"])
        ),
    )
    columns = {"topic": "left"} | dict.fromkeys(("members", "messages/s", "sent/s", "backlog"), "right")
    topics = make_table(
        columns,
        (
            [
                one["topic"],
                one["members"],
                one["messages_per_second"],
                bytes_text(one["bytes_per_second"]),
                bytes_text(one["backlog"]),
            ]
            for one in rates["topics"][:SHOWN_TOPICS]
        ),
    )
    return Group(Text("\n".join(lines)), parts, Text(""), topics)
