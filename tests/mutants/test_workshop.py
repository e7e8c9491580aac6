"""The judge of mutants is no pushover: what looks red need not be caught."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest

from tests.mutants.workshop import Line, Mutant, Run, judge

MUTANT = Mutant("D0", "x", "nothing holds", "errors.py", "old", "new", ("tests/test_a.py::test_it",))
NODE = MUTANT.tests[0]


def verdict(lines: Sequence[Line], *, mutant: Mutant = MUTANT, in_time: bool = True) -> str:
    return "\n".join(judge(mutant, Run(lines, "", in_time))).strip()


@pytest.mark.parametrize(
    "error", ["AssertionError", "InvariantBroken", "StepFailed", "TooSlowError", "Failed"]
)
def test_a_test_that_says_what_is_wrong_has_caught_it(error: str) -> None:
    """One item of a test that fails by what it asserts is enough, whatever its other items do."""
    assert verdict([Line(f"{NODE}[a]", "call", ()), Line(f"{NODE}[b]", "call", (error,))]) == ""


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], "is gone; name the test"),
        ([Line("tests/test_a.py::test_it_too", "call", ("AssertionError",))], "is gone; name the test"),
        ([Line(NODE, "call", ())], "survives tests/test_a.py::test_it, although nothing holds"),
        ([Line(NODE, "call", ("NameError",))], "is red by NameError"),
        ([Line(NODE, "setup", ("AssertionError",))], r"is red by AssertionError (setup)"),
        (
            [Line("tests/test_a.py", "collect", ("CollectError",), "SyntaxError")],
            "cannot be read: SyntaxError",
        ),
    ],
)
def test_what_has_caught_nothing_is_told(lines: Sequence[Line], told: str) -> None:
    """A test that is gone, green, broken, or red for a reason of its own has caught nothing."""
    assert told in verdict(lines)


def test_a_time_limit_catches_nothing() -> None:
    """A run that had to be ended is not counted, though something in it was red."""
    assert "bound of its own" in verdict([Line(NODE, "call", ("AssertionError",))], in_time=False)


def test_all_tests_that_are_named_must_go_red() -> None:
    """One of two is not enough."""
    both = attrs.evolve(MUTANT, tests=(NODE, "tests/test_a.py::test_other"))
    lines = [Line(NODE, "call", ("AssertionError",)), Line("tests/test_a.py::test_other", "call", ())]

    assert "survives tests/test_a.py::test_other" in verdict(lines, mutant=both)


def test_an_invariant_is_asked_for_by_name() -> None:
    """Where the table names an invariant, another one does not do."""
    named = attrs.evolve(MUTANT, because="stops_in_reverse_order")
    lines = [Line(NODE, "call", ("InvariantBroken",), "starts_in_order: no")]

    assert "does not tell of 'stops_in_reverse_order'" in verdict(lines, mutant=named)


def test_the_old_text_must_stand_there_once(tmp_path: Path) -> None:
    """Gone, or there twice: told, with what is to be done."""
    file = tmp_path / "src" / "tangram" / "errors.py"
    file.parent.mkdir(parents=True)
    for text, told in [("none", "found it 0 times"), ("old old", "found it 2 times"), ("an old one", None)]:
        file.write_text(text)
        fault = MUTANT.fault(tmp_path)
        assert (fault is None) if told is None else (told in str(fault))
    MUTANT.apply(tmp_path)
    assert file.read_text() == "an new one"
    file.unlink()
    assert "there is no file" in str(MUTANT.fault(tmp_path))
