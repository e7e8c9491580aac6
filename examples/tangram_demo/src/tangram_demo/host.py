"""What there is to tell about this machine, read with psutil."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Sample:
    """The machine at one moment."""

    at: float
    """Seconds since 1970, UTC."""
    cpu: float
    """Per cent of all cores, since the sample before."""
    memory: float
    """Per cent of the machine's memory that is in use."""
    load: float
    """Processes that run or wait to run, averaged over a minute."""
    uptime: float
    """Seconds since the machine was started."""


@dataclass(frozen=True, slots=True)
class Info:
    """What does not change while the machine runs."""

    host: str
    system: str
    python: str
    cores: int
    memory: int
    """Bytes."""
    booted: float
    """Seconds since 1970, UTC."""


def read_info() -> Info:
    return Info(
        host=platform.node(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        cores=os.cpu_count() or 1,
        memory=psutil.virtual_memory().total,
        booted=psutil.boot_time(),
    )


class Meter:
    """Takes samples; a share of CPU is always one between two of them."""

    def __init__(self) -> None:
        psutil.cpu_percent(interval=None)  # the first answer has nothing to compare with, and is 0.0

    def read(self) -> Sample:
        """Some 0.2 ms of reading ``/proc``: short enough to do between two checkpoints."""
        now = time.time()
        return Sample(
            at=now,
            cpu=psutil.cpu_percent(interval=None),
            memory=psutil.virtual_memory().percent,
            load=round(os.getloadavg()[0], 2),
            uptime=round(now - psutil.boot_time(), 1),
        )
