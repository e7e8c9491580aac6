from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tangram.client import fetch_token
from tangram.compat.plugin import Plugin
from tangram.testing import RunningTangram, open_tangram
from tests.compat.guide import EXAMPLES, FOLDER, source_of

GUIDE = Path(__file__).parents[3] / "shared" / "spec" / "backend-guide.txt"

pytestmark = pytest.mark.slow


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


async def restart_plugin(tangram: RunningTangram) -> None:
    answer = await tangram.http.post("/-/plugins/plugin/restart", headers=tangram.operator)
    assert answer.status_code < 300, answer.text


@pytest.mark.skipif(
    not GUIDE.is_file(), reason="the guide's text lies beside the repository, where it is at hand"
)
@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.txt")))
def test_the_examples_occur_in_the_guide(name: str) -> None:
    """Each example occurs in the guide word for word."""
    guide, example = lines_of(GUIDE.read_text()), lines_of((FOLDER / f"{name}.txt").read_text())

    assert any(guide[at : at + len(example)] == example for at in range(len(guide)))


@pytest.mark.parametrize("example", EXAMPLES)
async def test_each_example_runs(example: str, module: Callable[..., Any]) -> None:
    """Every example of the guide is a plugin that starts, runs and stops."""
    plugin = module("my_plugin", source_of(example)).plugin
    async with open_tangram([plugin]) as tangram:
        logged = (await tangram.http.get("/-/plugins", headers=tangram.operator)).json()

        assert isinstance(plugin, Plugin)
        assert [(one["name"], one["state"]) for one in logged] == [("plugin", "running")]
        assert (await tangram.http.get("/-/readyz")).status_code == 200


async def test_the_endpoint_answers(module: Callable[..., Any]) -> None:
    """The guide's route answers as documented, and is part of the OpenAPI document."""
    async with open_tangram([module("my_plugin", source_of("endpoint")).plugin]) as tangram:
        answer = await tangram.http.get("/my-plugin/")
        document = (await tangram.http.get("/openapi.json")).json()

        assert answer.json() == {"message": "Hello from my custom plugin!"}
        assert "/my-plugin/" in document["paths"]
        assert (await tangram.http.post("/my-plugin/")).status_code == 405
        assert (await tangram.http.get("/docs")).status_code == 200


async def test_the_service_publishes(module: Callable[..., Any]) -> None:
    """The periodic service's message arrives at once after each restart."""
    async with open_tangram([module("my_plugin", source_of("service")).plugin]) as tangram:
        tree = tangram.server.tree
        assert tree is not None
        assert tree.incarnation.bus is not None
        async with tree.incarnation.bus.subscribe("my-plugin:status") as messages:
            for _ in range(3):
                with trio.fail_after(30):
                    # The first message of all may have been published before the subscription.
                    await restart_plugin(tangram)
                    message = await anext(messages)

                assert (message.channel, message.payload) == ("my-plugin:status", b"alive")


async def test_the_publish_reaches_a_browser(module: Callable[..., Any]) -> None:
    """The guide's message on ``to:system:update`` reaches a member of the topic ``system``."""
    async with open_tangram([module("my_plugin", source_of("publish")).plugin]) as tangram:
        async with tangram.open_socket() as socket:
            token = await fetch_token(tangram.url, "system")
            channel = await socket.join("system", token=token.token)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(restart_plugin, tangram)
                with trio.fail_after(30):
                    async for event in channel:
                        if event.name == "update":
                            break

        assert bytes(event.payload) == b"Hello from plugin"


async def test_the_subscriber_receives(
    module: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The guide's subscriber counts and prints the messages for it."""
    async with open_tangram([module("my_plugin", source_of("subscriber")).plugin]) as tangram:
        tree = tangram.server.tree
        assert tree is not None
        with trio.fail_after(30):
            # subscribe() has returned when the service is up; the message is handled before the stop is.
            while await tree.incarnation.publish("from:system:my-plugin-command", "first") < 1:
                pass
        printed = ""
        with trio.move_on_after(60):
            while "received" not in printed:
                await tangram.http.get("/-/readyz")
                printed += capsys.readouterr().out

    assert re.search(r"Command #1 received on `from:system:my-plugin-command`: first", printed)
