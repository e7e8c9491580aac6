"""Standard output and standard error where nobody may read them: a terminal that was closed, a pipe whose
reader has ended, a full disk. What they cannot take must not change how a command ends.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

__all__ = ["complain", "give_up_dead_streams", "write_line"]


def write_line(text: str) -> None:
    """``text`` and an end of line on standard error, whatever that is at the moment; lost where it takes
    nothing.
    """
    stream = sys.stderr
    if stream is None:  # Python's, where the descriptor was closed before the start
        return
    with suppress(OSError, ValueError):  # ValueError: it is closed
        stream.write(text + "\n")
        stream.flush()


def complain(text: str) -> None:
    """Tell a user a mistake. Where nobody reads it the exit status has to tell."""
    write_line(f"tangram: {text}")


def give_up_dead_streams() -> None:
    """To be called last. Python writes what is left in both when it ends, and where it cannot its exit status
    is 120, whatever ours was; so what cannot be written goes nowhere.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except ValueError:  # it is closed, and Python knows
            continue
        except OSError:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
