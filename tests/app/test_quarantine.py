"""A plugin in quarantine stays there in every new incarnation, until its cause is mended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

import tangram
from tangram.testing import RunningTangram, open_tangram
from tests.app.helpers import Journal, make_plugin


class Broken(tangram.Plugin):
    """A plugin that cannot start until it is mended, and counts its starts."""

    def __init__(self) -> None:
        super().__init__(lifespan=self._start)
        self.name = "broken"
        self.tried = 0
        self.mended = False

    @asynccontextmanager
    async def _start(self, state: tangram.BackendState) -> AsyncIterator[None]:
        self.tried += 1
        if not self.mended:
            raise OSError("the device is gone")
        yield


async def break_broker(running: RunningTangram) -> None:
    count = running.server.ready_count
    running.crash("broker")
    await running.wait_ready(count + 1)


async def plugin_in(running: RunningTangram, name: str) -> dict[str, object]:
    listed = (await running.http.get("/-/plugins", headers=running.operator)).json()
    (found,) = [one for one in listed if one["name"] == name]
    return dict(found)


async def test_a_failed_request_leaves_the_quarantine_as_it_was(autojump_clock: MockClock) -> None:
    """A plugin whose requested start fails is not started by the next incarnation."""
    plugin = Broken()
    async with open_tangram([plugin, make_plugin(Journal())], fakes=True) as running:
        running.planned = True
        answer = await running.http.post("/-/plugins/broken/restart", headers=running.operator)
        tried = plugin.tried
        await break_broker(running)

        assert answer.status_code == 503
        assert plugin.tried == tried == 2
        assert (await plugin_in(running, "broken"))["state"] == "quarantined"

        plugin.mended = True
        again = await running.http.post("/-/plugins/broken/restart", headers=running.operator)
        await break_broker(running)
        assert again.status_code == 200
        assert (await plugin_in(running, "broken"))["state"] == "running"


async def test_a_new_incarnation_keeps_the_crash_of_the_quarantine(autojump_clock: MockClock) -> None:
    """The next incarnation shows the crash of before, and does not count it again."""
    async with open_tangram([Broken(), make_plugin(Journal())], fakes=True) as running:
        before = await plugin_in(running, "broken")
        mark = len(running.events)
        await trio.sleep(1.0)
        await break_broker(running)

        again = [event.kind for event in running.events[mark:] if event.child == "plugin:broken"]
        after = await plugin_in(running, "broken")
        assert again == []
        assert after["state"] == before["state"] == "quarantined"
        assert "the device is gone" in str(after["last_crash"])
        assert after["last_crash"]["at"] == before["last_crash"]["at"]  # type: ignore[index]
        assert (await running.http.get("/-/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("requires", "status"), [((), 200), (("other",), 200), (("broken",), 503), (("all",), 503)]
)
async def test_a_quarantined_plugin_is_a_reason(
    autojump_clock: MockClock, requires: tuple[str, ...], status: int
) -> None:
    """``/-/readyz`` names a quarantined plugin; ``ready_requires`` decides about the status."""
    config = {"server": {"ready_requires": requires}}
    async with open_tangram([Broken()], config=config, fakes=True) as running:
        with trio.fail_after(60):
            while (await plugin_in(running, "broken"))["state"] != "quarantined":  # noqa: ASYNC110 - polled as by operators
                await trio.sleep(0.5)
        ready = await running.http.get("/-/readyz")

    assert ready.status_code == status
    assert ready.json()["reasons"] == ["plugin:broken is quarantined"]
