"""What `query-migrate` answers: QEMU's vocabulary (qapi/migration.json, MigrationInfo), and what only Sealift counts.

One thread counts, any thread may look: every field is replaced whole. Downtime is the source's: from the order to
stop the guest until the target's word that it runs, so it includes one trip over the network; parts are named.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from sealift.address import PAGE_SIZE
from sealift.vmm.migration.clock import Clock
from sealift.vmm.migration.socket_address import SocketAddress
from sealift.vmm.migration.status import MigrationStatus
from sealift.wire.receipt import Receipt

PAGE_COST: Final = PAGE_SIZE + 8
"""Bytes of the stream for one page, of whatever kind: content and number (or header)."""

_LEAST_MEASURED = 1 << 20
"""Bytes below which a round's bandwidth says more about wake-ups than about the link."""


class DowntimePart(enum.Enum):
    """What the guest waits for, in this order."""

    PAUSE = "stop"
    """Its vCPUs to leave guest mode."""
    SWITCHOVER = "switchover"
    """Its user to say that it may go on, if that was asked for."""
    LAST_ROUND = "last-pages"
    """What it wrote since the last round."""
    STATE = "state"
    """Machine state, devices, the end of the stream."""
    PREPARED = "commit"
    """The target to verify everything."""
    START = "start"
    """FINAL there, STARTED back."""


class RamInfo(msgspec.Struct, frozen=True, rename="kebab"):
    """QEMU's MigrationRAMInfo: bytes, pages; `duplicate` are pages sent as zeros, `normal` those sent with content.

    Of the bytes transferred, `precopy_bytes` went while the guest ran, `downtime_bytes` while it was stopped, and
    `multifd_bytes` on connections beside the first. `dirty_pages_rate` is what the guest wrote in the last round, in
    different pages a second. Nothing is sent without a copy, so none of that is missed.
    """

    transferred: int
    remaining: int
    total: int
    duplicate: int
    normal: int
    normal_bytes: int
    mbps: float
    dirty_sync_count: int
    page_size: int
    pages_per_second: int
    dirty_pages_rate: int = 0
    precopy_bytes: int = 0
    downtime_bytes: int = 0
    postcopy_bytes: int = 0
    postcopy_requests: int = 0
    dirty_sync_missed_zero_copy: int = 0
    multifd_bytes: int = 0


class PageInfo(msgspec.Struct, frozen=True, rename="kebab"):
    """Pages by their way: sealed, in clear (shared with the host), and never written by the guest (holes)."""

    private_pages: int
    shared_pages: int
    hole_pages: int


class MigrationInfo(msgspec.Struct, frozen=True, rename="kebab", omit_defaults=True):
    """A migration at one moment; times in ms. As with QEMU there is no status before the first one."""

    status: MigrationStatus = MigrationStatus.NONE
    total_time: int = 0
    setup_time: int | None = None
    downtime: int | None = None
    expected_downtime: int | None = None
    cpu_throttle_percentage: int = 0
    """What auto-converge holds the guest's vCPUs for; absent while it does not."""
    error_desc: str | None = None
    blocked_reasons: tuple[str, ...] = ()
    """Why no migration of this guest can begin, in sentences."""
    socket_address: tuple[SocketAddress, ...] = ()
    """Where a guest is awaited."""
    ram: RamInfo | None = None
    x_sealift_pages: PageInfo | None = None
    x_sealift_migration_id: str | None = None
    """The handlers' name of it, in hexadecimal."""
    x_sealift_receipt: Receipt | None = None
    """What both handlers state of the migration that completed; for the guest's owner, who alone can check it."""
    x_sealift_downtime_parts: dict[str, float] | None = None
    """`downtime` by what the guest waited for, in order; ms."""
    x_sealift_cutover: int | None = None
    """What may remain, in bytes, for the guest to be stopped: what the way takes within the downtime limit."""
    x_sealift_fenced: bool = False
    """The guest is stopped here, and may run at the target: only the target's token lets it go on."""
    x_sealift_resumable: bool = False
    """The connections were lost, and it can go on over others (migrate's argument `resume`); the guest runs on here."""
    x_sealift_snapshot: str | None = None
    """It is no migration: the guest is saved to this file, and runs on here."""
    x_sealift_advice: str | None = None
    """What its user could do so that the migration ends."""


class Bandwidth:
    """Bytes a second, as the last rounds that were long enough to tell had it."""

    def __init__(self) -> None:
        self._bytes = 0
        self._seconds = 0.0
        self._measured = 0.0

    def add(self, length: int, seconds: float) -> None:
        """Another round went out."""
        self._bytes += length
        self._seconds += seconds
        if self._seconds > 0:
            self._measured = self._bytes / self._seconds
        if self._bytes >= _LEAST_MEASURED:
            self._bytes, self._seconds = 0, 0.0

    def bytes_in(self, seconds: float) -> int | None:
        """How much should go out in so much time; None while nothing was measured."""
        return int(self._measured * seconds) if self._measured else None

    def seconds_for(self, length: int) -> float:
        """How long `length` bytes should take; endless while nothing was measured."""
        if not length:
            return 0.0
        return length / self._measured if self._measured else float("inf")


