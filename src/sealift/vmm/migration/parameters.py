"""What a user may choose for a migration, with QEMU's names and defaults where QEMU has them."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sealift.errors import UserError
from sealift.wire.handover import Method, Transfer
from sealift.wire.psp import MAX_PACKET_PAGES
from sealift.wire.record import MAX_CHANNELS

DOWNTIME_LIMIT_MS = 300
"""QEMU's default."""

MAX_DOWNTIME_LIMIT_MS = 2_000_000
"""QEMU's own limit (migration/options.c): beyond half an hour it is no live migration."""


class Capability(enum.Enum):
    """QEMU's MigrationCapability, as far as it exists here; all are off at first."""

    EVENTS = "events"
    """Tell QMP clients of every step: MIGRATION and MIGRATION_PASS."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """A migration's parameters.

    Attributes:
        downtime_limit_ms: the guest is stopped when what remains should take no longer than this.
        max_bandwidth: bytes a second while the guest runs; 0 is no limit. Ignored once the guest is stopped.
        transfer: how records leave the handler (method mh).
        channels: sealed streams, 1 to 16; the mailbox and method psp have only one.
        method: who encrypts the guest for its way.
        packet_pages: most pages in a packet of method psp; KVM's own SEV ioctls take no more than 1.
        capabilities: those that are on.

    Raises:
        UserError: a value is out of range.
    """

    downtime_limit_ms: int = DOWNTIME_LIMIT_MS
    max_bandwidth: int = 0
    transfer: Transfer = Transfer.RING
    channels: int = 1
    method: Method = Method.MH
    packet_pages: int = MAX_PACKET_PAGES
    capabilities: frozenset[Capability] = frozenset()

    def __post_init__(self) -> None:
        if not 0 <= self.downtime_limit_ms <= MAX_DOWNTIME_LIMIT_MS:
            raise UserError(
                f"a downtime limit of {self.downtime_limit_ms} ms is out of range; choose 0 to {MAX_DOWNTIME_LIMIT_MS}"
            )
        if self.max_bandwidth < 0:
            raise UserError(f"a bandwidth of {self.max_bandwidth} bytes/s is negative; choose 0 for no limit")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise UserError(f"{self.channels} channels are not possible; choose 1 to {MAX_CHANNELS}")
        if self.transfer is Transfer.MAILBOX and self.channels != 1:
            raise UserError("the mailbox moves one page at a time and has one channel; choose 1, or the ring")
        if self.method is Method.PSP and self.channels != 1:
            raise UserError("a session of two secure processors has one channel; choose 1, or method mh")
        if not 1 <= self.packet_pages <= MAX_PACKET_PAGES:
            raise UserError(f"packets of {self.packet_pages} pages are not possible; choose 1 to {MAX_PACKET_PAGES}")
