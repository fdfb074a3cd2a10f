"""qapi/migration.json: move the guest, watch it move, change its mind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec

from sealift.vmm.guest import Guest
from sealift.vmm.migration.parameters import Capability, Parameters, Throttling
from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.qmp.channels import MigrationChannel, migration_uri
from sealift.vmm.qmp.table import Command, NoArguments, Runs
from sealift.wire.handover import Method, Transfer

T = TypeVar("T")


class CapabilityStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """QEMU's MigrationCapabilityStatus."""

    capability: Capability
    state: bool


class MigrateArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """QEMU's arguments of migrate; `detach` has no meaning, as in QEMU.

    `resume` goes on with a migration whose connections were lost before the guest was stopped. `once` are capabilities
    for this migration alone.
    """

    uri: str | None = None
    channels: tuple[MigrationChannel, ...] | None = None
    detach: bool = True
    resume: bool = False
    once: tuple[CapabilityStatus, ...] = msgspec.field(default=(), name="x-sealift-capabilities")


class IncomingArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """QEMU's arguments of migrate-incoming."""

    uri: str | None = None
    channels: tuple[MigrationChannel, ...] | None = None


class CapabilitiesArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Those that are to change."""

    capabilities: tuple[CapabilityStatus, ...]


class SnapshotArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """The file to make, by its absolute path; `without_disks`: its user knows that disks are not in it."""

    path: str
    without_disks: bool = False


class ContinueArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """QEMU's argument of migrate-continue: where the migration is expected to wait."""

    state: MigrationStatus


class SettleArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The target's token or the owner's, in base64."""

    token: bytes


class ResumeRequestInfo(msgspec.Struct, frozen=True):
    """What a fenced guest's owner must see, in base64 (`sealift owner resume`)."""

    request: bytes


class MigrationParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", omit_defaults=True):
    """QEMU's MigrationParameters as far as they exist here; milliseconds, and bytes a second.

    `x_sealift_method` says who encrypts the guest, and then `x_sealift_transfer` how records leave the migration
    handler (mh) and, with capability multifd, `multifd_channels` in how many streams; `x_sealift_packet_pages` how
    large packets are (psp). For `x_sealift_resume_window` seconds a target keeps what had come when its source was lost
    (mh). `tls_creds` is a directory here, since there are no QEMU objects to name.
    """

    downtime_limit: int | None = None
    max_bandwidth: int | None = None
    multifd_channels: int | None = None
    cpu_throttle_initial: int | None = None
    cpu_throttle_increment: int | None = None
    cpu_throttle_tailslow: bool | None = None
    max_cpu_throttle: int | None = None
    throttle_trigger_threshold: int | None = None
    tls_creds: str | None = None
    tls_hostname: str | None = None
    x_sealift_transfer: Transfer | None = None
    x_sealift_method: Method | None = None
    x_sealift_packet_pages: int | None = None
    x_sealift_resume_window: int | None = None

    @classmethod
    def of(cls, parameters: Parameters) -> MigrationParameters:
        """In QEMU's names."""
        throttling = parameters.throttling
        return cls(
            downtime_limit=parameters.downtime_limit_ms,
            max_bandwidth=parameters.max_bandwidth,
            multifd_channels=parameters.multifd_channels,
            cpu_throttle_initial=throttling.initial,
            cpu_throttle_increment=throttling.increment,
            cpu_throttle_tailslow=throttling.tailslow,
            max_cpu_throttle=throttling.maximum,
            throttle_trigger_threshold=throttling.trigger_threshold,
            tls_creds=parameters.tls_creds,
            tls_hostname=parameters.tls_hostname,
            x_sealift_transfer=parameters.transfer,
            x_sealift_method=parameters.method,
            x_sealift_packet_pages=parameters.packet_pages,
            x_sealift_resume_window=parameters.resume_window_s,
        )

    def apply(self, to: Parameters) -> Parameters:
        """The parameters with those changed that are given."""
        return replace(
            to,
            downtime_limit_ms=_or(self.downtime_limit, to.downtime_limit_ms),
            max_bandwidth=_or(self.max_bandwidth, to.max_bandwidth),
            multifd_channels=_or(self.multifd_channels, to.multifd_channels),
            throttling=self._throttling(to.throttling),
            tls_creds=_or(self.tls_creds, to.tls_creds),
            tls_hostname=_or(self.tls_hostname, to.tls_hostname),
            transfer=self.x_sealift_transfer or to.transfer,
            method=self.x_sealift_method or to.method,
            packet_pages=_or(self.x_sealift_packet_pages, to.packet_pages),
            resume_window_s=_or(self.x_sealift_resume_window, to.resume_window_s),
        )

    def _throttling(self, to: Throttling) -> Throttling:
        return Throttling(
            initial=_or(self.cpu_throttle_initial, to.initial),
            increment=_or(self.cpu_throttle_increment, to.increment),
            tailslow=_or(self.cpu_throttle_tailslow, to.tailslow),
            maximum=_or(self.max_cpu_throttle, to.maximum),
            trigger_threshold=_or(self.throttle_trigger_threshold, to.trigger_threshold),
        )


