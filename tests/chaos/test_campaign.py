"""Campaigns under a virtual clock with fakes, their report, and the command."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

import attrs
import psutil
import pytest
import trio
from trio.testing import MockClock

from tangram import BackendState, History, Plugin, client
from tangram.chaos import observers
from tangram.chaos.campaign import UNLIMITED, Campaign, own_config, run_campaign
from tangram.chaos.observers import Observations, open_observers
from tangram.chaos.report import render_html
from tangram.config import load_config, load_tables
from tangram.errors import PluginError, Refused
from tangram.http.listeners import HeldSocket
from tangram.supervision import Child
from tangram.testing import FAULTS, Chaos, open_tangram
from tangram.testing.faults.catalogue import InjectableFault
from tangram.testing.injection.child_faults import StruckAlready
from tangram.testing.run.process import Home
from tests.app.helpers import Journal, make_plugin

WITH_HISTORY: dict[str, Any] = {"channel": {"history": [{"topics": "flights:*"}]}}


@pytest.mark.slow
async def test_a_campaign_strikes_everything_and_all_invariants_hold(autojump_clock: MockClock) -> None:
    """Every fault with a target strikes, nothing breaks, and the report has plain values."""
    faults = sorted(name for name, one in FAULTS.items() if one.on in {"anything", "sockets"})
    campaign = await run_campaign(
        [make_plugin(Journal())], WITH_HISTORY, seed=3, duration=6.0, faults=faults, fakes=True
    )

    told = json.loads(json.dumps(campaign.to_dict()))
    assert campaign.broken == []
    assert len({struck.name for struck in campaign.struck}) > 8
    assert told["passed"] is True
    assert told["messages"] > 20
    assert told["connections"]["refused"] == 0


def test_the_report_is_one_file_with_a_lane_for_each_child() -> None:
    """The page needs no other file, names broken invariants, and escapes markup."""
    told = Campaign(7).to_dict() | {
        "passed": False,
        "seconds": 2.0,
        "faults": [{"name": "<b>", "at": 1.0, "healed": 0.1, "outcome": "up"}],
        "events": [
            {"at": 0.1, "kind": "started", "child": "web", "path": ["incarnation", "web"], "incarnation": 1},
            {"at": 1.0, "kind": "crashed", "child": "web", "path": ["incarnation", "web"], "incarnation": 1},
        ],
    }
    told["invariants"]["no_connection_refused"] = ["2 connections were refused"]
    page = render_html(told)

    assert "2 connections were refused" in page
    assert "<b>" not in page
    assert len(re.findall("<rect", page)) == 1
    assert not re.findall(r"(src|href)=", page)


def test_a_campaign_touches_nothing_that_is_not_its_own(tmp_path: Path) -> None:
    """Addresses, state, TLS and an external Redis are taken out of the configuration."""
    (tmp_path / "page").mkdir()
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).touch()
    (tmp_path / "tangram.toml").write_text("""
