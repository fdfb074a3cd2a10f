"""qapi/control.json: the connection, and the VMM as such."""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from sealift.vmm.events import ShutdownCause
from sealift.vmm.guest import Guest
from sealift.vmm.qmp.events import EVENTS
from sealift.vmm.qmp.message import ErrorClass, QmpError, VersionInfo, VersionTriple
from sealift.vmm.qmp.table import Command, NoArguments

NEGOTIATE: Final = "qmp_capabilities"
"""The one command before negotiation."""

QEMU_RELEASE: Final = VersionTriple(10, 0, 0)
"""The release whose schema names, shapes and error classes are taken from."""


class QMPCapability(enum.Enum):
    """QEMU's QMPCapability; none is offered here."""

    OOB = "oob"


class NegotiationArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the client would like beyond the protocol itself."""

    enable: tuple[QMPCapability, ...] = ()


class EventInfo(msgspec.Struct, frozen=True):
    """QEMU's EventInfo."""

    name: str


def negotiate(_: Guest, __: NegotiationArguments) -> None:
    """Negotiation is a connection's (`sealift.vmm.qmp.session`); by the time commands are carried out, it is over."""
    raise QmpError("Capabilities negotiation is already complete, command ignored", ErrorClass.COMMAND_NOT_FOUND)


def version_info() -> VersionInfo:
    """What clients are told: QEMU's release for those who compare numbers, ours for people."""
    import importlib.metadata  # noqa: PLC0415  # it takes a tenth of a VMM's start

    return VersionInfo(QEMU_RELEASE, f"sealift-{importlib.metadata.version('sealift')}")


def query_version(_: Guest, __: NoArguments) -> VersionInfo:
    """VersionInfo."""
    return version_info()


def query_events(_: Guest, __: NoArguments) -> tuple[EventInfo, ...]:
    """EventInfo of every event; QEMU 6 dropped this command in favour of its schema."""
    return tuple(map(EventInfo, EVENTS))


def quit_vmm(guest: Guest, _: NoArguments) -> None:
    """End the VMM process, and the guest with it."""
    guest.end(ShutdownCause.HOST_QMP_QUIT)


COMMANDS = (
    Command(NEGOTIATE, NegotiationArguments, negotiate),
    Command("query-events", NoArguments, query_events),
    Command("query-version", NoArguments, query_version),
    Command("quit", NoArguments, quit_vmm),
)
