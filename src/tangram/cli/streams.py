"""Standard output and standard error that may have no reader.

The terminal may be closed, the reader of the pipe may have ended, the disk may be full. Output that cannot be
written must not change the exit status of a command.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

__all__ = ["complain", "give_up_dead_streams", "write_line"]


def write_line(text: str) -> None:
    """Write a line to the present ``sys.stderr``; lose it if that cannot be written to."""
    stream = getattr(sys.stderr, "original", sys.stderr)  # the log of a plugin's output is no such output
    if stream is None:  # so set by Python if the descriptor was closed before the start
        return
    with suppress(OSError, ValueError):  # ValueError: the stream is closed
        stream.write(text + "\n")
        stream.flush()


def complain(text: str) -> None:
    """Write an error message for the user."""
    write_line(f"tangram: {text}")


def give_up_dead_streams() -> None:
    """Discard buffered output that cannot be written; call this last.

    Python flushes both streams at its end. If that fails its exit status is 120 instead of the
    command's own.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except ValueError:  # the stream is closed, and Python does not flush it
            continue
        except OSError:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