[core]
redis_url = "redis://prod"
plugins = ["x"]
log_level = "DEBUG"
[server]
host = "0.0.0.0"
port = 80
state_dir = "/var/lib/x"
frontend = "page"
max_headers = 50
tls_cert = "cert.pem"
tls_key = "key.pem"
[channel]
host = "0.0.0.0"
port = 81
public_url = "https://maps.example.org"
max_joins = 7
[broker]
port = 6380
stop_timeout = 3.0
[plugins.x]
since = 2026-01-01
""")
    loaded = load_config(tmp_path / "tangram.toml", {})

    own = own_config(loaded, tmp_path / "own").config

    assert own.core == attrs.evolve(loaded.config.core, redis_url=None)
    assert (own.server.host, own.server.port) == ("127.0.0.1", 0)
    assert own.server.state_dir == tmp_path / "own" / "state"
    assert (own.server.tls_cert, own.server.tls_key, own.server.engine) == (None, None, "hypercorn")
    assert (own.server.frontend, own.server.max_headers) == (str(tmp_path / "page"), 50)
    assert (own.channel.host, own.channel.port, own.channel.public_url) == (None, None, None)
    assert own.channel.max_joins == 7
    assert (own.broker.port, own.broker.stop_timeout) == (0, 3.0)
    assert own.plugins == {"x": {"since": date(2026, 1, 1)}}


@pytest.mark.parametrize(
    ("limits", "own"),
    [({}, (0.05, 0.1)), ({"backoff_initial": 0.5}, (0.1, 0.1)), ({"backoff_max": 0.06}, (0.05, 0.06))],
)
def test_a_campaign_has_short_back_offs(limits: dict[str, float], own: tuple[float, float]) -> None:
    """They are no longer than configured, and the first no longer than the longest."""
    found = own_config(load_tables({"supervisor": limits}), Path()).config.supervisor

    assert (found.backoff_initial, found.backoff_max) == own
    assert found.plugin_restarts == found.root_restarts == UNLIMITED


@pytest.mark.parametrize(
    ("plugin", "tables", "kept"),
    [
        (Plugin(), {}, 0),
        (Plugin(), WITH_HISTORY, 2),
        (Plugin(history={"flights:*": History()}), {}, 2),
    ],
)
async def test_clients_recover_where_a_topic_has_a_history(
    autojump_clock: MockClock, plugin: Plugin, tables: dict[str, Any], kept: int
) -> None:
    """A campaign turns on no history that the configured server does not have."""
    campaign = await run_campaign([plugin], tables, duration=1.0, faults=["crash_web"], fakes=True)

    assert campaign.broken == []
    assert len(campaign.seen.kept) == kept
    assert all(log.messages for log in campaign.seen.kept.values())
    assert campaign.to_dict()["recoveries"] == sum(log.recovered for log in campaign.seen.kept.values())


@pytest.mark.slow
def test_the_command_writes_its_report_and_ends_with_0(tmp_path: Path) -> None:
    """``python -m tangram chaos`` starts the configured server, injects faults and reports."""
    config = tmp_path / "tangram.toml"
    config.write_text(
        '[core]\nplugins = ["tangram_example_publish"]\n[[channel.history]]\ntopics = "clock"\n'
    )
    command = [sys.executable, "-m", "tangram", "chaos", "--config", str(config), "--duration", "2"]
    command += ["--faults", "broker_kill,crash_plugin,crash_web", "--report", str(tmp_path / "told")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)

    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "told.json").read_text())["passed"] is True
    assert "<svg" in (tmp_path / "told.html").read_text()


def chaos(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder with a configuration of one plugin."""
    (folder / "tangram.toml").write_text('[core]\nplugins = ["tangram_example_publish"]\n')
    command = [sys.executable, "-m", "tangram", "chaos", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--faults", "broker_kil"], "no fault 'broker_kil'; did you mean 'broker_kill'?"),
        (["--only", "nobody"], "no plugin 'nobody' runs; expected one of tangram_example_publish"),
        (["--only", "tangram_example_publish", "--faults", "broker_kill"], "none of broker_kill strikes a"),
    ],
)
def test_a_mistake_is_an_error_with_status_2(tmp_path: Path, arguments: list[str], told: str) -> None:
    """An unknown fault or plugin is named with the known ones, and nothing runs."""
    ended = chaos(tmp_path, *arguments)

    assert ended.returncode == 2
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.slow
def test_a_campaign_without_a_target_ends_with_1(tmp_path: Path) -> None:
    """Each skipped fault is printed with its reason, and the result is no success."""
    ended = chaos(tmp_path, "--faults", "never_ready", "--duration", "1")

    assert ended.returncode == 1
    assert "left out: never_ready: it would take" in ended.stderr
    assert "nothing could be struck" in ended.stdout


def serves_below(pid: int) -> bool:
    """Return whether a server runs in a process below that one."""
    with suppress(psutil.Error):  # one that ends while it is looked at
        return any("serve" in one.cmdline() for one in psutil.Process(pid).children())
    return False


@pytest.mark.slow
async def test_an_interrupted_campaign_ends_in_order_with_its_report(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a fault heals it, checks, writes the report, and ends with 130."""
    (tmp_path / "tangram.toml").write_text('[core]\nplugins = ["tangram_example_publish"]\n')
    command = [sys.executable, "-m", "tangram", "chaos", "--faults", "ignore_cancel"]
    process = await trio.lowlevel.open_process(command, cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with trio.fail_after(60):  # the fault has begun when it has a server of its own
        while not serves_below(process.pid):  # noqa: ASYNC110 - seen from outside alone
            await trio.sleep(0.05)
    process.send_signal(signal.SIGINT)
    with trio.fail_after(60):
        said = b"".join([bytes(data) async for data in process.stdout])
        status = await process.wait()
    told = json.loads((tmp_path / "tangram-chaos.json").read_text())

    assert status == 130, said
    assert b"held (interrupted)" in said
    assert told["interrupted"] is True
    assert told["events"][-1]["kind"] == "stopped"


TAKES_ITS_TIME = """
import trio
import tangram

plugin = tangram.Plugin()

@plugin.register_service(stop_timeout=50)
async def serve(state):
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 40):
            await trio.sleep_forever()
