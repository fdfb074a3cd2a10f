"""qapi/migration.json: move the guest, watch it move, change its mind."""

from __future__ import annotations

from pathlib import Path

import msgspec

from sealift.vmm.guest import Guest
from sealift.vmm.migration.parameters import Capability
from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.qmp.channels import MigrationChannel, migration_uri
from sealift.vmm.qmp.commands.migration_parameters import CapabilityStatus, MigrationParameters, Once
from sealift.vmm.qmp.table import Command, NoArguments, Runs


class MigrateArguments(Once, frozen=True, forbid_unknown_fields=True):
    """QEMU's arguments of migrate; `detach` has no meaning, as in QEMU.

    `resume` goes on with a migration whose connections were lost before the guest was stopped.
    """

    uri: str | None = None
    channels: tuple[MigrationChannel, ...] | None = None
    detach: bool = True
    resume: bool = False


class IncomingArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """QEMU's arguments of migrate-incoming."""

    uri: str | None = None
    channels: tuple[MigrationChannel, ...] | None = None


class CapabilitiesArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Those that are to change."""

    capabilities: tuple[CapabilityStatus, ...]


class SnapshotArguments(Once, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """The file to make, by its absolute path; `without_disks`: its user knows that disks are not in it."""

    path: str
    without_disks: bool = False


class ContinueArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """QEMU's argument of migrate-continue: where the migration is expected to wait."""

    state: MigrationStatus


class RecoverArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """QEMU's argument of migrate-recover: where to listen."""

    uri: str


class SettleArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The target's token or the owner's, in base64."""

    token: bytes


class ResumeRequestInfo(msgspec.Struct, frozen=True):
    """What a fenced guest's owner must see, in base64 (`sealift owner resume`)."""

    request: bytes


def migrate(guest: Guest, arguments: MigrateArguments) -> None:
    """Begin a migration; query-migrate and MIGRATION events tell how it goes."""
    uri = migration_uri(arguments.uri, arguments.channels)
    begin = guest.resume_migration if arguments.resume else guest.migrate
    begin(uri, arguments.apply)


def migrate_incoming(guest: Guest, arguments: IncomingArguments) -> None:
    """Say where a guest is to arrive, for which the VMM was told to wait (`--incoming defer`)."""
    guest.receive(migration_uri(arguments.uri, arguments.channels))


def start_migration_handler(guest: Guest, _: NoArguments) -> None:
    """The RFC's; here the handler is started with the guest, so that it only has to answer."""
    guest.ask_handler()


def snapshot(guest: Guest, arguments: SnapshotArguments) -> None:
    """Begin a snapshot; query-migrate, migrate_cancel and MIGRATION events serve it as they do a migration."""
    guest.snapshot(Path(arguments.path), without_disks=arguments.without_disks, once=arguments.apply)


def migrate_cancel(guest: Guest, _: NoArguments) -> None:
    """Give it up; with none underway, nothing happens."""
    guest.cancel_migration()


def migrate_continue(guest: Guest, arguments: ContinueArguments) -> None:
    """Let a migration go on that waits for its user (capability pause-before-switchover)."""
    guest.continue_migration(arguments.state)


def migrate_start_postcopy(guest: Guest, _: NoArguments) -> None:
    """Switch now (capability postcopy-ram): from then on there is no way back."""
    guest.start_postcopy()


def migrate_pause(guest: Guest, _: NoArguments) -> None:
    """End the connections of a post-copy migration; migrate with resume goes on."""
    guest.pause_migration()


def migrate_recover(guest: Guest, arguments: RecoverArguments) -> None:
    """At the target: await the source of a post-copy migration that is paused somewhere else."""
    guest.recover_migration(arguments.uri)


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
    """Change parameters, those of a migration underway too, as far as that can be."""
    guest.adjust(arguments.apply)


def query_migration_capabilities(guest: Guest, _: NoArguments) -> tuple[CapabilityStatus, ...]:
    """All there are."""
    on = guest.parameters.capabilities
    return tuple(CapabilityStatus(capability, capability in on) for capability in Capability)


def set_capabilities(guest: Guest, arguments: CapabilitiesArguments) -> None:
    """Change some of them, unless a migration is underway."""
    guest.switch({status.capability: status.state for status in arguments.capabilities})


COMMANDS = (
    Command("migrate", MigrateArguments, migrate, Runs.IN_THREAD),
    Command("migrate-incoming", IncomingArguments, migrate_incoming, Runs.IN_THREAD),
    Command("start-migrate-incoming", IncomingArguments, migrate_incoming, Runs.IN_THREAD),
    Command("start-migration-handler", NoArguments, start_migration_handler, Runs.IN_THREAD),
    Command("migrate_cancel", NoArguments, migrate_cancel, Runs.IN_THREAD),
    Command("migrate-continue", ContinueArguments, migrate_continue, Runs.IN_THREAD),
    Command("migrate-start-postcopy", NoArguments, migrate_start_postcopy, Runs.IN_THREAD),
    Command("migrate-pause", NoArguments, migrate_pause, Runs.IN_THREAD),
    Command("migrate-recover", RecoverArguments, migrate_recover, Runs.IN_THREAD),
    Command("x-sealift-snapshot", SnapshotArguments, snapshot, Runs.IN_THREAD),
    Command("x-sealift-settle", SettleArguments, settle, Runs.IN_THREAD),
    Command("x-sealift-resume-request", NoArguments, resume_request, Runs.IN_THREAD),
    Command("query-migrate", NoArguments, query_migrate, Runs.IN_THREAD),
    Command("query-migrate-parameters", NoArguments, query_parameters),
    Command("migrate-set-parameters", MigrationParameters, set_parameters, Runs.IN_THREAD),
    Command("query-migrate-capabilities", NoArguments, query_migration_capabilities),
    Command("migrate-set-capabilities", CapabilitiesArguments, set_capabilities, Runs.IN_THREAD),
)
