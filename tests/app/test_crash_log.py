"""One crash of a plugin is one readable log record."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import tangram
from tangram.testing import RunningTangram, open_tangram

LEVELS = {"warning", "error", "critical"}


def records(running: RunningTangram, *levels: str) -> list[dict[str, Any]]:
    return [dict(line) for line in running.logs if line["level"] in levels]


def calling_a_library(fail: trio.Event) -> tangram.Plugin:
    plugin = tangram.Plugin()

    @plugin.register_service()
    async def poll(state: tangram.BackendState) -> None:
        await fail.wait()
        read("{")

    return plugin


def read(text: str) -> None:
    json.loads(text)  # the line of the plugin; the exception comes from the library


async def crash_once(**supervisor: object) -> RunningTangram:
    fail = trio.Event()
    config = {"supervisor": {"backoff_initial": 0.0, **supervisor}}
    async with open_tangram([calling_a_library(fail)], config, fakes=True) as running:
        fail.set()
        await running.wait_event("crashed", "plugin:plugin")
        fail._flag = False  # the next incarnation waits
        await running.wait_event("started", "plugin:plugin", after=len(running.events) - 1)
    return running


async def test_a_crash_of_a_plugin_is_one_record_at_level_error() -> None:
    """It holds plugin, service, cause, the plugin's own line, and the restarts that are left."""
    running = await crash_once()
    (crash,) = records(running, "error", "critical")

    assert (crash["event"], crash["plugin"], crash["service"]) == ("child crashed", "plugin", "poll")
    assert "JSONDecodeError: Expecting property name" in crash["cause"]
    assert crash["where"].startswith(f"{Path(__file__)}:")
    assert crash["where"].endswith("in read")
    assert crash["restarts_left"] == 4


async def test_the_traceback_of_a_crash_is_logged_once_and_begins_in_the_plugin() -> None:
    """The frames of tangram that lead to the plugin are left out."""
    running = await crash_once()
    (traceback,) = [line["traceback"] for line in running.logs if "traceback" in line]

    assert traceback[0].endswith("in calling_a_library.<locals>.poll")
    assert traceback[1].endswith("in read")
    assert "/json/" in traceback[-1]


async def test_no_record_of_a_first_crash_talks_of_the_implementation() -> None:
    """The plugin's own supervisor, which allows no restart, is not mentioned."""
    running = await crash_once()

    assert not [line for line in records(running, "info", *LEVELS) if "gives up" in str(line)]
    assert "more than 0 restarts" not in str(running.logs)


async def test_a_quarantine_is_reported_after_the_crash() -> None:
    """The crash has no restart left, and one more record says that the plugin stays stopped."""
    fail = trio.Event()
    config = {"supervisor": {"plugin_restarts": 0}}
    async with open_tangram([calling_a_library(fail)], config, fakes=True) as running:
        fail.set()
        await running.wait_event("quarantined", "plugin:plugin")
        await running.wait_ready(2)

    crash, quarantine = records(running, "error", "critical")
    assert crash["restarts_left"] == 0
    assert quarantine["event"] == "child is left stopped: it crashed too often"
    assert quarantine["plugin"] == "plugin"


async def test_a_quarantine_after_a_failed_start_says_so(autojump_clock: object) -> None:
    """One failure of the first start is enough, and so is one of a restart that was asked for."""

    @asynccontextmanager
    async def lifespan(state: tangram.BackendState) -> AsyncIterator[None]:
        raise OSError("no table")
        yield

    async with open_tangram([tangram.Plugin(lifespan=lifespan)], fakes=True) as running:
        answer = await running.http.post("/-/plugins/plugin/restart", headers=running.operator)
        ready = (await running.http.get("/-/readyz")).json()

    quarantines = [line for line in running.logs if "left stopped" in line["event"]]
    assert [line["event"] for line in quarantines] == ["child is left stopped: it did not start"] * 2
    assert {line["plugin"] for line in quarantines} == {"plugin"}
    assert ready["reasons"] == ["plugin:plugin is quarantined"]
    assert answer.status_code == 503
    assert answer.json()["cause"].startswith(f"OSError: no table at {Path(__file__)}:")


@pytest.mark.parametrize("part", ["bus", "web"])
async def test_a_crash_of_the_server_itself_has_its_whole_traceback(part: str) -> None:
    """Without code of a plugin no frame is left out."""
    async with open_tangram([], {"supervisor": {"backoff_initial": 0.0}}, fakes=True) as running:
        running.crash(part)
        await running.wait_ready(2)

    (crash,) = records(running, "error", "critical")
    assert crash["child"] == part
    assert crash["restarts_left"] == 2
