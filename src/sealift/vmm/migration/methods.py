"""The migration methods: the one place that tells them apart."""

from __future__ import annotations

from sealift.errors import RefusedError
from sealift.vmm.launch import Launched
from sealift.vmm.machine import Machine
from sealift.vmm.migration import plain, psp
from sealift.vmm.migration.method import Entrance, RestoreEntrance, SnapshotMethod, SourceMethod
from sealift.vmm.migration.mh import HandlerEntrance, HandlerRestoreEntrance, HandlerSnapshot, HandlerSource
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.plain import PlainEntrance, PlainSource
from sealift.vmm.migration.psp import PspEntrance, PspSource
from sealift.vmm.migration.psp_snapshot import PspRestoreEntrance, PspSnapshot
from sealift.vmm.platform import Platform
from sealift.wire.handover import Method
from sealift.wire.obstacle import Code, Obstacle
from sealift.wire.owner import OwnerService
from sealift.wire.platform import GuestStatus, Phase


def blocked(method: Method, status: GuestStatus) -> tuple[Obstacle, ...]:
    """What stands in the way of every migration of a guest by this method, whatever the target."""
    is_plain = status.phase is Phase.PLAIN
    if is_plain is not (method is Method.PLAIN):
        return (Obstacle(Code.TYPE, plain.NOT_CONFIDENTIAL if is_plain else plain.CONFIDENTIAL),)
    match method:
        case Method.MH:
            return status.blocked
        case Method.PSP:
            return psp.blocked(status)
        case Method.PLAIN:
            return ()


def source_method(machine: Machine, launched: Launched, parameters: Parameters) -> SourceMethod:
    """The source's end.

    Raises:
        RefusedError: this guest cannot be moved by the method that the parameters ask for.
    """
    match parameters.method:
        case Method.MH:
            return HandlerSource(machine, launched, parameters)
        case Method.PSP:
            return PspSource(machine, parameters.packet_pages)
        case Method.PLAIN:
            return PlainSource(machine, parameters.channels)


def entrance_for(method: Method, platform: Platform, owner: OwnerService, startup: bytes) -> Entrance:
    """How a target lets in one guest; see `HandlerEntrance` for owner and start-up code, which only mh needs."""
    match method:
        case Method.MH:
            return HandlerEntrance(platform, owner, startup)
        case Method.PSP:
            return PspEntrance()
        case Method.PLAIN:
            return PlainEntrance()


def snapshot_method(machine: Machine, launched: Launched, parameters: Parameters) -> SnapshotMethod:
    """A snapshot's source.

    Raises:
        RefusedError: this guest cannot be saved by the method that the parameters ask for.
    """
    match parameters.method:
        case Method.MH:
            return HandlerSnapshot(machine, launched, parameters)
        case Method.PSP:
            return PspSnapshot(machine, parameters.packet_pages)
        case Method.PLAIN:
            raise RefusedError("a plain guest needs no snapshot; save it with `sealift migrate NAME file:PATH`")


def restore_entrance(
    method: Method, platform: Platform, owner: OwnerService, startup: bytes, offer: bytes
) -> RestoreEntrance:
    """How a snapshot with this offer is let in.

    Raises:
        RefusedError: the owner does not let it be restored here (mh).
        StreamError: the offer makes no sense.
    """
    match method:
        case Method.MH:
            return HandlerRestoreEntrance(platform, owner, startup, offer)
        case Method.PSP:
            return PspRestoreEntrance(offer)
        case Method.PLAIN:
            raise RefusedError("it holds a plain guest; load it with `sealift run --incoming file:PATH`")