def migrate(guest: Guest, arguments: MigrateArguments) -> None:
    """Begin a migration; query-migrate and MIGRATION events tell how it goes."""
    uri = migration_uri(arguments.uri, arguments.channels)
    if arguments.resume:
        guest.resume_migration(uri)
    else:
        guest.migrate(uri, {status.capability: status.state for status in arguments.once})


def migrate_incoming(guest: Guest, arguments: IncomingArguments) -> None:
    """Say where a guest is to arrive, for which the VMM was told to wait (`--incoming defer`)."""
    guest.receive(migration_uri(arguments.uri, arguments.channels))


def start_migration_handler(guest: Guest, _: NoArguments) -> None:
    """The RFC's; here the handler is started with the guest, so that it only has to answer."""
    guest.ask_handler()


def snapshot(guest: Guest, arguments: SnapshotArguments) -> None:
    """Begin a snapshot; query-migrate, migrate_cancel and MIGRATION events serve it as they do a migration."""
    guest.snapshot(Path(arguments.path), without_disks=arguments.without_disks)


def migrate_cancel(guest: Guest, _: NoArguments) -> None:
    """Give it up; with none underway, nothing happens."""
    guest.cancel_migration()


def migrate_continue(guest: Guest, arguments: ContinueArguments) -> None:
    """Let a migration go on that waits for its user (capability pause-before-switchover)."""
    guest.continue_migration(arguments.state)


def settle(guest: Guest, arguments: SettleArguments) -> None:
    """Let a guest that a lost target left fenced run on, or end it, as the target's token says."""
    guest.settle_migration(arguments.token)


def resume_request(guest: Guest, _: NoArguments) -> ResumeRequestInfo:
    """What a fenced guest's owner must see to let it run on here."""
    return ResumeRequestInfo(guest.resume_request())


def query_migrate(guest: Guest, _: NoArguments) -> MigrationInfo:
    """The last migration, if there was any, and what stands in the way of another one."""
    info = guest.migration() or MigrationInfo()
    return msgspec.structs.replace(info, blocked_reasons=guest.blocked_reasons())


def query_parameters(guest: Guest, _: NoArguments) -> MigrationParameters:
    """The parameters of the next migration."""
    return MigrationParameters.of(guest.parameters)


def set_parameters(guest: Guest, arguments: MigrationParameters) -> None:
    """Change parameters; a migration underway keeps its own."""
    guest.adjust(arguments.apply)


def query_migration_capabilities(guest: Guest, _: NoArguments) -> tuple[CapabilityStatus, ...]:
    """All there are."""
    on = guest.parameters.capabilities
    return tuple(CapabilityStatus(capability, capability in on) for capability in Capability)


def set_capabilities(guest: Guest, arguments: CapabilitiesArguments) -> None:
    """Change some of them, unless a migration is underway."""
    guest.switch({status.capability: status.state for status in arguments.capabilities})


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


COMMANDS = (
    Command("migrate", MigrateArguments, migrate, Runs.IN_THREAD),
    Command("migrate-incoming", IncomingArguments, migrate_incoming, Runs.IN_THREAD),
    Command("start-migrate-incoming", IncomingArguments, migrate_incoming, Runs.IN_THREAD),
    Command("start-migration-handler", NoArguments, start_migration_handler, Runs.IN_THREAD),
    Command("migrate_cancel", NoArguments, migrate_cancel, Runs.IN_THREAD),
    Command("migrate-continue", ContinueArguments, migrate_continue, Runs.IN_THREAD),
    Command("x-sealift-snapshot", SnapshotArguments, snapshot, Runs.IN_THREAD),
    Command("x-sealift-settle", SettleArguments, settle, Runs.IN_THREAD),
    Command("x-sealift-resume-request", NoArguments, resume_request, Runs.IN_THREAD),
    Command("query-migrate", NoArguments, query_migrate, Runs.IN_THREAD),
    Command("query-migrate-parameters", NoArguments, query_parameters),
    Command("migrate-set-parameters", MigrationParameters, set_parameters),
    Command("query-migrate-capabilities", NoArguments, query_migration_capabilities),
    Command("migrate-set-capabilities", CapabilitiesArguments, set_capabilities),
)
