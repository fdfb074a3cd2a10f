"""qapi/control.json: the connection, and the VMM as such."""

from __future__ import annotations

import importlib.metadata

from sealift.vmm.events import ShutdownCause
from sealift.vmm.guest import Guest
from sealift.vmm.qmp.message import VersionInfo, VersionTriple
from sealift.vmm.qmp.table import Command, NoArguments

QEMU_RELEASE = VersionTriple(10, 0, 0)
"""The release whose schema names, shapes and error classes are taken from."""


def version_info() -> VersionInfo:
    """What clients are told: QEMU's release for those who compare numbers, ours for people."""
    return VersionInfo(QEMU_RELEASE, f"sealift-{importlib.metadata.version('sealift')}")


def query_version(_: Guest, __: NoArguments) -> VersionInfo:
    """VersionInfo."""
    return version_info()


def quit_vmm(guest: Guest, _: NoArguments) -> None:
    """End the VMM process, and the guest with it."""
    guest.end(ShutdownCause.HOST_QMP_QUIT)


COMMANDS = (
    Command("query-version", NoArguments, query_version),
    Command("quit", NoArguments, quit_vmm),
)
