"""What the VMMs of a host say of their guests."""

from __future__ import annotations

from typing import Final

import msgspec

from sealift.cli.places import Host
from sealift.cli.qmp_client import QmpClient
from sealift.cli.rundir import guest_directories, read_record
from sealift.errors import LostError, PeerError, RefusedError, UserError

_PATIENCE_S: Final = 2.0
"""A VMM that is well answers in a millisecond; a list must not hang on one that is not."""

_UNKNOWN: Final = "-"


class _Status(msgspec.Struct, frozen=True):
    status: str


class _Cpu(msgspec.Struct, frozen=True):
    index: int = msgspec.field(name="cpu-index")


class _Memory(msgspec.Struct, frozen=True):
    base: int = msgspec.field(name="base-memory")


class _Processes(msgspec.Struct, frozen=True, rename="kebab"):
    platform_pid: int


class _Migration(msgspec.Struct, frozen=True, rename="kebab"):
    status: str = "none"
    x_sealift_snapshot: str | None = None

    def shown(self) -> str:
        """The status, and that it is no migration's."""
        return self.status if self.x_sealift_snapshot is None else f"snapshot {self.status}"


class GuestOverview(msgspec.Struct, frozen=True, rename="kebab"):
    """One guest. What its VMM did not say is None; `memory` is in bytes.

    `migration` is a status as QEMU names it, with "snapshot" before it when the guest is saved instead.
    """

    name: str
    state: str
    pid: int | None
    platform_pid: int | None = None
    memory: int | None = None
    vcpus: int | None = None
    migration: str | None = None

    def row(self) -> tuple[str, ...]:
        """Cells for a table."""
        memory = None if self.memory is None else f"{self.memory / (1 << 20):g} MiB"
        cells = (self.pid, self.platform_pid, memory, self.vcpus, self.migration)
        return (self.name, self.state, *(_UNKNOWN if cell is None else str(cell) for cell in cells))


def guests_of(host: Host) -> list[GuestOverview]:
    """All guests that run on a host, by name."""
    found = (_ask(host, directory.name) for directory in guest_directories(host.run))
    return [guest for guest in found if guest is not None]


def _ask(host: Host, name: str) -> GuestOverview | None:
    record = read_record(host.run / name)
    pid = record.pid if record else None
    try:
        with QmpClient(host.run, name, _PATIENCE_S) as qmp:
            return _describe(qmp, pid)
    except UserError:
        return None  # nobody listens: a directory that was left over, or is just being made or removed
    except LostError:
        return GuestOverview(name, "no answer", pid)
    except PeerError:
        return GuestOverview(name, "odd answer", pid)  # whatever one VMM says, the others are listed


def _describe(qmp: QmpClient, pid: int | None) -> GuestOverview:
    status = qmp.query("query-status", _Status).status
    migration = qmp.query("query-migrate", _Migration).shown()
    known = GuestOverview(qmp.guest, status, pid, migration=migration)
    try:
        return msgspec.structs.replace(
            known,
            platform_pid=qmp.query("x-sealift-query-processes", _Processes).platform_pid,
            memory=qmp.query("query-memory-size-summary", _Memory).base,
            vcpus=len(qmp.query("query-cpus-fast", list[_Cpu])),
        )
    except RefusedError:
        return known  # a guest that is awaited has none of these yet
