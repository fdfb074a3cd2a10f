"""Receive commands: a guest arrives from another platform; see ``send`` for the exchange."""

from __future__ import annotations

import hmac

from sealift.address import PAGE_SIZE
from sealift.sev import packet
from sealift.sev.packet import COMPRESSED, Context, Header
from sealift.sev.policy import Policy
from sealift.sev.status import Status, failure
from sealift.silicon.processor.core import Core
from sealift.silicon.processor.guest import (
    FirmwareMemory,
    GuestContext,
    check_address,
    check_length,
    require_payload,
)
from sealift.silicon.processor.send import PACKET_LIMIT
from sealift.silicon.processor.states import Command, require_guest, require_platform


class ReceiveCommands(Core):
    """RECEIVE_START to RECEIVE_FINISH."""

    def receive_start(self, memory: FirmwareMemory, policy: int, pdh: bytes, send_session: bytes) -> int:
        """RECEIVE_START: a new guest, under the policy it had; it needs ACTIVATE before data can be received.

        Args:
            memory: where the guest will be.
            policy: of SEND_START's answer.
            pdh: the PDH certificate of the platform that sends.
            send_session: of SEND_START's answer.

        Returns:
            The guest's handle.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_LENGTH (session, then PDH), INVALID_CERTIFICATE,
                BAD_MEASUREMENT, POLICY_FAILURE, RESOURCE_LIMIT or UNSUPPORTED, checked in this order.
        """
        require_platform(Command.RECEIVE_START, self._state)
        wanted = Policy(policy)
        with self._holding_keys() as keys:
            transport = self._open_session(keys, wanted, pdh, send_session)
            return self._admit(Command.RECEIVE_START, memory, wanted, transport)

    def receive_update_data(self, handle: int, header: bytes, payload: bytes, gpa: int, length: int) -> None:
        """RECEIVE_UPDATE_DATA: put a packet's content at `gpa`.

        Args:
            handle: the guest.
            header: the packet's.
            payload: the packet's.
            gpa: where the content goes; a packet does not say where it was.
            length: bytes of guest memory it takes; the payload has as many, since nothing is compressed.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_LENGTH, INVALID_ADDRESS,
                INVALID_GUEST_STATE, INACTIVE, UNSUPPORTED (compressed), BAD_MEASUREMENT, in this order;
                INVALID_ADDRESS also for what is not RAM.
        """
        command = Command.RECEIVE_UPDATE_DATA
        guest = self._guest(command, handle)
        _check_lengths(header, payload, length)
        check_address(gpa)
        require_guest(command, guest.state)
        guest.require_active()
        guest.memory.write_private(gpa, _opened(guest, Context.DATA, header, payload))

    def receive_update_vmsa(self, handle: int, vcpu: int, header: bytes, payload: bytes) -> None:
        """RECEIVE_UPDATE_VMSA: make a packet's content the registers of a vCPU.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_LENGTH, INVALID_GUEST_STATE, INACTIVE,
                UNSUPPORTED (no SEV-ES guest, or compressed), BAD_MEASUREMENT, in this order; INVALID_ADDRESS, there is
                no such vCPU.
        """
        command = Command.RECEIVE_UPDATE_VMSA
        guest = self._guest(command, handle)
        _check_lengths(header, payload, PAGE_SIZE)
        require_guest(command, guest.state)
        guest.require_active()
        guest.require_es(command)
        guest.memory.place_vmsa(vcpu, _opened(guest, self._profile.vmsa_context, header, payload))

    def check_stream(self, handle: int, digest: bytes, mac: bytes) -> None:
        """Not a command of AMD's: whether `mac` is `seal_stream`'s of the same session for `digest`.

        Raises:
            FirmwareError: as RECEIVE_UPDATE_DATA for the platform, the guest and its state; BAD_MEASUREMENT.
        """
        guest = self._guest(Command.RECEIVE_UPDATE_DATA, handle)
        require_guest(Command.RECEIVE_UPDATE_DATA, guest.state)
        if not hmac.compare_digest(packet.stream_mac(guest.session(), digest), mac):
            detail = "the MAC over what came beside the packets fails: it is not what the session's source vouched for"
            raise failure(Status.BAD_MEASUREMENT, detail)

    def receive_finish(self, handle: int) -> None:
        """RECEIVE_FINISH: forget the session's keys; the guest may run.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_GUEST_STATE.
        """
        guest = self._guest(Command.RECEIVE_FINISH, handle)
        require_guest(Command.RECEIVE_FINISH, guest.state)
        guest.transport = None
        guest.advance(Command.RECEIVE_FINISH)


def _check_lengths(header: bytes, payload: bytes, length: int) -> None:
    if len(header) < packet.HEADER_SIZE:
        detail = f"a packet's header has at least {packet.HEADER_SIZE} bytes, not {len(header)}"
        raise failure(Status.INVALID_LENGTH, detail)
    check_length(length, PACKET_LIMIT)
    require_payload(payload, length)


def _opened(guest: GuestContext, context: Context, header: bytes, payload: bytes) -> bytes:
    decoded = Header.decode(header[: packet.HEADER_SIZE])
    if decoded.flags & COMPRESSED:
        raise failure(Status.UNSUPPORTED, packet.COMPRESSED_FLAG)
    return packet.unseal(guest.session(), context, decoded, payload)
