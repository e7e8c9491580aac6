"""What is measured of the tests themselves: seconds of each part, and how often they are red by chance."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import flaky
from tests.conftest import seconds_by_part, told


def test_seconds_are_summed_by_folder() -> None:
    """Folders below one belong to it, files beside them are a part of their own; the slowest comes first."""
    took = seconds_by_part(
        [
            ("tests/bus/test_bus.py::test_a", 1.0),
            ("tests/bus/deep/test_bus.py::test_b[x/y]", 2.0),
            ("tests/test_door.py::test_c", 0.5),
            ("tests/web/test_site.py::TestIt::test_d", 4.0),
        ]
    )

    assert [line.split() for line in told(took)] == [
        ["4.0", "s", "tests/web"],
        ["3.0", "s", "tests/bus"],
        ["0.5", "s", "tests"],
        ["7.5", "s", "all"],
    ]


@pytest.mark.slow
def test_a_run_is_counted_and_a_red_one_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each red test is named with how often it was, what the run said is kept, and the status is 1; the slow
    ones run with everything alone.
    """
    file = tmp_path / "test_some.py"
    file.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): raise ValueError('by chance')\n"
        "@pytest.mark.slow\ndef test_slow(): raise ValueError\n"
    )
    keep = tmp_path / "kept"
    status = flaky.main(["--fast", "2", "--all", "1", "--stress", "--keep", str(keep), str(file)])
    said = capsys.readouterr().out
    good = flaky.main(["--fast", "1", "--all", "0", "--keep", str(keep), f"{file}::test_good"])

    assert status == 1
    assert "not slow: 2 of 2, 2 red" in said
    assert "   3 times red" in said
    assert said.count("test_some.py::test_slow") == 1
    assert len(list(keep.iterdir())) == 3
    assert any("by chance" in kept.read_text() for kept in keep.iterdir())
    assert good == 0


def test_a_run_that_breaks_off_is_red() -> None:
    """A run that names no test, for it was killed or could not collect, is not taken for a good one."""
    assert flaky.red_in(0, "FAILED tests/x.py::test_a") == []
    assert flaky.red_in(-9, "") == ["the run itself (status -9)"]
    assert flaky.red_in(1, "FAILED a::b - x\nERROR c::d\nFAILED a::b") == ["a::b", "c::d"]
