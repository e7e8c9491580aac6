"""The commands that talk to a running server; ``operator_commands`` declares them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote, urlencode

from tangram.cli.output import bytes_text, duration, is_terminal, print_json, print_table, write
from tangram.cli.remote import RESTART_TIMEOUT, RequestFailed, ServerAddress, TokenRefused, Unreachable
from tangram.cli.streams import write_line

__all__ = ["move", "publish", "restart", "show_nodes", "show_status", "show_topics", "tail", "token", "walk"]

RECONNECT_SECONDS: Final = 1.0
"""Seconds between two attempts of ``tail`` to reach a server that restarts."""


def show_status(server: ServerAddress, *, as_json: bool, node: str | None = None) -> int:
    """Print readiness and the supervision tree; return 0 if the server is ready, else 1.

    Args:
        server: the server that is asked.
        as_json: print JSON on a terminal, too.
        node: another node, or ``all``; 1 is returned if one of them is not ready.
    """
    query = "" if node is None else f"?node={quote(node, safe='')}"
    _, health = server.request("GET", f"/-/readyz{query}")
    seen = server.get(f"/-/supervision{query}")
    urls = None if node is None else _urls_of_nodes(server)
    if node is None or urls is None:
        return _show(server.unix or server.url, health, seen, as_json=as_json)
    if node != "all":
        return _show(urls.get(node, ""), health, seen, as_json=as_json)
    return max(
        _show_node(urls.get(one, ""), one, health[one], seen.get(one), as_json=as_json) for one in health
    )


def _urls_of_nodes(server: ServerAddress) -> Mapping[str, str] | None:
    """Return the URLs of the nodes, or None for a server that is alone.

    Without the operator's token none is known.
    """
    try:
        listed = server.get("/-/nodes")
    except TokenRefused:
        return {}
    return {one["id"]: one.get("url") or "" for one in listed} or None


def _show_node(url: str, node: str, health: Any, seen: Any, *, as_json: bool) -> int:
    """Print the status of one of several nodes."""
    for answer in (health, seen or {"error": "it has left"}):
        if "error" in answer:
            if is_terminal(as_json=as_json):
                write(f"{node}  {answer['error']}\n\n")
            else:
                print_json([{"kind": "node", "node": node, "error": answer["error"]}])
            return 1
    if is_terminal(as_json=as_json):
        write(f"{node}\n")
    else:
        print_json([{"kind": "node", "node": node}])
    return _show(url, health, seen, as_json=as_json)


def _show(url: str, health: Any, seen: Any, *, as_json: bool) -> int:
    ready = health["status"] == "ready"
    rows = list(walk(seen["tree"]))
    if not is_terminal(as_json=as_json):
        print_json([{"kind": "server", **_summary(url, health, seen)}, *_children(rows)])
        return 0 if ready else 1
    summary = _summary(url, health, seen)
    redis = "up" if summary["redis"] else "away"
    about = f"up {duration(summary['uptime'])}, {summary['connections']} connections, redis {redis}"
    lines = [
        f"{summary['url']}  {summary['status']}, {about}".lstrip(),
        *(f"  {reason}" for reason in summary["reasons"]),
    ]
    write("\n".join(lines) + "\n\n")
    columns = {"part": "left", "state": "left", "restarts": "right", "last crash": "left"}
    print_table(columns, (_row(depth, child, seen["now"]) for depth, child in rows))
    for _, child in rows:
        kind, _, name = child["name"].partition(":")
        if kind == "plugin" and child["state"] == "quarantined":
            write(f"\nonce {name} is mended: tangram restart {name} --reload\n")
    return 0 if ready else 1


def _summary(url: str, health: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, Any]:
    channels, bus = seen["channels"], seen["bus"]
    return {
        "url": url,
        "status": health["status"],
        "reasons": health["reasons"],
        "uptime": round(seen["uptime"], 1),
        "connections": channels["connections"] if channels else 0,
        "topics": channels["hub"]["topics"] if channels else 0,
        "redis": bool(bus and bus["up"]),
    }


def walk(supervisor: Mapping[str, Any] | None, depth: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield each child below a supervisor with its depth."""
    for child in (supervisor or {}).get("children", ()):
        yield depth, child
        for nested in child.get("nested") or ():
            yield from walk(nested, depth + 1)


