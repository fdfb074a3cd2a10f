"""Ask a VMM to move its guest, and watch until it has, or has not."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from sealift.cli.qmp_client import QmpClient
from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.migration.status import ENDED, MigrationStatus

_LOOK_EVERY_S: Final = 0.2
"""What a person still sees as live; each look costs the VMM a fraction of a millisecond."""

_ENDED: Final = {status.value for status in ENDED}


def migrate(qmp: QmpClient, uri: str, show: Callable[[MigrationInfo], None]) -> MigrationInfo:
    """Move the guest, showing how it goes; Ctrl-C gives up and waits until that took effect.

    Returns:
        How it ended: completed, failed or cancelled.

    Raises:
        RefusedError: the VMM does not begin.
        LostError: the VMM is gone.
    """
    with _interruptions() as interrupted:
        qmp.execute("migrate", uri=uri)
        cancelled = False
        while True:
            info = qmp.query("query-migrate", MigrationInfo)
            show(info)
            if info.status in _ENDED:
                return info
            if interrupted() and not cancelled:
                qmp.execute("migrate_cancel")
                cancelled = True
            qmp.next_event(_LOOK_EVERY_S)


def moved(info: MigrationInfo) -> bool:
    """Whether the guest runs on the target."""
    return info.status == MigrationStatus.COMPLETED.value


def describe(name: str, uri: str, info: MigrationInfo) -> str:
    """How a migration ended, in a sentence."""
    match MigrationStatus(info.status):
        case MigrationStatus.COMPLETED:
            return f"guest {name} runs on {uri} now{_figures(info)}"
        case MigrationStatus.CANCELLED:
            return f"the migration was cancelled; guest {name} stays where it was"
        case _:
            return f"guest {name} was not moved: {info.error_desc or 'no reason is known'}"


def _figures(info: MigrationInfo) -> str:
    if info.ram is None:
        return ""
    mib = info.ram.transferred / (1 << 20)
    rounds = f"{info.ram.dirty_sync_count} round{'s' if info.ram.dirty_sync_count != 1 else ''}"
    return f": {mib:.1f} MiB in {info.total_time / 1e3:.2f} s and {rounds}, {info.downtime or 0} ms of downtime"


@contextmanager
def _interruptions() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed (or SIGTERM came); a second one ends the program as usual."""
    seen = False

    def note(_: int, __: FrameType | None) -> None:
        nonlocal seen
        seen = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
