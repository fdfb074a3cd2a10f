"""Ask a VMM to move its guest, and watch until it has, or has not; settle what a lost target left open."""

from __future__ import annotations

import signal
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from sealift.cli.qmp_client import QmpClient
from sealift.cli.recipes import read_file
from sealift.errors import RefusedError, sentence
from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.migration.status import ENDED, MigrationStatus

_LOOK_EVERY_S: Final = 0.2
"""What a person still sees as live; each look costs the VMM a fraction of a millisecond."""

_ENDED: Final = {status.value for status in ENDED}


@dataclass(frozen=True, slots=True)
class Display:
    """What the user sees: `progress` as it comes, and sentences."""

    progress: Callable[[MigrationInfo], None]
    say: Callable[[str], None]


def migrate(
    qmp: QmpClient, uri: str, parameters: dict[str, object], display: Display, capabilities: Sequence[str] = ()
) -> MigrationInfo:
    """Move the guest, showing how it goes; Ctrl-C gives up, if it is not too late, and waits for the outcome.

    Args:
        qmp: the guest's VMM.
        uri: where to.
        parameters: what differs from the guest's own parameters, for this one migration, in QEMU's names.
        display: shows it.
        capabilities: to be on for this one migration, in QEMU's names.

    Returns:
        How it ended: completed, failed or cancelled.

    Raises:
        RefusedError: the VMM does not begin.
        LostError: the VMM is gone.
    """
    return _watched(qmp, parameters, lambda: qmp.execute("migrate", uri=uri, **_once(capabilities)), display)


def snapshot(
    qmp: QmpClient, path: Path, *, without_disks: bool, parameters: dict[str, object], display: Display
) -> MigrationInfo:
    """Save the guest to a file (an absolute path); otherwise as `migrate`."""

    def begin() -> None:
        qmp.execute("x-sealift-snapshot", path=str(path), without_disks=without_disks)

    return _watched(qmp, parameters, begin, display)


def _watched(
    qmp: QmpClient, parameters: dict[str, object], begin: Callable[[], object], display: Display
) -> MigrationInfo:
    """Begin it, and show how it goes to its end."""
    qmp.ask_for_migration_events()
    with _interruptions() as interrupted:
        with _parameters(qmp, parameters):
            begin()
        cancelled = advised = False
        while True:
            info = qmp.query("query-migrate", MigrationInfo)
            display.progress(info)
            if info.x_sealift_advice and not advised:
                display.say(info.x_sealift_advice)
                advised = True
            if info.status in _ENDED:
                return info
            if interrupted() and not cancelled:
                _cancel(qmp, display)
                cancelled = True
            qmp.next_event(_LOOK_EVERY_S)


def _once(capabilities: Sequence[str]) -> dict[str, object]:
    """Arguments of migrate that switch them on."""
    on = [{"capability": each, "state": True} for each in capabilities]
    return {"x-sealift-capabilities": on} if on else {}


@contextmanager
def _parameters(qmp: QmpClient, changed: dict[str, object]) -> Iterator[None]:
    """Parameters for a migration that is begun meanwhile; it keeps them, and the guest gets its own back."""
    if not changed:
        yield
        return
    before = qmp.query("query-migrate-parameters", dict[str, object])
    qmp.execute("migrate-set-parameters", **changed)
    try:
        yield
    finally:
        qmp.execute("migrate-set-parameters", **before)


def _cancel(qmp: QmpClient, display: Display) -> None:
    try:
        qmp.execute("migrate_cancel")
    except RefusedError as error:
        display.say(f"{sentence(error)}; waiting for the outcome (Ctrl-C again stops waiting)")


def settle(qmp: QmpClient, token: Path) -> str:
    """Bring a guest that is fenced the token of its target; what became of the guest, in a sentence.

    Raises:
        UserError: the file cannot be read.
        RefusedError: the guest waits for no token, or not for this one.
    """
    qmp.execute("x-sealift-settle", token=b64encode(read_file("token", token)).decode())
    if moved(qmp.query("query-migrate", MigrationInfo)):
        return f"guest {qmp.guest} runs on the target, and has ended here"
    return f"guest {qmp.guest} did not start on the target, and runs on here"


def moved(info: MigrationInfo) -> bool:
    """Whether the guest runs on the target, or is saved."""
    return info.status == MigrationStatus.COMPLETED.value


def describe(name: str, uri: str, info: MigrationInfo) -> str:
    """How a migration ended, in a sentence."""
    match MigrationStatus(info.status):
        case MigrationStatus.COMPLETED:
            return f"guest {name} runs on {uri} now{_figures(info)}"
        case _ if info.x_sealift_fenced:
            return f"the migration of guest {name} broke off at the worst moment: {info.error_desc}"
        case _:
            return f"guest {name} was not moved: {info.error_desc or 'no reason is known'}"


def describe_snapshot(name: str, path: Path, info: MigrationInfo) -> str:
    """How a snapshot ended, in a sentence."""
    if moved(info):
        return f"guest {name} is saved in {path}{_figures(info)}"
    return f"guest {name} was not saved: {info.error_desc or 'no reason is known'}"


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
