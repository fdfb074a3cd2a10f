"""qapi/migration.json: move the guest, watch it move, change its mind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec

from sealift.vmm.guest import Guest
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.qmp.table import Command, NoArguments, Runs
from sealift.wire.handover import Method, Transfer


class MigrateArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """QEMU's arguments of migrate; `detach` has no meaning, as in QEMU."""

    uri: str
    detach: bool = True


class SnapshotArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """The file to make, by its absolute path; `without_disks`: its user knows that disks are not in it."""

    path: str
    without_disks: bool = False


class SettleArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The target's token, in base64."""

    token: bytes


class MigrationParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", omit_defaults=True):
    """QEMU's MigrationParameters as far as they exist here; milliseconds, and bytes a second.

    `x_sealift_method` says who encrypts the guest, and then `x_sealift_transfer` how records leave the migration
    handler (mh), `multifd_channels` in how many streams, `x_sealift_packet_pages` how large packets are (psp).
    """

    downtime_limit: int | None = None
    max_bandwidth: int | None = None
    multifd_channels: int | None = None
    x_sealift_transfer: Transfer | None = None
    x_sealift_method: Method | None = None
    x_sealift_packet_pages: int | None = None

    @classmethod
    def of(cls, parameters: Parameters) -> MigrationParameters:
        """In QEMU's names."""
        return cls(
            parameters.downtime_limit_ms,
            parameters.max_bandwidth,
            parameters.channels,
            parameters.transfer,
            parameters.method,
            parameters.packet_pages,
        )

    def apply(self, to: Parameters) -> Parameters:
        """The parameters with those changed that are given."""
        return replace(
            to,
            downtime_limit_ms=_or(self.downtime_limit, to.downtime_limit_ms),
            max_bandwidth=_or(self.max_bandwidth, to.max_bandwidth),
            channels=_or(self.multifd_channels, to.channels),
            transfer=self.x_sealift_transfer or to.transfer,
            method=self.x_sealift_method or to.method,
            packet_pages=_or(self.x_sealift_packet_pages, to.packet_pages),
        )


def migrate(guest: Guest, arguments: MigrateArguments) -> None:
    """Begin a migration; query-migrate and MIGRATION events tell how it goes."""
    guest.migrate(arguments.uri)


def snapshot(guest: Guest, arguments: SnapshotArguments) -> None:
    """Begin a snapshot; query-migrate, migrate_cancel and MIGRATION events serve it as they do a migration."""
    guest.snapshot(Path(arguments.path), without_disks=arguments.without_disks)


def migrate_cancel(guest: Guest, _: NoArguments) -> None:
    """Give it up; with none underway, nothing happens."""
    guest.cancel_migration()


def settle(guest: Guest, arguments: SettleArguments) -> None:
    """Let a guest that a lost target left fenced run on, or end it, as the target's token says."""
    guest.settle_migration(arguments.token)


def query_migrate(guest: Guest, _: NoArguments) -> MigrationInfo:
    """The last migration, if there was any, and what stands in the way of another one."""
    info = guest.migration() or MigrationInfo()
    return msgspec.structs.replace(info, blocked_reasons=guest.blocked_reasons())


def query_parameters(guest: Guest, _: NoArguments) -> MigrationParameters:
    """The parameters of the next migration."""
    return MigrationParameters.of(guest.parameters)


def set_parameters(guest: Guest, arguments: MigrationParameters) -> None:
    """Change parameters; a migration underway keeps its own."""
    guest.parameters = arguments.apply(guest.parameters)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


COMMANDS = (
    Command("migrate", MigrateArguments, migrate, Runs.IN_THREAD),
    Command("migrate_cancel", NoArguments, migrate_cancel, Runs.IN_THREAD),
    Command("x-sealift-snapshot", SnapshotArguments, snapshot, Runs.IN_THREAD),
    Command("x-sealift-settle", SettleArguments, settle, Runs.IN_THREAD),
    Command("query-migrate", NoArguments, query_migrate, Runs.IN_THREAD),
    Command("query-migrate-parameters", NoArguments, query_parameters),
    Command("migrate-set-parameters", MigrationParameters, set_parameters),
)
