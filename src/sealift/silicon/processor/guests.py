"""Guest management: which guests there are, which of them have an ASID, and reports about them."""

from __future__ import annotations

from sealift.sev import report
from sealift.sev.policy import Policy
from sealift.sev.report import AttestationReport
from sealift.sev.status import Status, failure
from sealift.silicon.processor.core import Core
from sealift.silicon.processor.guest import GuestFacts, GuestStatus
from sealift.silicon.processor.room import require_room
from sealift.silicon.processor.states import Command, GuestState, PlatformState, require_guest, require_platform


class GuestCommands(Core):
    """Commands on a guest whatever it is doing."""

    def activate(self, handle: int, asid: int) -> None:
        """ACTIVATE: give a guest an ASID, under which its key is installed in the memory controller.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_GUEST_STATE, INVALID_ASID, ASID_OWNED, ACTIVE,
                DFFLUSH_REQUIRED; INVALID_ASID for one of the other kind of guests; checked in this order.
        """
        guest = self._guest(Command.ACTIVATE, handle)
        require_guest(Command.ACTIVATE, guest.state)
        self._asids.require_known(asid)
        if guest.asid is not None:
            raise failure(Status.ACTIVE, f"guest {handle} has ASID {guest.asid}; DEACTIVATE it first")
        self._asids.own(asid, guest.policy)
        guest.asid = asid

    def deactivate(self, handle: int) -> None:
        """DEACTIVATE: take the ASID away; it stays dirty until WBINVD and DF_FLUSH.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INACTIVE.
        """
        guest = self._guest(Command.DEACTIVATE, handle)
        require_guest(Command.DEACTIVATE, guest.state)
        if guest.asid is None:
            raise failure(Status.INACTIVE, f"guest {handle} has no ASID")
        self._asids.disown(guest.asid)
        guest.asid = None

    def decommission(self, handle: int) -> None:
        """DECOMMISSION: forget a guest; after the last one the platform is in state INIT again.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, ACTIVE.
        """
        guest = self._guest(Command.DECOMMISSION, handle)
        require_guest(Command.DECOMMISSION, guest.state)
        if guest.asid is not None:
            raise failure(Status.ACTIVE, f"guest {handle} has ASID {guest.asid}; DEACTIVATE it first")
        del self._guests[handle]
        self._let_keys_go()
        if not self._guests:
            self._state = PlatformState.INIT

    def guest_status(self, handle: int) -> GuestStatus:
        """GUEST_STATUS; succeeds for any handle.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE.
        """
        require_platform(Command.GUEST_STATUS, self._state)
        guest = self._guests.get(handle)
        if guest is None:
            return GuestStatus(handle, Policy(0), 0, GuestState.UNINIT)
        return GuestStatus(handle, guest.policy, guest.asid or 0, guest.state)

    def attestation(self, handle: int, mnonce: bytes, room: int = report.SIZE) -> bytes:
        """ATTESTATION: the launch digest and policy of a guest, signed by the PEK; 208 bytes.

        Args:
            handle: the guest.
            mnonce: 16 bytes of the caller's.
            room: bytes of the caller's buffer.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_GUEST_STATE; INVALID_LENGTH, for a buffer
                that is too short (`ShortBufferError`) before a nonce of another length.
        """
        guest = self._guest(Command.ATTESTATION, handle)
        require_guest(Command.ATTESTATION, guest.state)
        require_room(Command.ATTESTATION, (room, report.SIZE))
        if len(mnonce) != report.MNONCE_SIZE:
            raise failure(Status.INVALID_LENGTH, f"the mnonce has {report.MNONCE_SIZE} bytes, not {len(mnonce)}")
        signer = self._keys().pek_key
        return AttestationReport(mnonce, guest.launch_digest, guest.policy).signed(signer).encode()

    def facts(self, handle: int) -> GuestFacts:
        """What anybody may know of a guest.

        Raises:
            FirmwareError: INVALID_GUEST.
        """
        return self._named(Command.GUEST_STATUS, handle).facts()
