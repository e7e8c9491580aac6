"""Deprecated: the simulation is ``tangram.chaos.simulation`` now.

``python -m tangram.testing.simulation`` still runs it. To import it from here is an error that names the new
place: the kit does not import ``tangram.chaos``, which is built on the kit.
"""

import os
import sys
from typing import Final

_NEW: Final = "tangram.chaos.simulation"


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(f"{__name__}.{name} has moved, import {name!r} from {_NEW}")


if __name__ == "__main__":
    sys.stderr.write(f"python -m tangram.testing.simulation has moved, use python -m {_NEW}\n")
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", _NEW, *sys.argv[1:]])  # noqa: S606 - this very Python
