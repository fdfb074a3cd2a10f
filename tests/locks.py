"""The lock of a directory of private files, looked at from outside."""

from __future__ import annotations

import fcntl
from pathlib import Path


def free(directory: Path) -> bool:
    """Whether it can be had for use at this moment."""
    with (directory / ".lock").open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
