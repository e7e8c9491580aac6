"""The declarations of the commands that talk to a running server, and of ``check``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tangram.errors import ConfigError, Fault, OperatorError

__all__ = ["add_operator_commands"]

F = TypeVar("F", bound=Callable[..., Any])


def _server_options(command: F) -> F:
    """Add the options by which a command finds its server, and ``--json``."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="JSON lines on a terminal, too."),
        click.option(
            "--config", "config_file", type=click.Path(path_type=Path), help="As for serve; names the server."
        ),
        click.option("--url", help="The server. Default: $TANGRAM_URL, else that of the configuration."),
    ):
        command = option(command)
    return command


def _find(url: str | None, config_file: Path | None) -> Any:
    from tangram.cli.remote import find_server

    return find_server(url, config_file)


def _complete(path: str, key: str) -> Callable[..., list[str]]:
    """Return a completion by the names that the running server lists."""

    def complete(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
        try:
            listed = _find(None, None).get(path)
        except OperatorError:
            return []
        return [one[key] for one in listed if one[key].startswith(incomplete)]

    return complete


_complete_plugin = _complete("/-/plugins", "name")
_complete_topic = _complete("/-/topics", "topic")


def _json_of(text: str) -> Any:
    """Decode the argument JSON; ``-`` is standard input."""
    try:
        return json.loads(sys.stdin.read() if text == "-" else text)
    except ValueError as error:
        what = f"expected JSON, got {text!r}: {error}; in a shell, put it between single quotes"
        raise ConfigError([Fault(what, "JSON", "json_invalid")], about="command line") from None


@click.command()
@click.option("--node", metavar="ID", help="Another node of the cluster, or all.")
@_server_options
def status(*, url: str | None, config_file: Path | None, as_json: bool, node: str | None) -> None:
    """Show readiness and the supervision tree.

    The exit status is 0 if the server is ready, and 1 if it is not.
    """
    from tangram.cli.operate import show_status

    sys.exit(show_status(_find(url, config_file), as_json=as_json, node=node))


@click.command()
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, help="Seconds.")
@click.option("--count", type=click.IntRange(1), help="End after so many samples.")
@_server_options
def top(
    *, url: str | None, config_file: Path | None, as_json: bool, interval: float, count: int | None
) -> None:
    """Show rates and states, again and again.

    The ten topics with the most traffic are shown, too.
    """
    from tangram.cli.top import run_top

    sys.exit(run_top(_find(url, config_file), interval=interval, count=count, as_json=as_json))


@click.command()
@_server_options
def topics(*, url: str | None, config_file: Path | None, as_json: bool) -> None:
    """List the topics, the busiest first."""
    from tangram.cli.operate import show_topics

    sys.exit(show_topics(_find(url, config_file), as_json=as_json))


@click.command()
@click.argument("topic", shell_complete=_complete_topic)
@click.argument("event", required=False)
@click.option("--count", type=click.IntRange(1), help="End after so many messages.")
@_server_options
def tail(
    *,
    url: str | None,
    config_file: Path | None,
    as_json: bool,
    topic: str,
    event: str | None,
    count: int | None,
) -> None:
    """Follow the messages of TOPIC.

    They are those that its members receive; with EVENT only those with that event.
    """
    from tangram.cli.operate import tail as follow

    sys.exit(follow(_find(url, config_file), topic, event, count=count, as_json=as_json))


@click.command()
@click.argument("topic", shell_complete=_complete_topic)
@click.argument("event")
@click.argument("payload", metavar="JSON", default="{}")
@_server_options
def publish(
    *, url: str | None, config_file: Path | None, as_json: bool, topic: str, event: str, payload: str
) -> None:
    """Send a message to the members of TOPIC.

    JSON may be - for standard input.
    """
    from tangram.cli.operate import publish as send

    content = _json_of(payload)
    sys.exit(send(_find(url, config_file), "/-/publish", topic, event, content, as_json=as_json))


