"""Ask a VMM to move its guest, and watch until it has, or has not."""

from __future__ import annotations

import enum
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec

from sealift.cli.qmp_client import QmpClient
from sealift.errors import RefusedError, UserError, sentence
from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.migration.status import ENDED, MigrationStatus
from sealift.vmm.qmp.commands.foresight import PreflightInfo

_LOOK_EVERY_S: Final = 0.2
"""What a person still sees as live; each look costs the VMM a fraction of a millisecond."""


class Choice(enum.Enum):
    """What a user who pressed Ctrl-C wants."""

    CANCEL = enum.auto()
    """The migration is given up."""
    DETACH = enum.auto()
    """It goes on, and nobody watches."""
    GO_ON = enum.auto()
    """It goes on, and is watched."""


@dataclass(frozen=True, slots=True)
class Display:
    """What the user sees: `progress` as it comes, and sentences; `ask` what an interruption means."""

    progress: Callable[[MigrationInfo], None]
    say: Callable[[str], None]
    ask: Callable[[], Choice] = lambda: Choice.CANCEL


@dataclass(frozen=True, slots=True)
class Order:
    """A migration that is to begin.

    Attributes:
        uri: where to.
        parameters: what differs from the guest's own parameters, for this one migration, in QEMU's names.
        capabilities: to be on for this one migration, in QEMU's names.
        check: whether to ask first what is in the way.
        resume: whether it goes on with one whose connections were lost.
    """

    uri: str
    parameters: dict[str, object]
    capabilities: tuple[str, ...] = ()
    check: bool = True
    resume: bool = False


def migrate(qmp: QmpClient, order: Order, display: Display) -> MigrationInfo:
    """Move the guest, showing how it goes; Ctrl-C gives up, if it is not too late, or detaches.

    Returns:
        How it ended: completed, failed or cancelled; or how it stands, when the user detached.

    Raises:
        RefusedError: something is in the way, or the VMM does not begin.
        LostError: the VMM is gone.
    """

    def begin() -> None:
        if order.check and not order.resume:  # whose target would say that it waits for nobody else
            _require_free_way(qmp, order, display)
        qmp.execute("migrate", uri=order.uri, resume=order.resume, **once(order.parameters, order.capabilities))

    return _watched(qmp, begin, display)


def snapshot(
    qmp: QmpClient, path: Path, *, without_disks: bool, parameters: dict[str, object], display: Display
) -> MigrationInfo:
    """Save the guest to a file (an absolute path); otherwise as `migrate`."""

    def begin() -> None:
        qmp.execute("x-sealift-snapshot", path=str(path), without_disks=without_disks, **once(parameters))

    return _watched(qmp, begin, display)


def _watched(qmp: QmpClient, begin: Callable[[], object], display: Display) -> MigrationInfo:
    """Begin it, and show how it goes to its end."""
    qmp.ask_for_migration_events()
    with _interruptions() as interrupted:
        begin()
        return _follow(qmp, display, interrupted)


def attach(qmp: QmpClient, display: Display) -> MigrationInfo:
    """Watch a migration that somebody else began, as `migrate` does.

    Raises:
        UserError: there is none.
        LostError: the VMM is gone.
    """
    info = qmp.query("query-migrate", MigrationInfo)
    if info.status in ENDED | {MigrationStatus.NONE}:
        raise UserError(f"no migration of guest {qmp.guest} is underway; give the URI of a target to begin one")
    with _interruptions() as interrupted:  # without events: capabilities cannot be changed any more
        return _follow(qmp, display, interrupted)


def _follow(qmp: QmpClient, display: Display, interrupted: Interrupted) -> MigrationInfo:
    """Show how it goes, to its end or until the user detaches."""
    cancelled = advised = False
    while True:
        info = qmp.query("query-migrate", MigrationInfo)
        display.progress(info)
        if info.x_sealift_advice and not advised:
            display.say(info.x_sealift_advice)
            advised = True
        if info.status in ENDED:
            return info
        if not cancelled and interrupted():
            match display.ask():
                case Choice.CANCEL:
                    _cancel(qmp, display)
                    cancelled = True
                case Choice.DETACH:
                    return info
                case Choice.GO_ON:
                    continue
        qmp.next_event(_LOOK_EVERY_S)


def _require_free_way(qmp: QmpClient, order: Order, display: Display) -> None:
    answer = qmp.execute("x-sealift-preflight", uri=order.uri, **once(order.parameters, order.capabilities))
    found = msgspec.convert(answer, PreflightInfo)
    blockers = []
    for obstacle in found.obstacles:
        if obstacle.severity == "blocker":
            blockers.append(f"{obstacle.reason} ({obstacle.code})")
        else:
            display.say(f"warning: {obstacle.reason} ({obstacle.code})")
    if blockers:
        raise RefusedError(f"guest {qmp.guest} cannot be moved to {order.uri}: {'; and '.join(blockers)}")


def once(parameters: dict[str, object], capabilities: Sequence[str] = ()) -> dict[str, object]:
    """Arguments of a command that is to have these parameters and capabilities for itself alone."""
    on = [{"capability": each, "state": True} for each in capabilities]
    return {"x-sealift-parameters": parameters, "x-sealift-capabilities": on}


def _cancel(qmp: QmpClient, display: Display) -> None:
    try:
        qmp.execute("migrate_cancel")
    except RefusedError as error:
        display.say(f"{sentence(error)}; waiting for the outcome (Ctrl-C again stops waiting)")


def moved(info: MigrationInfo) -> bool:
    """Whether the guest runs on the target, or is saved."""
    return info.status is MigrationStatus.COMPLETED


def goes_on(info: MigrationInfo) -> bool:
    """Whether the migration has not ended: its watcher has detached."""
    return info.status not in ENDED


def describe(name: str, uri: str | None, info: MigrationInfo) -> str:
    """How a migration ended, in a sentence; `uri` None is that of a migration that somebody else began."""
    match info.status:
        case MigrationStatus.COMPLETED if uri is not None and uri.startswith("file:"):
            return f"guest {name} is saved in {uri}{_figures(info)}"
        case MigrationStatus.COMPLETED:
            return f"guest {name} runs on {uri or 'the target'} now{_figures(info)}"
        case _ if info.x_sealift_fenced:
            return f"the migration of guest {name} broke off at the worst moment: {info.error_desc}"
        case _ if goes_on(info):
            return f"guest {name} goes on being moved; `sealift migrate {name}` attaches to it again"
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
    parts = ", ".join(f"{part} {length:.1f}" for part, length in (info.x_sealift_downtime_parts or {}).items())
    downtime = f"{info.downtime or 0} ms of downtime" + (f" ({parts})" if parts else "")
    return f": {mib:.1f} MiB in {info.total_time / 1e3:.2f} s and {rounds}, {downtime}"


Interrupted = Callable[[], bool]
"""Whether Ctrl-C was pressed since it was asked last."""


@contextmanager
def _interruptions() -> Iterator[Interrupted]:
    """Whether Ctrl-C was pressed (or SIGTERM came); a second one that nobody asks for ends the program as usual."""
    seen = False

    def note(_: int, __: FrameType | None) -> None:
        nonlocal seen
        seen = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def ask() -> bool:
        nonlocal seen
        pressed, seen = seen, False
        if pressed:
            signal.signal(signal.SIGINT, note)
        return pressed

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ask
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