"""


@pytest.mark.slow
async def test_a_second_interrupt_ends_the_command_at_once(tmp_path: Path) -> None:
    """It does not wait for the server's stop: no report, no traceback, status 130."""
    home = Home(tmp_path / "home")
    home.install("takes_its_time", TAKES_ITS_TIME)
    home.configure(["takes_its_time"], extra="[supervisor]\nshutdown_timeout = 60.0\n")
    command = home.command("chaos", "--config", str(home.config), "--faults", "broker_stop")
    process = await trio.lowlevel.open_process(
        command, cwd=tmp_path, env=home.environ, stderr=subprocess.PIPE
    )
    said = bytearray()
    stderr = process.stderr
    assert stderr is not None

    async def told(what: bytes) -> None:
        while what not in said:
            said.extend(await stderr.receive_some())

    with trio.fail_after(90):
        await told(b"up after")
        process.send_signal(signal.SIGINT)
        await told(b"interrupt again to end at once")
        process.send_signal(signal.SIGINT)
        async for data in stderr:
            said += data
        status = await process.wait()

    assert status == 130
    assert said.splitlines()[-1] == b"interrupted: ended at once, without a report"
    assert b"Traceback" not in said
    assert not await trio.Path(tmp_path, "tangram-chaos.json").exists()


