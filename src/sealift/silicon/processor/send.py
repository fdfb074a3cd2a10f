"""Send commands: a guest leaves for another platform, by the secure processors alone.

::

    source                                                      target
    SEND_START(target's certificates)  ── policy, session ───►  RECEIVE_START(source's PDH)
    SEND_UPDATE_DATA, _VMSA            ── packets ───────────►  RECEIVE_UPDATE_DATA, _VMSA
    SEND_FINISH                                                 RECEIVE_FINISH

A packet says neither which memory it holds nor which packet it is, and can be received again: order and completeness
are the VMMs'. Nor does the source learn whether the target started, so that SEND_CANCEL after all packets were sent
leaves two guests. Owners who mind set NOSEND.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sealift.address import PAGE_SIZE
from sealift.errors import SealError, StreamError
from sealift.sev import packet, session
from sealift.sev.certificate import Certificate
from sealift.sev.chain import OwnerChain, PlatformChain
from sealift.sev.packet import Context
from sealift.sev.policy import Policy
from sealift.sev.session import Session, TransportKeys
from sealift.sev.status import Status, failure
from sealift.silicon.processor.core import Core
from sealift.silicon.processor.guest import GuestContext, check_address, check_length
from sealift.silicon.processor.room import ShortBufferError, require_room
from sealift.silicon.processor.states import Command, require_guest

PACKET_LIMIT: Final = 1 << 20
"""Bytes of guest memory in one packet: at this size what a command costs is the cipher, not the command."""


@dataclass(frozen=True, slots=True)
class SendStarted:
    """Answer of SEND_START; RECEIVE_START needs it, and the PDH of the platform that sends."""

    policy: Policy
    session: bytes


@dataclass(frozen=True, slots=True)
class Packet:
    """Header and payload of one packet; both are public."""

    header: bytes
    payload: bytes


class SendCommands(Core):
    """SEND_START to SEND_FINISH or SEND_CANCEL."""

    def send_start(
        self, handle: int, pdh: bytes, plat_certs: bytes, amd_certs: bytes, session_room: int = session.SIZE
    ) -> SendStarted:
        """SEND_START: agree with the target's secure processor, as the guest's policy allows.

        Args:
            handle: the guest.
            pdh: the target's PDH certificate.
            plat_certs: the target's PEK||OCA||CEK; looked at if the policy has SEV or DOMAIN.
            amd_certs: ASK||ARK; looked at if the policy has SEV.
            session_room: bytes of the caller's buffer for the session.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_LENGTH (`ShortBufferError`),
                INVALID_GUEST_STATE, POLICY_FAILURE (NOSEND, then the chain of SEV, then that of DOMAIN),
                INVALID_LENGTH, INVALID_CERTIFICATE (the PDH), in this order.
        """
        guest = self._guest(Command.SEND_START, handle)
        if session_room != session.SIZE:
            raise ShortBufferError(Command.SEND_START, (session.SIZE,))
        require_guest(Command.SEND_START, guest.state)
        if guest.policy & Policy.NOSEND:
            raise failure(Status.POLICY_FAILURE, "the policy has NOSEND")
        own = self._keys()
        if guest.policy & Policy.SEV:
            _check_chip(guest.policy, pdh, plat_certs, amd_certs, self._identity.root)
        if guest.policy & Policy.DOMAIN:
            _check_domain(pdh, plat_certs, own.oca)
        secret = session.shared_secret(own.pdh_key, session.peer_key(pdh))
        transport = TransportKeys.fresh()
        made = Session.wrap(secret, transport, guest.policy)
        guest.transport = transport
        guest.advance(Command.SEND_START)
        return SendStarted(guest.policy, made.encode())

    def send_update_data(
        self,
        handle: int,
        gpa: int,
        length: int,
        header_room: int = packet.HEADER_SIZE,
        trans_room: int | None = None,
    ) -> Packet:
        """SEND_UPDATE_DATA: `length` bytes of private memory at `gpa`, under the session's keys.

        Args:
            handle: the guest.
            gpa: where they are.
            length: how many, at most `PACKET_LIMIT`.
            header_room: bytes of the caller's buffer for the header.
            trans_room: bytes of the caller's buffer for the payload; just enough if None.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_LENGTH (a header's buffer that is too short,
                `ShortBufferError`; the length; the payload's buffer, `ShortBufferError`), INVALID_ADDRESS,
                INVALID_GUEST_STATE, INACTIVE, in this order; INVALID_ADDRESS also for what is not RAM.
        """
        command = Command.SEND_UPDATE_DATA
        guest = self._guest(command, handle)
        _check_rooms(command, length, (header_room, length if trans_room is None else trans_room))
        check_address(gpa)
        require_guest(command, guest.state)
        guest.require_active()
        return _sealed(guest, Context.DATA, guest.memory.view_private(gpa, length))

    def send_update_vmsa(
        self, handle: int, vcpu: int, header_room: int = packet.HEADER_SIZE, trans_room: int = PAGE_SIZE
    ) -> Packet:
        """SEND_UPDATE_VMSA: the registers of a vCPU that is out of guest mode, under the session's keys.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_LENGTH (`ShortBufferError`),
                INVALID_GUEST_STATE, INACTIVE, UNSUPPORTED (no SEV-ES guest), in this order; INVALID_ADDRESS, there is
                no such vCPU.
        """
        command = Command.SEND_UPDATE_VMSA
        guest = self._guest(command, handle)
        _check_rooms(command, PAGE_SIZE, (header_room, trans_room))
        require_guest(command, guest.state)
        guest.require_active()
        guest.require_es(command)
        return _sealed(guest, self._profile.vmsa_context, guest.memory.read_vmsa(vcpu))

    def seal_stream(self, handle: int, digest: bytes) -> bytes:
        """Not a command of AMD's: the MAC by which the receiver knows what came beside this session's packets.

        Args:
            handle: the guest.
            digest: SHA-256 of all of it; the caller's, who could have had the packets say anything anyway.

        Raises:
            FirmwareError: as SEND_UPDATE_DATA for the platform, the guest and its state.
        """
        guest = self._guest(Command.SEND_UPDATE_DATA, handle)
        require_guest(Command.SEND_UPDATE_DATA, guest.state)
        return packet.stream_mac(guest.session(), digest)

    def send_finish(self, handle: int) -> None:
        """SEND_FINISH: the guest has left; it never runs here again.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_GUEST_STATE.
        """
        self._close(Command.SEND_FINISH, handle)

    def send_cancel(self, handle: int) -> None:
        """SEND_CANCEL: the guest stays; it may be sent again, with other keys.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_GUEST_STATE.
        """
        self._close(Command.SEND_CANCEL, handle)

    def _close(self, command: Command, handle: int) -> None:
        """Forget the session's keys and go on to the next state."""
        guest = self._guest(command, handle)
        require_guest(command, guest.state)
        guest.transport = None
        guest.advance(command)


