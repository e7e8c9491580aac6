"""Moved names of the kit: old ones still work and warn, or name the new place."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import tangram.testing
from tangram.testing.faults.proxy import open_proxy


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("tangram.testing.faults", "NothingToStrike"),
        ("tangram.testing.reached", "SUPERVISION"),
        ("tangram.testing.proxy", "open_proxy"),
    ],
)
def test_an_old_name_works_and_warns(module: str, name: str) -> None:
    """The old place gives the public object, and the warning names the new place."""
    with pytest.warns(DeprecationWarning, match=rf"{module}\.{name} has moved, use tangram\.testing\."):
        old = getattr(import_module(module), name)

    assert old is getattr(tangram.testing, name)


def test_the_warning_names_the_line_of_the_caller() -> None:
    """It is shown for the author's own file, where Python shows it by default."""
    with pytest.warns(DeprecationWarning, match="has moved") as caught:
        from tangram.testing.proxy import open_proxy as old

    assert old is open_proxy
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("module", "name", "place"),
    [
        ("tangram.testing.simulation", "simulate", "tangram.chaos.simulation"),
        ("tangram.testing.conformance", "check_broker", "tangram.chaos.conformance"),
        ("tangram.testing.conformance", "check_transport", "tangram.chaos.conformance"),
    ],
)
def test_a_name_that_is_in_chaos_now_says_so(module: str, name: str, place: str) -> None:
    """The error of the import names the new module, which has the name."""
    with pytest.raises(ImportError, match=rf"import '{name}' from {place}"):
        exec(f"from {module} import {name}", {})

    assert hasattr(import_module(place), name)


@pytest.mark.parametrize("module", ["faults", "reached", "proxy", "conformance"])
def test_an_unknown_name_is_an_attribute_error(module: str) -> None:
    """As in every module."""
    found = import_module(f"tangram.testing.{module}")

    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = found.no_such_name


@pytest.mark.slow
def test_the_old_command_of_the_simulation_runs() -> None:
    """``python -m tangram.testing.simulation`` plays a seed and says where the command is now."""
    ended = subprocess.run(
        [sys.executable, "-m", "tangram.testing.simulation", "--script", "0.1 crash_web"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    assert "use python -m tangram.chaos.simulation" in ended.stderr
