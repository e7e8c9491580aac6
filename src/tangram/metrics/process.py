"""The process as the operating system sees it: ``/proc`` on Linux, else ``getrusage``."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Final

from tangram.metrics.moment import ProcessNumbers

__all__ = ["read_process", "resident_of"]

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_STARTED: Final = time.time()
"""A moment after the start of the process, for systems without /proc."""


def read_process() -> ProcessNumbers:
    """Return the numbers of this process. One read of a file in /proc, which takes some 10 us."""
    times = os.times()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        # proc(5): after the name come fields 3 and on; 22 is the start, 23 and 24 are the memory.
        started = _boot_time() + int(fields[19]) / _TICKS
        virtual, resident = int(fields[20]), int(fields[21]) * _PAGE
    except (OSError, IndexError, ValueError):
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started, virtual, resident = _STARTED, 0, usage * (1 if sys.platform == "darwin" else 1024)
    return ProcessNumbers(
        cpu_seconds=times.user + times.system,
        resident_bytes=resident,
        virtual_bytes=virtual,
        open_fds=_open_fds(),
        max_fds=soft,
        start_time=started,
    )


def resident_of(pid: int) -> int | None:
    """Return the resident memory of another process in bytes, or None if it cannot be read."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return None


def _boot_time() -> float:
    return time.time() - time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _open_fds() -> int:
    # From Linux 6.2 on the size of the folder is the number of its entries; listing 10,000 takes 3 ms.
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return Path(folder).stat().st_size or len(os.listdir(folder)) - 1  # noqa: PTH208 - it counts only
        except OSError:
            continue
    return 0
