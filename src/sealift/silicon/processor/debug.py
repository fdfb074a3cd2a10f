"""Debug commands: a guest's private memory in clear, for guests whose policy lets its host look.

On silicon DBG_DECRYPT copies between two addresses of host memory; here the other side of the copy is the caller.
"""

from __future__ import annotations

from sealift.sev.policy import Policy
from sealift.sev.status import Status, failure
from sealift.silicon.processor.core import Core
from sealift.silicon.processor.guest import GuestContext, check_address, check_length
from sealift.silicon.processor.states import Command, require_guest, require_platform


class DebugCommands(Core):
    """DBG_DECRYPT and DBG_ENCRYPT; in any state of the guest."""

    def dbg_decrypt(self, handle: int, gpa: int, destination: memoryview) -> None:
        """DBG_DECRYPT: fill `destination` with what the guest sees at `gpa`.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_ADDRESS, INVALID_LENGTH, INVALID_GUEST, POLICY_FAILURE
                (NODBG), INACTIVE, in this order; INVALID_ADDRESS also for what is not RAM.
        """
        area = gpa, len(destination)
        self._debugged(Command.DBG_DECRYPT, handle, area).memory.copy_private(gpa, destination)

    def dbg_encrypt(self, handle: int, gpa: int, data: bytes) -> None:
        """DBG_ENCRYPT: make the guest see `data` at `gpa`.

        Raises:
            FirmwareError: as `dbg_decrypt`.
        """
        self._debugged(Command.DBG_ENCRYPT, handle, (gpa, len(data))).memory.patch_private(gpa, data)

    def dbg_decrypt_vmsa(self, handle: int, vcpu: int) -> bytes:
        """DBG_DECRYPT of the save area of a vCPU that is out of guest mode.

        Raises:
            FirmwareError: as `dbg_decrypt`; INVALID_ADDRESS, the vCPU has no save area.
        """
        return self._debugged(Command.DBG_DECRYPT, handle).memory.read_vmsa(vcpu)

    def dbg_encrypt_vmsa(self, handle: int, vcpu: int, page: bytes) -> None:
        """DBG_ENCRYPT of the save area of a vCPU that is out of guest mode.

        Raises:
            FirmwareError: as `dbg_decrypt_vmsa`.
        """
        memory = self._debugged(Command.DBG_ENCRYPT, handle).memory
        memory.read_vmsa(vcpu)
        memory.place_vmsa(vcpu, page)

    def _debugged(self, command: Command, handle: int, area: tuple[int, int] | None = None) -> GuestContext:
        """The guest to be debugged; `area` is the address and length that the command names, if it names any."""
        require_platform(command, self._state)
        if area is not None:
            check_address(area[0])
            check_length(area[1])
        guest = self._named(command, handle)
        require_guest(command, guest.state)
        if guest.policy & Policy.NODBG:
            raise failure(Status.POLICY_FAILURE, f"{command.name} is not for a guest whose policy has NODBG")
        guest.require_active()
        return guest