def _check_rooms(command: Command, length: int, rooms: tuple[int, int]) -> None:
    """Check buffers for header and payload, and the length between them, in firmware's order."""
    header_room, trans_room = rooms
    if header_room < packet.HEADER_SIZE:
        raise ShortBufferError(command, (packet.HEADER_SIZE, max(length, 0)))
    check_length(length, PACKET_LIMIT)
    require_room(command, (header_room, packet.HEADER_SIZE), (trans_room, length))


def _sealed(guest: GuestContext, context: Context, plain: bytes | memoryview) -> Packet:
    header, payload = packet.seal(guest.session(), context, plain)
    return Packet(header.encode(), payload)


def _check_chip(policy: Policy, pdh: bytes, plat_certs: bytes, amd_certs: bytes, root: bytes) -> None:
    """SEV: the target is a genuine platform, of an API version that the policy accepts."""
    try:
        target = PlatformChain.decode(pdh, plat_certs, amd_certs)
        target.verify_platform({root})
    except (StreamError, SealError) as error:
        raise failure(Status.POLICY_FAILURE, "the policy has SEV, and the target's chain does not hold") from error
    if target.pek.api < policy.api:
        detail = f"the policy asks for API {policy.api[0]}.{policy.api[1]}, and the target has an older one"
        raise failure(Status.POLICY_FAILURE, detail)


def _check_domain(pdh: bytes, plat_certs: bytes, own: Certificate) -> None:
    """DOMAIN: the target has the same owner, to the last byte of its certificate."""
    try:
        target = OwnerChain.decode(pdh, plat_certs)
        target.verify()
    except (StreamError, SealError) as error:
        raise failure(Status.POLICY_FAILURE, "the policy has DOMAIN, and the target's chain does not hold") from error
    if target.oca != own:
        raise failure(Status.POLICY_FAILURE, "the policy has DOMAIN, and the target's OCA is not this platform's")
