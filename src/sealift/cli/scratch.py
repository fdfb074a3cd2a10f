"""What a command makes for its own use, gone again on every way out: Ctrl-C, SIGTERM, SIGHUP, errors."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Scratch:
    """A private directory, and what has to end before it is removed."""

    path: Path
    ending: ExitStack


@contextmanager
def scratch(purpose: str) -> Iterator[Scratch]:
    """Make a directory; afterwards end what was pushed to `ending`, last first, and remove it.

    Signals that ask this process to end raise KeyboardInterrupt meanwhile, and wait while it tidies up. Main thread
    only.
    """
    before = {number: signal.signal(number, _interrupt) for number in _SIGNALS}
    made = Scratch(Path(tempfile.mkdtemp(prefix=f"sealift-{purpose}-")), ExitStack())
    try:
        yield made
    finally:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        try:
            made.ending.close()
        finally:
            shutil.rmtree(made.path, ignore_errors=True)
            for number, handler in before.items():
                signal.signal(number, handler)


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt
