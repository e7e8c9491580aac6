"""Measure the machine with psutil."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Sample:
    """The load of the machine at one moment."""

    at: float
    """Seconds since 1970, UTC."""
    cpu: float
    """Per cent of all cores since the last sample."""
    memory: float
    """Per cent of the machine's memory that is in use."""
    load: float
    """Processes that run or wait to run, averaged over a minute."""
    uptime: float
    """Seconds since the machine booted."""


@dataclass(frozen=True, slots=True)
class Info:
    """Properties of the machine that do not change while it runs."""

    host: str
    system: str
    python: str
    cores: int
    memory: int
    """Bytes."""
    booted: float
    """Seconds since 1970, UTC."""


def read_info() -> Info:
    """Return the properties of this machine."""
    return Info(
        host=platform.node(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        cores=os.cpu_count() or 1,
        memory=psutil.virtual_memory().total,
        booted=psutil.boot_time(),
    )


class Meter:
    """Takes samples; the CPU load is measured between two samples."""

    def __init__(self) -> None:
        psutil.cpu_percent(interval=None)  # the first result is always 0.0

    def read(self) -> Sample:
        """Take a sample; it reads ``/proc`` for about 0.2 ms, short enough for the event loop."""
        now = time.time()
        return Sample(
            at=now,
            cpu=psutil.cpu_percent(interval=None),
            memory=psutil.virtual_memory().percent,
            load=round(os.getloadavg()[0], 2),
            uptime=round(now - psutil.boot_time(), 1),
        )
