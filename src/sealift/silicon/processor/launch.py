"""Launch commands: a guest made from what the VMM supplies, under the eyes of its owner."""

from __future__ import annotations

import os
from typing import Final

from sealift.address import PAGE_SIZE
from sealift.errors import InternalError
from sealift.sev import measurement, packet, secret
from sealift.sev.policy import Policy
from sealift.sev.session import TransportKeys
from sealift.sev.status import Status, failure
from sealift.silicon.processor.core import Core
from sealift.silicon.processor.guest import FirmwareMemory, check_address, check_length, require_payload
from sealift.silicon.processor.room import require_room
from sealift.silicon.processor.states import Command, require_guest, require_platform

_NO_HANDLE: Final = 0


class LaunchCommands(Core):
    """LAUNCH_START to LAUNCH_FINISH."""

    def launch_start(
        self, memory: FirmwareMemory, policy: int, dh_cert: bytes, launch_session: bytes, share: int = _NO_HANDLE
    ) -> int:
        """LAUNCH_START: a new guest; it needs ACTIVATE before anything can be put into it.

        Args:
            memory: the guest's.
            policy: the owner's 32 bits.
            dh_cert: the owner's Diffie-Hellman certificate; empty for a launch without an owner, whose
                transport keys are zeros and whose policy's version and reserved bits are not checked.
            launch_session: the owner's session blob.
            share: handle of the guest to share a key with, 0 for a key of its own. Firmware checks whether it may;
                the key itself is the memory's.

        Returns:
            The guest's handle.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_LENGTH, INVALID_CERTIFICATE, BAD_MEASUREMENT,
                POLICY_FAILURE, INVALID_GUEST, RESOURCE_LIMIT or UNSUPPORTED, checked in this order.
        """
        require_platform(Command.LAUNCH_START, self._state)
        wanted = Policy(policy)
        with self._holding_keys() as keys:
            transport = TransportKeys.absent()
            if dh_cert:
                transport = self._open_session(keys, wanted, dh_cert, launch_session)
            self._check_sharing(wanted, share)
            return self._admit(Command.LAUNCH_START, memory, wanted, transport)

    def _check_sharing(self, policy: Policy, share: int) -> None:
        """A key can be shared only between guests of one policy that allows it."""
        if share == _NO_HANDLE:
            return
        other = self._named(Command.LAUNCH_START, share)
        if policy != other.policy:
            detail = f"the policy is {int(policy):#x}, and guest {share}, whose key it is to share, has another"
            raise failure(Status.POLICY_FAILURE, detail)
        if policy & Policy.NOKS:
            raise failure(Status.POLICY_FAILURE, f"the policy has NOKS, which forbids sharing the key of guest {share}")

    def launch_update_data(self, handle: int, gpa: int, length: int) -> None:
        """LAUNCH_UPDATE_DATA: measure and encrypt what the VMM put at `gpa`.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_ADDRESS, INVALID_LENGTH,
                INVALID_GUEST_STATE, INACTIVE; INVALID_ADDRESS also for what is not RAM.
        """
        guest = self._guest(Command.LAUNCH_UPDATE_DATA, handle)
        check_address(gpa)
        check_length(length)
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

    def launch_update_vmsa(self, handle: int, vcpu: int, vmsa: bytes) -> None:
        """LAUNCH_UPDATE_VMSA: measure the first registers of a vCPU, and hide them from the VMM.

        Args:
            handle: the guest.
            vcpu: whose save area it is; silicon is told its address instead.
            vmsa: the page as the VMM supplies it.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_LENGTH, INVALID_GUEST_STATE, INACTIVE,
                UNSUPPORTED (no SEV-ES guest); INVALID_ADDRESS, there is no such vCPU.
        """
        guest = self._guest(Command.LAUNCH_UPDATE_VMSA, handle)
        if len(vmsa) != PAGE_SIZE:
            raise failure(Status.INVALID_LENGTH, f"a VMSA has {PAGE_SIZE} bytes, not {len(vmsa)}")
        require_guest(Command.LAUNCH_UPDATE_VMSA, guest.state)
        guest.require_active()
        guest.require_es(Command.LAUNCH_UPDATE_VMSA)
        guest.memory.place_vmsa(vcpu, vmsa)
        guest.digest.update(vmsa)

    def launch_measure(self, handle: int, room: int = measurement.SIZE) -> bytes:
        """LAUNCH_MEASURE: close the measurement; 48 bytes, measurement and nonce.

        Args:
            handle: the guest.
            room: bytes of the caller's buffer.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_GUEST_STATE; INVALID_LENGTH
                (`ShortBufferError`), after which the command can be repeated.
        """
        guest = self._guest(Command.LAUNCH_MEASURE, handle)
        require_guest(Command.LAUNCH_MEASURE, guest.state)
        require_room(Command.LAUNCH_MEASURE, (room, measurement.SIZE))
        mnonce = os.urandom(measurement.MNONCE_SIZE)
        digest = guest.digest.copy().finalize()
        guest.launch_digest = digest
        guest.measure = measurement.measure(guest.session().tik, self.version, guest.policy, digest, mnonce)
        guest.advance(Command.LAUNCH_MEASURE)
        return guest.measure

    def launch_secret(self, handle: int, header: bytes, payload: bytes, gpa: int, length: int) -> None:
        """LAUNCH_SECRET: decrypt the owner's packet into guest memory at `gpa`; may be repeated.

        Args:
            handle: the guest.
            header: the packet's header.
            payload: the packet's payload.
            gpa: where the secret goes.
            length: bytes of guest memory it takes; the payload has as many, since nothing is compressed.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_ADDRESS, INVALID_LENGTH,
                INVALID_GUEST_STATE, INACTIVE, BAD_MEASUREMENT, UNSUPPORTED (compressed).
        """
        guest = self._guest(Command.LAUNCH_SECRET, handle)
        check_address(gpa)
        if len(header) != packet.HEADER_SIZE:
            detail = f"the secret's header has {packet.HEADER_SIZE} bytes, not {len(header)}"
            raise failure(Status.INVALID_LENGTH, detail)
        check_length(length, secret.SIZE_LIMIT)
        require_payload(payload, length)
        require_guest(Command.LAUNCH_SECRET, guest.state)
        guest.require_active()
        if guest.measure is None:
            raise InternalError(f"guest {guest.handle} in state {guest.state.name} was never measured")
        guest.memory.write_private(gpa, secret.open_packet(guest.session(), guest.measure, header, payload))

    def launch_finish(self, handle: int) -> None:
        """LAUNCH_FINISH: forget the transport keys; the guest may run.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_GUEST_STATE.
        """
        guest = self._guest(Command.LAUNCH_FINISH, handle)
        require_guest(Command.LAUNCH_FINISH, guest.state)
        guest.transport = None
        guest.advance(Command.LAUNCH_FINISH)