def _crash_text(crash: Mapping[str, Any]) -> str:
    cause = f"{crash['exception']}: {crash['message']}" if crash.get("message") else crash["exception"]
    return f"{cause} at {crash['where']}" if crash.get("where") else cause


def _children(rows: Sequence[tuple[int, Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Yield each part with its path: two plugins may have services of one name."""
    path: list[str] = []
    for depth, child in rows:
        path[depth:] = [child["name"]]
        yield _child(depth, path, child)


def _child(depth: int, path: Sequence[str], child: Mapping[str, Any]) -> dict[str, Any]:
    crash = child.get("last_crash")
    return {
        "kind": "child",
        "name": child["name"],
        "path": " > ".join(path),
        "depth": depth,
        "state": child["state"],
        "incarnation": child["incarnation"],
        "restarts": child["restarts"],
        "last_crash": None if crash is None else _crash_text(crash),
        "crashed_at": None if crash is None else crash.get("when"),
    }


def _row(depth: int, child: Mapping[str, Any], now: float) -> Sequence[object]:
    crash = child.get("last_crash")
    told = None
    if crash is not None:
        ago = f"{duration(now - crash['when'])} ago: " if crash.get("when") else ""
        told = f"{ago}{_crash_text(crash)}"
    return ["  " * depth + child["name"], child["state"], child["restarts"] or None, told]


def show_topics(server: ServerAddress, *, as_json: bool) -> int:
    """Print the topics that have members, those with the most traffic first."""
    topics = sorted(server.get("/-/topics"), key=lambda one: (-one["sent_bytes"], one["topic"]))
    if not is_terminal(as_json=as_json):
        print_json(topics)
        return 0
    if not topics:
        write("no topic has members\n")
        return 0
    columns = {"topic": "left"} | dict.fromkeys(
        ("members", "messages", "deliveries", "sent", "backlog"), "right"
    )
    print_table(
        columns,
        (
            [
                one["topic"],
                one["members"],
                one["messages"],
                one["deliveries"],
                bytes_text(one["sent_bytes"]),
                bytes_text(one["backlog"]),
            ]
            for one in topics
        ),
    )
    return 0


def tail(server: ServerAddress, topic: str, event: str | None, *, count: int | None, as_json: bool) -> int:
    """Print the messages of a topic as they pass, over restarts of the server."""
    path = "/-/tail?" + urlencode({"topic": topic} | ({} if event is None else {"event": event}))
    shown = 0
    attached = False
    while True:
        try:
            for line in server.lines(path):
                attached = True
                _print_line(line, as_json=as_json)
                shown += "dropped" not in line
                if count is not None and shown >= count:
                    return 0
            attached = True
        except Unreachable:
            if not attached:
                raise
        except RequestFailed:
            # The channels of a server that restarts answer 503 for a moment.
            if not attached:
                raise
        write_line("tangram: the server has ended the stream; connecting again")
        time.sleep(RECONNECT_SECONDS)


def _print_line(line: Mapping[str, Any], *, as_json: bool) -> None:
    if not is_terminal(as_json=as_json):
        print_json([line])
        return
    at = datetime.fromtimestamp(line["time"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
    if "dropped" in line:
        write(f"{at}  ({line['dropped']} messages left out)\n")
    else:
        write(f"{at}  {line['event']}  ")
        print_json([line["payload"]])


def publish(
    server: ServerAddress, path: str, topic: str, event: str, payload: object, *, as_json: bool
) -> int:
    """Publish to members (``/-/publish``) or push to plugins (``/-/push``)."""
    answer = server.post(path, {"topic": topic, "event": event, "payload": payload})
    if not is_terminal(as_json=as_json):
        print_json([answer])
        return 0
    count = answer["receivers"]
    if path == "/-/publish":
        told = f"published: {_counted(count, 'node')} of tangram received it for the members of {topic!r}"
    elif count:
        told = f"pushed: {_counted(count, 'subscription')} of plugins received it"
    else:
        told = f"pushed, but no plugin listens to {event!r} of {topic!r}"
    write(f"{told}\n")
    return 0


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def restart(
    server: ServerAddress, plugin: str, *, reload: bool, as_json: bool, node: str | None = None
) -> int:
    """Restart one plugin, also one in quarantine, and wait until it runs.

    Args:
        server: the server that is asked.
        plugin: the name of the plugin.
        reload: import its code again first.
        as_json: print JSON on a terminal, too.
        node: another node, or ``all``; 1 is returned if it does not run again on one of them.
    """
    wanted = {**({"reload": "true"} if reload else {}), **({} if node is None else {"node": node})}
    query = f"?{urlencode(wanted)}" if wanted else ""
    answer = server.post(f"/-/plugins/{quote(plugin, safe='')}/restart{query}", timeout=RESTART_TIMEOUT)
    if node != "all" or "status" in answer:  # a server that is alone answers for itself
        answers = [answer]
    else:
        answers = [{"node": one, **told} for one, told in answer.items()]
    if not is_terminal(as_json=as_json):
        print_json(answers)
    else:
        for told in answers:
            write(_restarted(plugin, told))
    return 0 if all(told.get("status") == "restarted" for told in answers) else 1


def _restarted(plugin: str, told: Any) -> str:
    where = f"{told['node']}  " if "node" in told else ""
    if told.get("status") == "restarted":
        return f"{where}{plugin} runs again\n"
    causes = (str(told[key]) for key in ("detail", "error", "cause") if key in told)
    return f"{where}{': '.join(causes)}\n"


def show_nodes(server: ServerAddress, *, as_json: bool) -> int:
    """Print the nodes of the cluster with the plugins that each holds."""
    nodes = server.get("/-/nodes")
    if not is_terminal(as_json=as_json):
        print_json(nodes)
        return 0
    if not nodes:
        write("the server is alone: core.redis_url is not set\n")
        return 0
    columns = {
        "node": "left",
        "url": "left",
        "up": "right",
        "version": "left",
        "members": "right",
        "plugins": "left",
    }
    now = time.time()
    print_table(
        columns,
        (
            [
                f"{one['id']} *" if one["me"] else one["id"],
                one.get("url"),
                duration(max(0.0, now - one["started"])),
                one["version"],
                one["members"],
                ", ".join(one["plugins"]),
            ]
            for one in nodes
        ),
    )
    for one in nodes:
        if one.get("differs"):
            write(f"{one['id']} differs from the node that answers: {'; '.join(one['differs'])}\n")
    return 0


def move(server: ServerAddress, plugin: str, to: str | None, *, as_json: bool) -> int:
    """Move a plugin to another node, and wait until it is there."""
    query = "" if to is None else "?" + urlencode({"to": to})
    answer = server.post(f"/-/plugins/{quote(plugin, safe='')}/move{query}", timeout=RESTART_TIMEOUT)
    if is_terminal(as_json=as_json):
        write(f"{answer['plugin']} has moved from {answer['from'] or 'no node'} to {answer['to']}\n")
    else:
        print_json([answer])
    return 0


def token(server: ServerAddress, topic: str, external_id: str | None, *, as_json: bool) -> int:
    """Print a token for a topic: the token alone, or the whole answer as JSON."""
    content = {"channel": topic} | ({} if external_id is None else {"id": external_id})
    answer = server.post("/token", content)
    if as_json:
        print_json([answer])
    else:
        write(f"{answer['token']}\n")
    return 0
