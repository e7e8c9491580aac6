"""What is put right in plugins before they run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tangram.compat.patches import mend_extensions


@pytest.fixture
def extension() -> Iterator[Any]:
    """A module whose ``init_tracing`` is a built-in function that raises what it is given."""
    module = ModuleType("mended_plugin._extension")
    generator = (None for _ in ())
    vars(module)["init_tracing"] = generator.throw
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def test_tracing_may_be_set_up_again(extension: Any) -> None:
    """That tracing is set up already is no failure of the service that asks for it after a restart."""
    mend_extensions("mended_plugin")

    assert extension.init_tracing(OSError("a global default trace dispatcher has already been set")) is None


def test_another_failure_is_a_failure(extension: Any) -> None:
    """Whatever else the function raises is raised."""
    mend_extensions("mended_plugin")

    with pytest.raises(OSError, match="disk"):
        extension.init_tracing(OSError("no space on the disk"))


def test_other_packages_are_left_alone(extension: Any) -> None:
    """Only the plugin's own modules are touched, and not those whose names begin alike."""
    before = extension.init_tracing
    mend_extensions("mended")

    assert extension.init_tracing is before
