"""A guest that hops from VMM to VMM, each a fresh pair of processes, over loopback TCP.

Unless it is to write, the guest halts at once, so its memory stands still: what is measured is moving, not chasing. It
is launched and measured once; each hop has a receiver that the owner approves, and ends the VMM it left.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sealift.address import PAGE_SIZE
from sealift.cli.bench.cputime import cpu_s, family
from sealift.cli.places import Host
from sealift.cli.scratch import Scratch
from sealift.cli.vmm_process import ENDED, VmmProcess
from sealift.cli.way import Way
from sealift.errors import InternalError, PeerError
from sealift.vmm.migration.stats import DowntimePart, MigrationInfo

IDLE: Final = "idle"
WRITER: Final = "writer"

_ROOM: Final = 32 << 20
"""Bytes a guest needs beside its payload: start-up area, kernel, page tables, stacks."""

_CHUNK: Final = 16 << 20
_PATIENCE_S: Final = 900.0

_SET_UP: Final = ENDED | {"active", "device"}
"""Statuses of a migration whose set-up is over."""


@dataclass(frozen=True, slots=True)
class Burden:
    """What a guest's memory is.

    Attributes:
        size: bytes that are random, and private.
        dirty_rate: bytes of other pages that it writes to in a second, at most.
        memory: bytes of RAM, which the target then does not touch beforehand; by default no more than that needs.
    """

    size: int
    dirty_rate: int = 0
    memory: int | None = None

    @property
    def ram(self) -> int:
        """Bytes of RAM; what is written to in a second is what the guest walks over."""
        return self.memory or -(-(self.size + self.dirty_rate + _ROOM) // PAGE_SIZE) * PAGE_SIZE

    @property
    def kernel(self) -> list[str]:
        """Options of `sealift run`."""
        if not self.dirty_rate:
            return ["--kernel", IDLE]
        return ["--kernel", WRITER, "--append", f"rate={-(-self.dirty_rate // PAGE_SIZE)}"]


@dataclass(frozen=True, slots=True)
class Hop:
    """One migration.

    Attributes:
        pages: private pages that were moved, each as often as it was.
        seconds: of the transfer phase: from the end of the set-up (connecting, launching the receiver, exchanging
            keys) to the target's word that the guest runs there. So it includes rounds, the last one, machine state,
            verification and handover, in milliseconds' precision as query-migrate has it.
        cpu_s: processor time of that phase, of both VMMs and what they started: their platforms, and an idle owner.
        downtime: seconds of its parts, by their names in query-migrate.
    """

    pages: int
    seconds: float
    cpu_s: float
    downtime: dict[str, float]

    @property
    def downtime_s(self) -> float:
        """Seconds that the guest stood still."""
        return sum(self.downtime.values())

    @property
    def last_round_s(self) -> float:
        """Seconds of the last round, in which a guest that does nothing has nothing to send."""
        return self.downtime[DowntimePart.LAST_ROUND.value]

    @property
    def bytes_per_s(self) -> float:
        """Private bytes moved a second."""
        return self.pages * PAGE_SIZE / self.seconds

    @property
    def cpu_s_per_byte(self) -> float:
        """Processor time for each private byte moved."""
        return self.cpu_s / (self.pages * PAGE_SIZE)

    @property
    def cpu_s_per_page(self) -> float:
        """Processor time for each private page moved."""
        return self.cpu_s / self.pages

    @property
    def pages_per_s(self) -> float:
        """Private pages moved a second."""
        return self.pages / self.seconds


class HoppingGuest:
    """One guest; what it starts ends with its scratch.

    Args:
        scratch: where everything goes.
        name: of the guest, to tell it from others.
        way: how it moves.
        burden: its memory.
    """

    def __init__(self, scratch: Scratch, name: str, way: Way, burden: Burden) -> None:
        self._scratch = scratch
        self._way = way
        self._arrival = ["--incoming", "tcp:127.0.0.1:0", *(["--prealloc"] if burden.memory is None else [])]
        self._name = name
        self._launches = 0
        payload = scratch.path / f"{name}.payload"
        _write_random(payload, burden.size)
        options = [*burden.kernel, "--payload", str(payload), "--memory", str(burden.ram), "--vcpus", "1"]
        options += ["--policy", way.policy]
        self._vmm = self._start(options)
        _ = self._vmm.qmp  # answers once the guest is launched
        payload.unlink()

    @property
    def vmm(self) -> VmmProcess:
        """Where it is now."""
        return self._vmm

    def hop(self, moved: Callable[[], None] = lambda: None) -> Hop:
        """Move the guest to a fresh VMM; `moved` is called while the old one is still there.

        Raises:
            PeerError: the migration failed; the message says why.
        """
        source, target = self._vmm, self._start(self._arrival)
        uri = target.arrival_uri()
        source.qmp.ask_for_migration_events()
        source.qmp.execute("migrate-set-parameters", **self._way.parameters)
        source.qmp.execute("migrate-set-capabilities", capabilities=self._way.capabilities)
        source.qmp.execute("migrate", uri=uri)
        info = source.wait_for_migration(_PATIENCE_S, _SET_UP)
        before = _cpu_s(source, target)
        if info.status not in ENDED:
            info = source.wait_for_migration(_PATIENCE_S)
        used = _cpu_s(source, target) - before
        if info.status != "completed":
            raise PeerError(f"the migration has {info.status}: {info.error_desc or 'no reason is known'}")
        moved()
        source.close()
        self._vmm = target
        return _hop(info, used)

    def close(self) -> None:
        """End the guest."""
        self._vmm.close()

    def _start(self, options: list[str]) -> VmmProcess:
        self._launches += 1
        host = Host(self._scratch.path / f"host-{self._launches % 2}")
        options = ["--owner", str(self._scratch.path / "owner"), *options]
        name = f"{self._name}-{self._launches}"
        vmm = VmmProcess(host, name, options, self._scratch.path / f"{name}.log")
        self._scratch.ending.callback(vmm.close)
        return vmm


def _cpu_s(*vmms: VmmProcess) -> float:
    return sum(cpu_s(pid) for vmm in vmms for pid in family(vmm.pid))


def _hop(info: MigrationInfo, used_s: float) -> Hop:
    if info.x_sealift_pages is None or info.setup_time is None or info.x_sealift_downtime_parts is None:
        raise InternalError("a completed migration without figures")
    downtime = {part: milliseconds / 1e3 for part, milliseconds in info.x_sealift_downtime_parts.items()}
    return Hop(info.x_sealift_pages.private_pages, (info.total_time - info.setup_time) / 1e3, used_s, downtime)


def _write_random(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for start in range(0, size, _CHUNK):
            file.write(os.urandom(min(_CHUNK, size - start)))
