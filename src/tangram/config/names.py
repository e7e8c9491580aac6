"""Names as people write them: compared without case and punctuation, and guessed when misspelt."""

import re
from collections.abc import Iterable

__all__ = ["nearest", "normalise"]

_SEPARATORS = re.compile(r"[-_.]+")


def normalise(name: str) -> str:
    """PEP 503's comparison form with underscores: ``Tangram-Core.Plugins`` is ``tangram_core_plugins``."""
    return _SEPARATORS.sub("_", name.strip().casefold()).strip()


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant, or None where none is alike."""
    from difflib import get_close_matches

    by_form = {normalise(candidate): candidate for candidate in known}
    found = get_close_matches(normalise(name), by_form, n=1, cutoff=0.6)
    return by_form[found[0]] if found else None
