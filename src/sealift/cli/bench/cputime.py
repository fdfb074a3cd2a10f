"""Processor time of other processes, in seconds: unlike a rate, it hardly changes with what else a machine does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

_SCHED: Final = 2
"""CPUCLOCK_SCHED, linux/posix-timers.h: what all threads of a process have run, those that ended too."""


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, to the nanosecond.

    Raises:
        OSError: there is no such process.
    """
    return time.clock_gettime(~pid << 3 | _SCHED)  # the clock of clock_getcpuclockid(3)


def family(pid: int) -> list[int]:
    """A process and its children, by their process ids."""
    tasks = (Path("/proc") / str(pid) / "task").iterdir()
    return [pid, *(int(child) for task in tasks for child in (task / "children").read_text().split())]