class Statistics:
    """Counts one migration.

    Attributes:
        private_pages: sealed pages sent.
        shared_pages: pages sent in clear with content.
        zero_pages: pages sent in clear as zeros.
        hole_pages: private pages that the first round did not have.
        rounds: rounds begun.
        sent: bytes, on all connections.
        sent_beside: those of them on connections beside the first.
        remaining: bytes known to be unsent.
        bandwidth: measured by rounds.
        migration: the handlers' id of it.
        error: why it ended, when it did not complete.
        receipt: what the handlers stated of it when it completed.
        fenced: whether it ended without anybody knowing who may run the guest.
        resumable: whether it ended and can go on.
        cpu_throttle_percentage: share of the time in which auto-converge keeps the guest from running.
        advice: what the user could do so that it ends.
        cutover: bytes that may remain for the guest to be stopped, once a round has shown what the way takes.
    """

    def __init__(self, total: int, clock: Clock) -> None:
        self._clock = clock
        self._total = total
        self._begun: float | None = None
        self._active: float | None = None
        self._ended: float | None = None
        self._arrived: float | None = None
        self._part: tuple[DowntimePart, float] | None = None
        self._sent_running: int | None = None
        self._round_s = 0.0
        self._dirty_pages_rate = 0
        self._parts: dict[DowntimePart, float] = {}
        self.private_pages = self.shared_pages = self.zero_pages = self.hole_pages = 0
        self.rounds = self.sent = self.sent_beside = self.remaining = 0
        self.bandwidth = Bandwidth()
        self.migration = b""
        self.error: str | None = None
        self.receipt: Receipt | None = None
        self.fenced = self.resumable = False
        self.cpu_throttle_percentage = 0
        self.advice: str | None = None
        self.cutover: int | None = None

    def begin(self) -> None:
        """The migration begins."""
        self._begun = self._clock.monotonic()

    def active(self) -> None:
        """Setup is over."""
        self._active = self._clock.monotonic()

    def arrived(self) -> None:
        """The target's word that it runs the guest is here; what is still done for it here takes no time of it."""
        self.downtime_part(None)
        self._arrived = self._clock.monotonic()

    def end(self) -> None:
        """The migration is over; running times stand still, at the guest's arrival if it arrived."""
        self.downtime_part(None)
        self._ended = self._clock.monotonic() if self._arrived is None else self._arrived

    @contextmanager
    def round(self) -> Iterator[None]:
        """A round goes out, which is measured."""
        self.rounds += 1
        begun, before = self._clock.monotonic(), self.sent
        yield
        self._round_s = self._clock.monotonic() - begun
        self.bandwidth.add(self.sent - before, self._round_s)

    def dirtied(self, pages: int) -> None:
        """So many pages are left by the last round: what the guest wrote meanwhile."""
        self.remaining = pages * PAGE_COST
        if self._round_s > 0:
            self._dirty_pages_rate = int(pages / self._round_s)

    def downtime_part(self, part: DowntimePart | None) -> None:
        """The guest waits for `part` from now on; None: it waits no more."""
        now = self._clock.monotonic()
        if part is not None and self._sent_running is None:
            self._sent_running = self.sent
        if self._part is not None:
            before, since = self._part
            self._parts[before] = self._parts.get(before, 0.0) + now - since
        self._part = None if part is None else (part, now)

    def downtime_s(self) -> float | None:
        """Seconds the guest has been, or was, stopped; None if it never was."""
        if not self._parts and self._part is None:
            return None
        running = 0.0 if self._part is None else self._clock.monotonic() - self._part[1]
        return sum(self._parts.values()) + running

    def info(self, status: MigrationStatus) -> MigrationInfo:
        """How it stands now."""
        if self._begun is None:
            return MigrationInfo(status)
        downtime = self.downtime_s()
        expected = self.bandwidth.seconds_for(self.remaining)
        return MigrationInfo(
            status=status,
            total_time=_ms(self._now() - self._begun),
            setup_time=None if self._active is None else _ms(self._active - self._begun),
            downtime=None if downtime is None else _ms(downtime),
            expected_downtime=_ms(expected) if downtime is None and expected != float("inf") else None,
            cpu_throttle_percentage=self.cpu_throttle_percentage,
            error_desc=self.error,
            ram=self._ram(),
            x_sealift_pages=PageInfo(self.private_pages, self.shared_pages, self.hole_pages),
            x_sealift_downtime_parts={part.value: seconds * 1e3 for part, seconds in self._parts.items()} or None,
            x_sealift_migration_id=self.migration.hex() or None,
            x_sealift_receipt=self.receipt,
            x_sealift_cutover=self.cutover,
            x_sealift_fenced=self.fenced,
            x_sealift_resumable=self.resumable,
            x_sealift_advice=self.advice,
        )

    def _now(self) -> float:
        return self._clock.monotonic() if self._ended is None else self._ended

    def _ram(self) -> RamInfo:
        seconds = 0.0 if self._active is None else self._now() - self._active
        normal = self.private_pages + self.shared_pages
        pages = normal + self.zero_pages
        precopy = self.sent if self._sent_running is None else self._sent_running
        return RamInfo(
            transferred=self.sent,
            remaining=self.remaining,
            total=self._total,
            duplicate=self.zero_pages,
            normal=normal,
            normal_bytes=normal * PAGE_SIZE,
            mbps=self.sent * 8 / seconds / 1e6 if seconds else 0.0,
            dirty_sync_count=self.rounds,
            page_size=PAGE_SIZE,
            pages_per_second=int(pages / seconds) if seconds else 0,
            dirty_pages_rate=self._dirty_pages_rate,
            precopy_bytes=precopy,
            downtime_bytes=self.sent - precopy,
            multifd_bytes=self.sent_beside,
        )


def _ms(seconds: float) -> int:
    return round(seconds * 1e3)
