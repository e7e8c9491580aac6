"""``SystemExit`` in a plugin's code: a crash of that plugin, not the end of the server.

A library that a plugin uses may call ``sys.exit`` (argument parsers and command-line tools do), and asyncio
and Trio let ``SystemExit`` pass as if the operator had ended the process. Each place that calls code of
plugins turns it into `PluginExited`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tangram.errors import PluginExited

__all__ = ["exit_as_crash", "exits_are_crashes"]


def exit_as_crash(error: BaseException) -> BaseException:
    """Return an exception with each ``SystemExit`` in it replaced by `PluginExited`.

    An exception without ``SystemExit`` is returned itself. The frames are kept, so that a report names the
    line that called ``sys.exit``.
    """
    if isinstance(error, SystemExit):
        crash = PluginExited(f"the plugin raised SystemExit({error.code!r}), which does not end the server")
        crash.__cause__ = error
        return crash.with_traceback(error.__traceback__)
    if isinstance(error, BaseExceptionGroup) and error.subgroup(SystemExit) is not None:
        group = error.derive([exit_as_crash(inner) for inner in error.exceptions])
        group.__cause__ = error.__cause__
        return group.with_traceback(error.__traceback__)
    return error


@contextmanager
def exits_are_crashes() -> Iterator[None]:
    """Replace each ``SystemExit`` that leaves the block by `PluginExited`."""
    try:
        yield
    except (SystemExit, BaseExceptionGroup) as error:
        crash = exit_as_crash(error)
        if crash is error:
            raise
        raise crash from crash.__cause__
