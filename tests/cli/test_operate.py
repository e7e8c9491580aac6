"""Commands against a running server: tables, JSON lines, and exit statuses for scripts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import pytest
import trio
from click.testing import CliRunner, Result

import tangram
from tangram.cli import operate, output, top
from tangram.cli.main import cli
from tangram.client import fetch_token, open_socket
from tangram.errors import OperatorError
from tangram.testing import RunningTangram, open_tangram

pytestmark = pytest.mark.slow

Run = Callable[..., Any]


def listening() -> tangram.Plugin:
    plugin = tangram.Plugin()

    @plugin.register_service()
    async def listen(state: tangram.BackendState) -> None:
        async with state.subscribe("from:demo:*") as messages:
            async for message in messages:
                await state.publish("to:demo:echo", message.text)

    return plugin


@asynccontextmanager
async def open_commands(
    tmp_path: Path, plugins: Sequence[tangram.Plugin] = ()
) -> AsyncIterator[tuple[RunningTangram, Run]]:
    """A server, and a function that runs a command against it in a thread."""
    config = tmp_path / "tangram.toml"
    config.touch()
    async with open_tangram(list(plugins)) as running:
        environ = {
            "TANGRAM_CONFIG": str(config),
            "TANGRAM_URL": running.url,
            "TANGRAM_OPERATOR_TOKEN": running.operator["authorization"].removeprefix("Bearer "),
        }

        async def run(*words: str, status: int = 0, **more: str) -> Any:
            def invoke() -> Result:
                return CliRunner(env={**environ, **more}).invoke(cli, words)

            result = await trio.to_thread.run_sync(invoke)
            found = (
                result.exception.exit_status
                if isinstance(result.exception, OperatorError)
                else result.exit_code
            )
            assert found == status, (result.output, result.exception)
            return str(result.exception) if isinstance(result.exception, OperatorError) else result.stdout

        yield running, run


async def wait_until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - a client in a thread changes it
            await trio.sleep(0.01)


def lines(text: str) -> list[dict[str, Any]]:
    # The log of the server, which runs in this process, may stand between them.
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


async def test_status_lists_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets a JSON object for the server and for each part; a terminal gets a table."""
    async with open_commands(tmp_path, [listening()]) as (running, run):
        server, *parts = lines(await run("status"))
        monkeypatch.setattr(operate, "is_terminal", lambda **_: True)
        shown = await run("status")

    assert (server["status"], server["redis"], server["url"]) == ("ready", True, running.url)
    assert [
        (part["name"], part["depth"]) for part in parts if part["name"] in {"broker", "bus", "listen"}
    ] == [
        ("broker", 0),
        ("bus", 1),
        ("listen", 2),
    ]
    assert [part["path"] for part in parts if part["name"] == "listen"] == [
        "incarnation > plugin:plugin > listen"
    ]
    assert {part["state"] for part in parts} == {"running"}
    assert "ready, up" in shown.splitlines()[0]
    assert any(line.split() == ["plugin:plugin", "running"] for line in shown.splitlines())


