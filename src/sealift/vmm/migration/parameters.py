"""What a user may choose for a migration, with QEMU's names and defaults where QEMU has them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from sealift.errors import UserError
from sealift.wire.handover import KEEP_LIMIT_S, Method, Transfer
from sealift.wire.psp import MAX_PACKET_PAGES
from sealift.wire.record import MAX_CHANNELS

DOWNTIME_LIMIT_MS = 300
"""QEMU's default."""

MAX_DOWNTIME_LIMIT_MS = 2_000_000
"""QEMU's own limit (migration/options.c): beyond half an hour it is no live migration."""


MAX_THROTTLE = 99
"""Per cent: a guest that never runs could as well be stopped."""


class Capability(enum.Enum):
    """QEMU's MigrationCapability, as far as it exists here; all are off at first."""

    EVENTS = "events"
    """Tell QMP clients of every step: MIGRATION and MIGRATION_PASS."""
    AUTO_CONVERGE = "auto-converge"
    """Let the guest run less and less when it writes faster than that can be sent (`Throttling`)."""
    MULTIFD = "multifd"
    """Several sealed channels, each on a connection of its own."""
    PAUSE_BEFORE_SWITCHOVER = "pause-before-switchover"
    """Wait, with the guest stopped, for migrate-continue before the last round and all state."""
    POSTCOPY_RAM = "postcopy-ram"
    """Let migrate-start-postcopy switch before all of the guest has moved: the rest comes while it runs there."""
    RETURN_PATH = "return-path"
    """Accepted from QEMU's users and without effect: targets always answer, or no guest could be handed over."""


@dataclass(frozen=True, slots=True)
class Throttling:
    """How auto-converge slows the guest, in per cent of its vCPUs' time; QEMU's defaults.

    Attributes:
        initial: at first.
        increment: more with each round that does not converge.
        tailslow: less than `increment` where less would do.
        maximum: never more than this.
        trigger_threshold: a round does not converge when the guest wrote more than these per cent of what was sent.

    Raises:
        UserError: a value is out of range.
    """

    initial: int = 20
    increment: int = 10
    tailslow: bool = False
    maximum: int = MAX_THROTTLE
    trigger_threshold: int = 50

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("cpu-throttle-initial", self.initial, 1, MAX_THROTTLE),
            ("cpu-throttle-increment", self.increment, 1, MAX_THROTTLE),
            ("max-cpu-throttle", self.maximum, self.initial, MAX_THROTTLE),
            ("throttle-trigger-threshold", self.trigger_threshold, 1, 100),
        ):
            if not least <= value <= most:
                raise UserError(f"{name} {value} is out of range; choose {least} to {most} per cent")


@dataclass(frozen=True, slots=True)
class Parameters:
    """A migration's parameters.

    Attributes:
        downtime_limit_ms: the guest is stopped when what remains should take no longer than this.
        max_bandwidth: bytes a second while the guest runs; 0 is no limit. Ignored once the guest is stopped.
        max_postcopy_bandwidth: bytes a second of what is pushed while the guest runs at the target (post-copy); 0 is no
            limit.
        transfer: how records leave the handler (method mh).
        multifd_channels: sealed streams with capability multifd, 1 to 16; the mailbox and method psp have only one.
        method: who encrypts the guest for its way.
        packet_pages: most pages in a packet of method psp; KVM's own SEV ioctls take no more than 1.
        capabilities: those that are on.
        throttling: for capability auto-converge.
        resume_window_s: should the connections be lost while the guest runs here, both sides keep what they have, the
            target for so many seconds, and the migration can go on; 0: it fails (method mh).
        tls_creds: directory with what a TLS connection needs (`sealift.vmm.migration.tls`); empty: no TLS.
        tls_hostname: what the target's certificate must be for; empty: the host of the URI.

    Raises:
        UserError: a value is out of range.
    """

    downtime_limit_ms: int = DOWNTIME_LIMIT_MS
    max_bandwidth: int = 0
    max_postcopy_bandwidth: int = 0
    transfer: Transfer = Transfer.RING
    multifd_channels: int = 2
    method: Method = Method.MH
    packet_pages: int = MAX_PACKET_PAGES
    capabilities: frozenset[Capability] = frozenset()
    throttling: Throttling = Throttling()
    resume_window_s: int = 0
    tls_creds: str = ""
    tls_hostname: str = ""

    def going_on(self, now: Parameters) -> Parameters:
        """For a migration with these parameters that goes on: of `now`, what its two handlers need not agree on."""
        return replace(
            self,
            downtime_limit_ms=now.downtime_limit_ms,
            max_bandwidth=now.max_bandwidth,
            max_postcopy_bandwidth=now.max_postcopy_bandwidth,
            throttling=now.throttling,
            resume_window_s=now.resume_window_s or self.resume_window_s,
            tls_creds=now.tls_creds,
            tls_hostname=now.tls_hostname,
        )

    @property
    def channels(self) -> int:
        """Sealed streams."""
        return self.multifd_channels if Capability.MULTIFD in self.capabilities else 1

    def __post_init__(self) -> None:
        if not 0 <= self.downtime_limit_ms <= MAX_DOWNTIME_LIMIT_MS:
            raise UserError(
                f"a downtime limit of {self.downtime_limit_ms} ms is out of range; choose 0 to {MAX_DOWNTIME_LIMIT_MS}"
            )
        if (slowest := min(self.max_bandwidth, self.max_postcopy_bandwidth)) < 0:
            raise UserError(f"a bandwidth of {slowest} bytes/s is negative; choose 0 for no limit")
        if not 1 <= self.multifd_channels <= MAX_CHANNELS:
            raise UserError(f"{self.multifd_channels} channels are not possible; choose 1 to {MAX_CHANNELS}")
        if not 0 <= self.resume_window_s <= KEEP_LIMIT_S:
            raise UserError(f"a target cannot wait {self.resume_window_s} s for its source; choose 0 to {KEEP_LIMIT_S}")
        if not 1 <= self.packet_pages <= MAX_PACKET_PAGES:
            raise UserError(f"packets of {self.packet_pages} pages are not possible; choose 1 to {MAX_PACKET_PAGES}")
        self._check_method()

    def _check_method(self) -> None:
        """Not every method knows everything."""
        if self.transfer is Transfer.MAILBOX and self.channels != 1:
            raise UserError(
                "the mailbox moves one page at a time and has one channel; choose the ring, or switch multifd off"
            )
        if self.method is Method.PSP and self.channels != 1:
            raise UserError(
                "a session of two secure processors has one channel; choose method mh, or switch multifd off"
            )
        if self.resume_window_s and self.method is not Method.MH:
            raise UserError(
                f"method {self.method.value} cannot go on after a lost connection; choose a resume window of 0"
            )
        if Capability.POSTCOPY_RAM in self.capabilities and (self.method, self.transfer) != (Method.MH, Transfer.RING):
            raise UserError("only the migration handler (method mh) with its ring knows post-copy; switch it off")
