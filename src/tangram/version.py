"""The version of this package, for modules that must not import ``tangram`` itself."""

from typing import Final

__all__ = ["VERSION"]

VERSION: Final = "0.2.0"
"""The same as in ``pyproject.toml``; a test compares them."""