async def test_status_names_the_command_for_a_plugin_in_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal the table is followed by it."""

    @asynccontextmanager
    async def lifespan(state: tangram.BackendState) -> AsyncIterator[None]:
        raise OSError("no table")
        yield

    async with open_commands(tmp_path, [tangram.Plugin(lifespan=lifespan)]) as (_, run):
        monkeypatch.setattr(operate, "is_terminal", lambda **_: True)
        shown = await run("status")

    assert "OSError: no table" in shown
    assert shown.splitlines()[-1] == "once plugin is mended: tangram restart plugin --reload"


async def test_a_topic_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``tail`` shows the messages that members would receive, and only those of its topic and event."""
    async with open_commands(tmp_path, [listening()]) as (running, run):

        async def send() -> None:
            tree = running.server.tree
            assert tree is not None
            await wait_until(lambda: bool(tree.incarnation.tails))
            for path, event in (("publish", "move"), ("push", "command"), ("publish", "move")):
                content = {"topic": "demo", "event": event, "payload": {"n": 1}}
                await running.http.post(f"/-/{path}", json=content, headers=running.operator)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            followed = lines(await run("tail", "demo", "--count", "3"))
        monkeypatch.setattr(operate, "is_terminal", lambda **_: True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            shown = await run("tail", "demo", "echo", "--count", "1")

    assert sorted(line["event"] for line in followed) == ["echo", "move", "move"]
    assert [line["payload"] for line in followed] == [{"n": 1}] * 3
    assert shown.split(maxsplit=1)[1].split() == ["echo", '{"n":1}']


async def test_messages_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``push`` says how many plugins listen, ``publish`` how many nodes deliver."""
    async with open_commands(tmp_path, [listening()]) as (_, run):
        (pushed,) = lines(await run("push", "demo", "command", '{"n": 1}'))
        (published,) = lines(await run("publish", "demo", "move", "[1, 2]"))
        monkeypatch.setattr(operate, "is_terminal", lambda **_: True)
        heard = await run("push", "demo", "command")
        unheard = await run("push", "other", "command")

    assert (pushed["receivers"], published["receivers"]) == (1, 1)
    assert heard == "pushed: 1 subscription of plugins received it\n"
    assert unheard == "pushed, but no plugin listens to 'command' of 'other'\n"


async def test_topics_and_top_show_the_traffic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The topic with the most traffic comes first, with its members and bytes."""
    async with open_commands(tmp_path) as (running, run):
        async with running.open_socket() as socket:
            for topic in ("quiet", "busy"):
                token = await fetch_token(running.url, topic)
                await socket.join(topic, token=token.token)
            await run("publish", "busy", "move", json.dumps("x" * 1000))
            listed = lines(await run("topics"))
            (sample,) = lines(await run("top", "--count", "1", "--interval", "0.1"))
            for module in (operate, top):
                monkeypatch.setattr(module, "is_terminal", lambda **_: True)
            table = await run("topics")
            live = await run("top", "--count", "1", "--interval", "0.1")

    assert [one["topic"] for one in listed][:1] == ["busy"]
    assert (listed[0]["members"], listed[0]["messages"] >= 1) == (1, True)
    assert listed[0]["sent_bytes"] > 1000
    assert (sample["ready"], sample["connections"], sample["memberships"]) == (True, 1, 2)
    assert table.splitlines()[1].split()[:2] == ["busy", "1"]
    assert "1 connections, 2 memberships" in live


async def test_a_plugin_is_restarted(tmp_path: Path) -> None:
    """It has another incarnation afterwards; an unknown name is status 1."""
    async with open_commands(tmp_path, [listening()]) as (running, run):
        running.planned = True
        (answer,) = lines(await run("restart", "plugin"))
        parts = {one.get("name"): one for one in lines(await run("status"))}
        missing = await run("restart", "ghost", status=1)

    assert answer["status"] == "restarted"
    assert parts["plugin:plugin"]["incarnation"] == 2
    assert "no plugin is called 'ghost'" in missing


async def test_a_token_opens_a_topic(tmp_path: Path) -> None:
    """The token is printed alone, so that a script can use it as it is."""
    async with open_commands(tmp_path) as (running, run):
        token = (await run("token", "demo")).strip()
        (answer,) = lines(await run("token", "demo", "--id", "ann", "--json"))
        async with open_socket(running.url) as socket:
            channel = await socket.join("demo", token=token)
            await channel.leave()

    assert (answer["channel"], answer["id"]) == ("demo", "ann")


async def test_exit_statuses_tell_causes_apart(tmp_path: Path) -> None:
    """1 for a refusal, 2 for a wrong command, 69 without a server, 77 without the token."""
    async with open_commands(tmp_path) as (_, run):
        refused = await run("publish", "demo", "a:b", status=1)
        wrong = await run("push", "demo", "x", "{a", status=2)
        url = await run("status", "--url", "ftp:x", status=2)
        away = await run("topics", status=69, TANGRAM_URL="http://127.0.0.1:1")
        denied = await run("topics", status=77, TANGRAM_OPERATOR_TOKEN="guessed")
        unread = await run("topics", status=77, TANGRAM_OPERATOR_TOKEN="", XDG_STATE_HOME=str(tmp_path))

    assert "@ body.event" in refused
    assert "expected JSON" in wrong
    assert "expected a URL" in url
    assert "no server answers at http://127.0.0.1:1" in away
    assert "refuses the operator's token" in denied
    assert "none was found" in unread


def test_a_counter_that_began_anew_counts_from_zero() -> None:
    """After a restart of the channels rates are not negative."""

    def look(now: float, messages: int, sent: int) -> dict[str, Any]:
        hub = {"messages": messages, "deliveries": 0, "members": 1}
        topic = {"topic": "t", "members": 1, "messages": messages, "sent_bytes": sent, "backlog": 0}
        channels = {"hub": hub, "connections": 1, "pending": 0, "furthest_behind": 0}
        return {
            "now": now,
            "uptime": now,
            "ready": True,
            "channels": channels,
            "tree": {"children": [{"name": "a", "restarts": 2}]},
            "topics": [topic],
        }

    rising = top.sample_rates(look(0, 10, 100), look(2, 30, 300))
    anew = top.sample_rates(look(0, 10, 100), look(2, 4, 40))

    assert (rising["messages_per_second"], rising["topics"][0]["bytes_per_second"]) == (10, 100)
    assert (anew["messages_per_second"], anew["topics"][0]["bytes_per_second"]) == (0, 20)
    assert rising["restarts"] == 2


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (61, "1 min 1 s"), (90061, "1 d 1 h"), (3600, "1 h")]
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    """People read the two largest units."""
    assert output.duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (3 << 40, "3072.0 GiB")])
def test_bytes_have_a_unit(count: float, text: str) -> None:
    """Sizes are in powers of 1024."""
    assert output.bytes_text(count) == text


def test_every_command_has_one_line_of_help() -> None:
    """``tangram --help`` describes each command, and each option of a command has a text."""
    bare = [
        f"{name} {parameter.name}"
        for name, command in cli.commands.items()
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]

    added = ("check", "status", "top", "topics", "tail", "push", "publish", "restart", "token")
    assert all(command.help for command in cli.commands.values())
    assert [name for name in added if cli.commands[name].get_short_help_str(60).endswith("...")] == []
    assert bare == []
