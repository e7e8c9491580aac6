"""Names in the configuration: compared without case and punctuation, guessed if misspelt."""

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["nearest", "normalise"]

_SEPARATORS: Final = re.compile(r"[-_.]+")


def normalise(name: str) -> str:
    """Return a name in lower case, with one underscore for each run of ``-``, ``_`` and ``.``.

    This is PEP 503's form with underscores: ``Tangram-Core.Plugins`` gives ``tangram_core_plugins``.
    """
    return _SEPARATORS.sub("_", name.strip().casefold()).strip()


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to a misspelt one, or None."""
    from difflib import get_close_matches

    by_form = {normalise(candidate): candidate for candidate in known}
    found = get_close_matches(normalise(name), by_form, n=1, cutoff=0.6)
    return by_form[found[0]] if found else None
