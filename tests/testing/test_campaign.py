"""Campaigns: seeded, under a virtual clock with fakes; the report and the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tangram.supervision import Child
from tangram.testing import FAULTS, Chaos, open_tangram
from tangram.testing.campaign import Campaign, own_tables, run_campaign
from tangram.testing.report import render_html
from tangram.testing.simulation import play, script_of, simulate
from tests.app.helpers import Journal, make_plugin


async def test_a_campaign_strikes_everything_and_all_invariants_hold(autojump_clock: MockClock) -> None:
    """Every fault that can strike does, and nothing breaks; the report tells it in plain values."""
    faults = sorted(name for name, one in FAULTS.items() if one.on in {"anything", "sockets"})
    campaign = await run_campaign([make_plugin(Journal())], seed=3, duration=6.0, faults=faults, fakes=True)

    told = json.loads(json.dumps(campaign.to_dict()))
    assert campaign.broken == []
    assert len({struck.name for struck in campaign.struck}) > 8
    assert told["passed"] is True
    assert told["messages"] > 20
    assert told["connections"]["refused"] == 0


def test_the_report_is_one_file_with_a_lane_for_each_child() -> None:
    """The page needs nothing else, names what broke, and quotes nothing as markup."""
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


def test_a_campaign_touches_nothing_that_is_not_its_own() -> None:
    """Ports, state, plugins' list and another's Redis are taken out of the configuration; the rest stays."""
    tables = {
        "core": {"redis_url": "redis://prod", "plugins": ["x"], "log_level": "INFO"},
        "server": {"port": 2346, "state_dir": "/var/lib/x", "max_headers": 50},
    }

    own = own_tables(tables)

    assert own["core"] == {"log_level": "INFO"}
    assert own["server"] == {"max_headers": 50}


@pytest.mark.slow
def test_the_command_writes_its_report_and_ends_with_0(tmp_path: Path) -> None:
    """``python -m tangram chaos`` starts the configured server, strikes, reports, and exits 0."""
    config = tmp_path / "tangram.toml"
    config.write_text('[core]\nplugins = ["tangram_example_publish"]\n')
    command = [sys.executable, "-m", "tangram", "chaos", "--config", str(config), "--duration", "2"]
    command += ["--faults", "broker_kill,crash_plugin,crash_web", "--report", str(tmp_path / "told")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "told.json").read_text())["passed"] is True
    assert "<svg" in (tmp_path / "told.html").read_text()


@pytest.mark.slow
def test_serve_does_not_load_the_kit() -> None:
    """The command line serves without importing anything of the testing kit."""
    code = (
        "import sys, tangram.cli.main, tangram.cli.serving; print([m for m in sys.modules if 'testing' in m])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "tangram.testing" not in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_the_simulation_holds_from_each_seed(seed: int) -> None:
    """A script of faults drawn from a seed breaks no invariant."""
    simulate(seed, plugins=[make_plugin(Journal())])


def test_a_seed_plays_the_same_script_again() -> None:
    """A script depends on its seed alone."""
    assert script_of(5) == script_of(5)
    assert len({script_of(seed) for seed in range(20)}) > 15


@pytest.mark.slow
@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 3), st.sampled_from(["crash_bus", "crash_plugin", "broker_kill", "planned_restart"])
        ),
        max_size=4,
    )
)
def test_any_script_holds(script: list[tuple[float, str]]) -> None:
    """Whatever strikes when, invariants hold; a failing script is shrunk."""
    play(tuple(script), plugins=[make_plugin(Journal())])


async def test_a_web_that_comes_up_too_early_is_caught(autojump_clock: MockClock) -> None:
    """A planted fault, a child that tells its start before it is there, is caught by wait_steady's caller."""

    def wrap(child: Child) -> Child:
        async def early(*, task_status: object) -> None:
            raise ValueError("never comes up")

        return attrs.evolve(child, run=early) if child.name == "plugin:probe" else child

    async with open_tangram([make_plugin(Journal())], fakes=True, wrap=wrap) as running:
        assert await running.wait_steady() == "quarantined"
        with pytest.raises(LookupError, match="no plugin runs"):
            await Chaos(running).strike("crash_plugin")
