"""What a demonstration found out; `Report` is the JSON object."""

from __future__ import annotations

import msgspec


class LaunchReport(msgspec.Struct, frozen=True):
    """`digest`: the launch digest (hex) that the owner computed from its files and the platform measured."""

    measurement_verified: bool
    digest: str


class MigrationReport(msgspec.Struct, frozen=True):
    """As query-migrate had it in the end; `bytes` are those of the stream, `transfer` says what carried pages."""

    status: str
    transfer: str
    total_time_ms: int
    downtime_ms: int
    rounds: int
    private_pages: int
    shared_pages: int
    hole_pages: int
    bytes: int
    method: str = "mh"


class GuestReport(msgspec.Struct, frozen=True):
    """What the guest itself said.

    Attributes:
        payload_sha256: of the user's file, computed here.
        payload_sha256_source: as the guest printed it on the source,
        payload_sha256_target: and computed it again on the target.
        ledger_before: updates of all vCPUs, as last reported on the source,
        ledger_after: and on the target.
        chain_entries: entries of the hash chain that were compared with the owner's own computation,
        chain_verified: and whether all were equal.
        faults: damaged pages that the guest noticed.
    """

    payload_sha256: str
    payload_sha256_source: str
    payload_sha256_target: str
    ledger_before: int
    ledger_after: int
    chain_entries: int
    chain_verified: bool
    faults: int

    @property
    def ok(self) -> bool:
        """Whether the guest lost nothing."""
        digests = {self.payload_sha256, self.payload_sha256_source, self.payload_sha256_target}
        went_on = self.ledger_after > self.ledger_before > 0
        return len(digests) == 1 and went_on and self.chain_verified and not self.faults


class LinuxGuestReport(msgspec.Struct, frozen=True):
    """What a Linux guest itself said.

    Attributes:
        kernel: its release.
        memory_encryption_line: what its kernel said of memory encryption.
        vcpus: how many it has.
        secret_bytes: of the owner's secret, which it copied into every page of its working sets.
        counter_before: pages verified and overwritten, as last reported on the source,
        counter_after: and on the target.
        disk_before: blocks of its disk likewise, on the source,
        disk_after: and on the target.
        faults: damage to memory, disk or clocks that it noticed.
    """

    kernel: str
    memory_encryption_line: str
    vcpus: int
    secret_bytes: int
    counter_before: int
    counter_after: int
    disk_before: int
    disk_after: int
    faults: int

    @property
    def ok(self) -> bool:
        """Whether it ran encrypted, with its secret, and lost nothing."""
        went_on = self.counter_after > self.counter_before > 0 and self.disk_after > self.disk_before > 0
        encrypted = "AMD SEV" in self.memory_encryption_line and self.secret_bytes > 0
        return bool(self.kernel) and encrypted and went_on and not self.faults


class SecrecyReport(msgspec.Struct, frozen=True):
    """The search for the planted secret.

    Attributes:
        searched: names of places, each with a control marker in it.
        control_found: those of them where the marker was found.
        found: where the secret was found, and in which form.
        empty: places that hold nothing but zeros: nothing was ever written there, so there is nothing to search.
        bytes_searched: in all places.
    """

    searched: list[str]
    control_found: list[str]
    found: list[str]
    empty: list[str]
    bytes_searched: int

    @property
    def ok(self) -> bool:
        """Whether every search was seen to work, and none found the secret."""
        return bool(self.searched) and self.searched == self.control_found and not self.found


class Report(msgspec.Struct, frozen=True):
    """The whole demonstration."""

    ok: bool
    engine: str
    launch: LaunchReport
    migration: MigrationReport
    guest: GuestReport | LinuxGuestReport
    secrecy: SecrecyReport

    @classmethod
    def of(
        cls,
        engine: str,
        launch: LaunchReport,
        migration: MigrationReport,
        guest: GuestReport | LinuxGuestReport,
        secrecy: SecrecyReport,
    ) -> Report:
        """Judge the parts."""
        ok = launch.measurement_verified and migration.status == "completed" and guest.ok and secrecy.ok
        return cls(ok, engine, launch, migration, guest, secrecy)
