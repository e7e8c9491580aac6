"""Patches of plugins' extension modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tangram.compat.patches import patch_extensions


@pytest.fixture
def extension() -> Iterator[Any]:
    """Return a module whose ``init_tracing`` is a built-in function that raises this error."""
    module = ModuleType("mended_plugin._extension")
    generator = (None for _ in ())
    vars(module)["init_tracing"] = generator.throw
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def test_tracing_may_be_set_up_again(extension: Any) -> None:
    """A second set-up of tracing after a restart is no failure."""
    patch_extensions("mended_plugin")

    assert extension.init_tracing(OSError("a global default trace dispatcher has already been set")) is None


def test_another_failure_is_raised(extension: Any) -> None:
    """Any other exception of the function is raised."""
    patch_extensions("mended_plugin")

    with pytest.raises(OSError, match="disk"):
        extension.init_tracing(OSError("no space on the disk"))


def test_other_packages_are_left_alone(extension: Any) -> None:
    """Modules of other packages are not patched, even if their names begin alike."""
    before = extension.init_tracing
    patch_extensions("mended")

    assert extension.init_tracing is before
