"""Names in the configuration."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.config.names import nearest, normalise


@pytest.mark.parametrize("name", ["my-plugin", "My_Plugin", "my.plugin", "MY--plugin", " my-_.plugin "])
def test_spellings_of_one_name_are_equal(name: str) -> None:
    """Case, hyphens, underscores and dots make no difference."""
    assert normalise(name) == "my_plugin"


@given(st.text())
def test_normalising_twice_changes_nothing(name: str) -> None:
    """A normalised name is its own normal form."""
    assert normalise(normalise(name)) == normalise(name)


def test_a_misspelt_name_finds_the_nearest() -> None:
    """It is returned in its own spelling; an unrelated name finds none."""
    known = ["Tangram-Weather", "tangram_system"]

    assert nearest("tangram_wether", known) == "Tangram-Weather"
    assert nearest("TANGRAM.SYSTEM", known) == "tangram_system"
    assert nearest("zzz", known) is None
    assert nearest("x", []) is None
