"""The judge of mutants: a red test need not have caught the mutant."""

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
def test_a_failed_assertion_has_caught_the_mutant(error: str) -> None:
    """One item of a test that fails by an assertion is enough; the other items may pass."""
    assert verdict([Line(f"{NODE}[a]", "call", ()), Line(f"{NODE}[b]", "call", (error,))]) == ""


@pytest.mark.parametrize(
    ("lines", "complaint"),
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
def test_a_run_that_has_caught_nothing_is_reported(lines: Sequence[Line], complaint: str) -> None:
    """A missing, green, broken or otherwise failing test has caught nothing."""
    assert complaint in verdict(lines)


def test_a_time_limit_catches_nothing() -> None:
    """A run that the time limit ended does not count, although a test was red."""
    assert "bound of its own" in verdict([Line(NODE, "call", ("AssertionError",))], in_time=False)


def test_all_tests_that_are_named_must_go_red() -> None:
    """Each named test must go red; one of two is not enough."""
    both = attrs.evolve(MUTANT, tests=(NODE, "tests/test_a.py::test_other"))
    lines = [Line(NODE, "call", ("AssertionError",)), Line("tests/test_a.py::test_other", "call", ())]

    assert "survives tests/test_a.py::test_other" in verdict(lines, mutant=both)


def test_an_invariant_is_required_by_name() -> None:
    """If the table names an invariant, another one does not count."""
    named = attrs.evolve(MUTANT, because="stops_in_reverse_order")
    lines = [Line(NODE, "call", ("InvariantBroken",), "starts_in_order: no")]

    assert "does not mention 'stops_in_reverse_order'" in verdict(lines, mutant=named)


def test_the_old_text_must_stand_there_once(tmp_path: Path) -> None:
    """Old text that is missing or stands there twice is reported with the remedy."""
    file = tmp_path / "src" / "tangram" / "errors.py"
    file.parent.mkdir(parents=True)
    for text, complaint in [
        ("none", "found it 0 times"),
        ("old old", "found it 2 times"),
        ("an old one", None),
    ]:
        file.write_text(text)
        fault = MUTANT.fault(tmp_path)
        assert (fault is None) if complaint is None else (complaint in str(fault))
    MUTANT.apply(tmp_path)
    assert file.read_text() == "an new one"
    file.unlink()
    assert "there is no file" in str(MUTANT.fault(tmp_path))