async def test_a_fault_that_breaks_is_in_the_report(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is among the faults as broken, and the campaign goes on."""

    async def unkept(_chaos: Chaos) -> None:
        raise AssertionError("a message was lost")

    monkeypatch.setitem(FAULTS, "unkept", InjectableFault("unkept", unkept, None, ""))
    campaign = await run_campaign(duration=2.0, faults=["unkept", "crash_web"], fakes=True)
    told = campaign.to_dict()

    assert {(one["name"], one["outcome"]) for one in told["faults"]} == {
        ("unkept", "broken"),
        ("crash_web", "up"),
    }
    assert told["invariants"]["ends_as_promised"][0] == "unkept: a message was lost"


@pytest.mark.slow
def test_serve_does_not_load_the_kit() -> None:
    """``tangram serve`` imports nothing of the testing kit."""
    code = (
        "import sys, tangram.cli.main, tangram.cli.serving; print([m for m in sys.modules if 'testing' in m])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "tangram.testing" not in ended.stdout


async def test_a_web_that_comes_up_too_early_is_caught(autojump_clock: MockClock) -> None:
    """A planted child that starts too early is found after `wait_steady`."""

    def wrap(child: Child) -> Child:
        async def early(*, task_status: object) -> None:
            raise ValueError("never comes up")

        return attrs.evolve(child, run=early) if child.name == "plugin:probe" else child

    async with open_tangram([make_plugin(Journal())], fakes=True, wrap=wrap) as running:
        assert await running.wait_steady() == "quarantined"
        with pytest.raises(LookupError, match="no plugin is running"):
            await Chaos(running).strike("crash_plugin")


async def no_token(*_args: object, **_more: object) -> NoReturn:
    """Refuse every token, in place of ``fetch_token``."""
    await trio.lowlevel.checkpoint()
    raise Refused("nobody gets one")


async def test_a_campaign_without_any_message_has_not_passed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The observers get no token: everything is up, but serves no client."""
    monkeypatch.setattr(client, "fetch_token", no_token)
    monkeypatch.setattr(observers, "HEARD_SECONDS", 3.0)
    campaign = await run_campaign(duration=0.5, faults=["crash_web"], fakes=True)

    assert {one.invariant for one in campaign.broken} == {"comes_to_rest"}
    assert "gets no message any more" in campaign.broken[0].message
    assert campaign.to_dict()["passed"] is False


async def test_a_campaign_without_a_target_has_not_passed(autojump_clock: MockClock) -> None:
    """Invariants that hold without a fault prove nothing."""
    campaign = await run_campaign(duration=1.0, faults=["crash_plugin"], fakes=True)

    assert campaign.skipped == {"crash_plugin": "no plugin is running that could be struck"}
    assert campaign.to_dict()["passed"] is False


async def test_a_fault_without_a_turn_is_reported(autojump_clock: MockClock) -> None:
    """An operator would otherwise take its absence for a success."""
    campaign = await run_campaign(duration=0.01, faults=["crash_web", "crash_bus"], fakes=True)

    struck = {one.name for one in campaign.struck}
    assert len(struck) == 1
    assert campaign.skipped == dict.fromkeys(
        {"crash_web", "crash_bus"} - struck, "the campaign was over before its turn"
    )


@pytest.mark.slow
async def test_a_fault_that_came_too_early_has_another_turn(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target that is being stopped for a long time is struck in the next round."""
    there = trio.current_time() + 12.0

    async def early(_chaos: Chaos) -> None:
        if trio.current_time() < there:
            raise StruckAlready("it is being stopped")

    monkeypatch.setitem(FAULTS, "early", InjectableFault("early", early, None, ""))
    campaign = await run_campaign(duration=20.0, faults=["early"], fakes=True)

    assert campaign.skipped == {}
    assert {one.name for one in campaign.struck} == {"early"}


@pytest.mark.slow
async def test_a_fault_that_always_came_too_early_is_reported(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is reported, and not only the end of the campaign."""

    async def early(_chaos: Chaos) -> None:
        raise StruckAlready("it is being stopped")

    monkeypatch.setitem(FAULTS, "early", InjectableFault("early", early, None, ""))
    campaign = await run_campaign(duration=8.0, faults=["early", "crash_web"], fakes=True)

    assert campaign.skipped == {"early": "it is being stopped"}


@pytest.mark.slow
async def test_a_connection_that_is_never_made_counts_as_refused(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's queue is full, so that the client waits for ever."""
    async with open_tangram(fakes=True) as running:
        with ExitStack() as stack, monkeypatch.context() as patched:
            full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            for _ in range(4):  # fill the queue of the kernel
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(full.getsockname())
            patched.setattr(running.server, "held", [HeldSocket(full, *full.getsockname())])
            seen = Observations()
            async with open_observers(running, seen):
                await trio.sleep(20.0)

        assert seen.refused > 0


async def test_a_campaign_of_a_plugin_that_does_not_start_is_an_error(autojump_clock: MockClock) -> None:
    """A server runs without it, and a campaign of that server would prove nothing."""
    plugin = Plugin()

    @plugin.register_service()
    async def never(state: BackendState, *, task_status: trio.TaskStatus[None]) -> None:
        raise OSError("the device is not there")

    with pytest.raises(PluginError, match=r"plugin 'plugin' does not start: .*the device is not there"):
        await run_campaign([plugin], duration=1.0, fakes=True)


async def test_an_interrupted_fault_is_reported_as_interrupted(autojump_clock: MockClock) -> None:
    """It stands in the report beside its crashes."""

    async def soon() -> None:
        await trio.sleep(0.5)

    campaign = await run_campaign(duration=5.0, faults=["broker_stop"], fakes=True, until=soon)

    assert [one.outcome for one in campaign.struck] == ["interrupted"]
    assert campaign.interrupted


async def test_a_fault_that_is_named_twice_is_one(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it has no target the campaign ends, and does not draw it for ever."""
    drawn, sample = [], random.Random.sample

    def count(rng: random.Random, names: list[str], size: int) -> list[str]:
        drawn.append(names)
        assert len(drawn) < 9, "it draws again and again"
        return sample(rng, names, size)

    monkeypatch.setattr(random.Random, "sample", count)
    campaign = await run_campaign(duration=1.0, faults=["crash_plugin", "crash_plugin"], fakes=True)

    assert campaign.skipped == {"crash_plugin": "no plugin is running that could be struck"}
    assert drawn == [["crash_plugin"]]


async def test_a_campaign_that_strikes_once_ends_early(autojump_clock: MockClock) -> None:
    """With ``once`` it ends when each fault has struck or cannot strike."""
    faults = ["crash_plugin", "crash_web", "crash_bus"]
    campaign = await run_campaign((), WITH_HISTORY, duration=300.0, faults=faults, once=True, fakes=True)

    assert sorted(one.name for one in campaign.struck) == ["crash_bus", "crash_web"]
    assert set(campaign.skipped) == {"crash_plugin"}
    assert campaign.ended - campaign.began < 60


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["redis_narrow", "redis_latency", "redis_sliced"])
async def test_messages_in_a_slow_network_are_not_counted_as_lost(
    autojump_clock: MockClock, fault: str
) -> None:
    """Messages in transit at the end of a fault are waited for, beside a campaign's load."""
    campaign = await run_campaign([], WITH_HISTORY, seed=1, duration=3.0, faults=[fault], fakes=True)

    assert campaign.broken == []
    assert campaign.struck
