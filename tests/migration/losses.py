"""What `sealift.tamper` does to lose somebody at a passage of the commit table."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from sealift.guest.handler.commit import Passage, State

_NAMES = {
    "offer": "hello",
    "epoch token": "epoch",
    "machine state": "state",
    "close record": "close",
    "PREPARED": "prepared",
    "FINAL": "final",
    "ABORTED": "aborted",
    "STARTED": "started",
}


def on_the_wire(passage: Passage) -> str:
    """What `sealift.tamper` calls the passage's message."""
    return _NAMES.get(passage.message, passage.message)


def rules(passage: Passage) -> tuple[str, ...]:
    """Nobody gets to read its message: whoever is lost, its connections end."""
    cut = f"cut:{on_the_wire(passage)}"
    gives_up = passage.target is State.ABORTED  # because of a FINAL that is none
    return ("flip:final", cut) if gives_up else (cut,)


def once(act: Callable[[], None]) -> Callable[[], None]:
    """Only the first time."""
    times = itertools.count()
    return lambda: act() if next(times) == 0 else None