@click.command()
@click.argument("topic", shell_complete=_complete_topic)
@click.argument("event")
@click.argument("payload", metavar="JSON", default="{}")
@_server_options
def push(
    *, url: str | None, config_file: Path | None, as_json: bool, topic: str, event: str, payload: str
) -> None:
    """Push a message to plugins, as a browser.

    JSON may be - for standard input.
    """
    from tangram.cli.operate import publish as send

    content = _json_of(payload)
    sys.exit(send(_find(url, config_file), "/-/push", topic, event, content, as_json=as_json))


@click.command()
@click.argument("plugin", shell_complete=_complete_plugin)
@click.option("--reload", is_flag=True, help="Import the plugin's code again first.")
@click.option("--node", metavar="ID", help="On another node of the cluster, or on all.")
@_server_options
def restart(
    *,
    url: str | None,
    config_file: Path | None,
    as_json: bool,
    plugin: str,
    reload: bool,
    node: str | None,
) -> None:
    """Restart PLUGIN, and wait until it runs.

    Without --node a plugin that runs on one node at a time is restarted there, another one on the node that
    answers.

    A plugin in quarantine is restarted, too. The exit status is 1 if it does not start.
    """
    from tangram.cli.operate import restart as restart_plugin

    sys.exit(restart_plugin(_find(url, config_file), plugin, reload=reload, as_json=as_json, node=node))


@click.command()
@_server_options
def nodes(*, url: str | None, config_file: Path | None, as_json: bool) -> None:
    """Print the nodes with the plugins that each of them holds."""
    from tangram.cli.operate import show_nodes

    sys.exit(show_nodes(_find(url, config_file), as_json=as_json))


@click.command()
@click.argument("plugin", shell_complete=_complete_plugin)
@click.option("--to", help="The node. Default: any other that waits for the plugin.")
@_server_options
def move(*, url: str | None, config_file: Path | None, as_json: bool, plugin: str, to: str | None) -> None:
    """Move PLUGIN to another node, and wait until it is there.

    It must be one that runs on one node at a time.
    """
    from tangram.cli.operate import move as move_plugin

    sys.exit(move_plugin(_find(url, config_file), plugin, to, as_json=as_json))


@click.command()
@click.argument("topic", shell_complete=_complete_topic)
@click.option("--id", "external_id", help="The id for presence. Default: a new one.")
@_server_options
def token(
    *, url: str | None, config_file: Path | None, as_json: bool, topic: str, external_id: str | None
) -> None:
    """Print a token for TOPIC.

    A client joins the topic with it. With --json the whole answer is printed.
    """
    from tangram.cli.operate import token as print_token

    sys.exit(print_token(_find(url, config_file), topic, external_id, as_json=as_json))


@click.command()
@click.option("--no-browser", is_flag=True, help="Print the URL only; a pipe gets it without a browser, too.")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="As for serve; names the server."
)
@click.option("--url", help="The server. Default: $TANGRAM_URL, else that of the configuration.")
def console(*, no_browser: bool, url: str | None, config_file: Path | None) -> None:
    """Open the console in a browser, logged in.

    The printed URL logs in once, within a minute. It needs no typing of the operator's token, which is read
    from the state folder.
    """
    from tangram.cli.console import open_console

    sys.exit(open_console(_find(url, config_file), browse=not no_browser))


@click.command()
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="As for serve.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on a terminal, too.")
def check(*, config_file: Path | None, as_json: bool) -> None:
    """Check configuration and plugins.

    The plugins are loaded, and nothing is served.

    The exit status is 2 if the configuration has faults, and 1 if a plugin cannot be loaded.
    """
    from tangram.cli.check import run_check

    sys.exit(run_check(config_file, as_json=as_json))


def add_operator_commands(group: click.Group) -> None:
    """Add the commands of this module to the command line."""
    for command in (check, status, top, topics, tail, push, publish, restart, nodes, move, token, console):
        group.add_command(command)
