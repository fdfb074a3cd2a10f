"""What the launch commands do to one guest, once platform and handle are known to be right."""

from __future__ import annotations

import os

from sealift.address import PAGE_SIZE
from sealift.errors import InternalError
from sealift.sev import measurement, packet, secret
from sealift.sev.measurement import FirmwareVersion
from sealift.sev.policy import Policy
from sealift.sev.status import Status, failure
from sealift.silicon.processor.guest import GuestContext, check_range
from sealift.silicon.processor.room import require_room
from sealift.silicon.processor.states import Command, require_guest


def update_data(guest: GuestContext, gpa: int, length: int) -> None:
    """LAUNCH_UPDATE_DATA: measure what the VMM put at `gpa` and make it the guest's.

    Raises:
        FirmwareError: INVALID_ADDRESS, INVALID_LENGTH, INVALID_GUEST_STATE, INACTIVE, in this order;
            INVALID_ADDRESS also for what is not RAM.
    """
    check_range(gpa, length)
    require_guest(Command.LAUNCH_UPDATE_DATA, guest.state)
    guest.require_active()
    digest = guest.digest.copy()
    measured = 0
    for part in guest.memory.move_to_private(gpa, length):
        digest.update(part)
        measured += part.nbytes
    if measured != length:
        raise InternalError(f"LAUNCH_UPDATE_DATA measured {measured} bytes of {length}")
    guest.digest = digest


def update_vmsa(guest: GuestContext, vcpu: int, vmsa: bytes) -> None:
    """LAUNCH_UPDATE_VMSA: measure the page as the hypervisor supplies it.

    Raises:
        FirmwareError: INVALID_LENGTH, INVALID_GUEST_STATE, INACTIVE, UNSUPPORTED, in this order.
    """
    if len(vmsa) != PAGE_SIZE:
        raise failure(Status.INVALID_LENGTH, f"the VMSA of vCPU {vcpu} has {len(vmsa)} bytes, not {PAGE_SIZE}")
    require_guest(Command.LAUNCH_UPDATE_VMSA, guest.state)
    guest.require_active()
    if Policy.ES not in guest.policy:
        raise failure(Status.UNSUPPORTED, "a guest whose policy does not ask for SEV-ES has no VMSAs")
    guest.digest.update(vmsa)


def measure(guest: GuestContext, version: FirmwareVersion, room: int) -> bytes:
    """LAUNCH_MEASURE: close the measurement, bound to `version`.

    Raises:
        FirmwareError: INVALID_GUEST_STATE; INVALID_LENGTH (`ShortBufferError`).
    """
    require_guest(Command.LAUNCH_MEASURE, guest.state)
    require_room(Command.LAUNCH_MEASURE, (room, measurement.SIZE))
    mnonce = os.urandom(measurement.MNONCE_SIZE)
    digest = guest.digest.copy().finalize()
    guest.measure = measurement.measure(guest.session().tik, version, guest.policy, digest, mnonce)
    guest.advance(Command.LAUNCH_MEASURE)
    return guest.measure


def inject_secret(guest: GuestContext, header: bytes, payload: bytes, gpa: int, length: int) -> None:
    """LAUNCH_SECRET: decrypt the owner's packet into `length` bytes of guest memory at `gpa`.

    Raises:
        FirmwareError: INVALID_ADDRESS, INVALID_LENGTH, INVALID_GUEST_STATE, INACTIVE, BAD_MEASUREMENT,
            UNSUPPORTED (compressed), in this order.
    """
    check_range(gpa, length)
    if len(header) != packet.HEADER_SIZE or length > secret.SIZE_LIMIT or length != len(payload):
        detail = f"a header of {len(header)} and a payload of {len(payload)} bytes for {length} bytes of memory"
        raise failure(Status.INVALID_LENGTH, detail)
    require_guest(Command.LAUNCH_SECRET, guest.state)
    guest.require_active()
    if guest.measure is None:
        raise InternalError(f"guest {guest.handle} in state {guest.state.name} was never measured")
    guest.memory.write_private(gpa, secret.open_packet(guest.session(), guest.measure, header, payload))


def finish(guest: GuestContext) -> None:
    """LAUNCH_FINISH: forget the session's keys; the guest may run.

    Raises:
        FirmwareError: INVALID_GUEST_STATE.
    """
    require_guest(Command.LAUNCH_FINISH, guest.state)
    guest.transport = None
    guest.advance(Command.LAUNCH_FINISH)
