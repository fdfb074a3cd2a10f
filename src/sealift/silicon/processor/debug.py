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

    def dbg_decrypt(self, handle: int, gpa: int, length: int) -> bytes:
        """DBG_DECRYPT: what the guest sees at `gpa`.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_ADDRESS, INVALID_LENGTH, INVALID_GUEST, POLICY_FAILURE
                (NODBG), INACTIVE, in this order; INVALID_ADDRESS also for what is not RAM.
        """
        return bytes(self._debugged(Command.DBG_DECRYPT, handle, gpa, length).memory.view_private(gpa, length))

    def dbg_encrypt(self, handle: int, gpa: int, data: bytes) -> None:
        """DBG_ENCRYPT: make the guest see `data` at `gpa`.

        Raises:
            FirmwareError: as `dbg_decrypt`.
        """
        self._debugged(Command.DBG_ENCRYPT, handle, gpa, len(data)).memory.patch_private(gpa, data)

    def _debugged(self, command: Command, handle: int, gpa: int, length: int) -> GuestContext:
        require_platform(command, self._state)
        check_address(gpa)
        check_length(length)
        guest = self._named(command, handle)
        require_guest(command, guest.state)
        if guest.policy & Policy.NODBG:
            raise failure(Status.POLICY_FAILURE, f"{command.name} is not for a guest whose policy has NODBG")
        guest.require_active()
        return guest
