"""The secure processor's firmware: SEV commands with the checks, and the order of checks, of AMD's.

A command either does all it says or raises `FirmwareError` with the status code silicon would give, and changes
nothing. Platform and guest states are the tables in ``states``; what commands do to a guest is in ``launch``.
Firmware reaches guest memory only through the `LaunchMemory` that LAUNCH_START is given, one per guest.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from sealift.sev import certificate, chain, measurement, session
from sealift.sev.measurement import FirmwareVersion
from sealift.sev.policy import Policy
from sealift.sev.session import TransportKeys
from sealift.sev.status import Status, failure
from sealift.silicon.processor import launch
from sealift.silicon.processor.guest import GuestContext, GuestFacts, GuestStatus, LaunchMemory
from sealift.silicon.processor.identity import PlatformIdentity
from sealift.silicon.processor.platformkeys import PlatformKeys
from sealift.silicon.processor.room import require_room
from sealift.silicon.processor.states import COMMANDS, Command, GuestState, PlatformState, require_platform

__all__ = ["GUEST_SLOTS", "INIT_ES", "VERSION", "LaunchMemory", "SecureProcessor"]

VERSION: Final = FirmwareVersion(api_major=1, api_minor=55, build_id=25)
"""What this firmware says it is: AMD's 1.55.25, whose behaviour it follows."""

GUEST_SLOTS: Final = 1
"""Guests at a time: a platform process is one socket that serves one VMM."""

INIT_ES: Final = 1
"""INIT flag bit 0: prepare the platform for SEV-ES guests."""

_ASID: Final = 1
_NO_HANDLE: Final = 0


@dataclass(frozen=True, slots=True)
class PlatformStatus:
    """Answer of PLATFORM_STATUS; `owned` is true for an external owner."""

    version: FirmwareVersion
    state: PlatformState
    owned: bool
    es: bool
    guests: int


@dataclass(frozen=True, slots=True)
class PlatformCertificates:
    """PDH, and PEK||OCA||CEK."""

    pdh: bytes
    cert_chain: bytes


class SecureProcessor:
    """One secure processor; not thread-safe.

    Args:
        identity: the host's.
        version: what the firmware says it is.
    """

    def __init__(self, identity: PlatformIdentity, version: FirmwareVersion = VERSION) -> None:
        self._identity = identity
        self._version = version
        self._state = PlatformState.UNINIT
        self._es = False
        self._guests: dict[int, GuestContext] = {}
        self._next_handle = 1

    def close(self) -> None:
        """Forget all guests, as power-off would, and let the host's keys change again."""
        for guest in self._guests.values():
            guest.keys_held.release()
        self._guests.clear()
        self._state = PlatformState.UNINIT

    # --- platform ---------------------------------------------------------------------------------------------

    def init(self, flags: int = 0) -> None:
        """INIT: make what keys are missing, and be ready for guests.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE; INVALID_PARAM for unknown flags.
            UserError: the host's identity is damaged.
        """
        require_platform(Command.INIT, self._state)
        if flags & ~INIT_ES:
            raise failure(Status.INVALID_PARAM, f"INIT does not know flags {flags:#x}")
        self._identity.provision(self._version.api)
        self._es = bool(flags & INIT_ES)
        self._advance(Command.INIT)

    def platform_status(self) -> PlatformStatus:
        """PLATFORM_STATUS: in any state; before INIT only version and state mean something."""
        owned = self._state is not PlatformState.UNINIT and self._keys().externally_owned
        return PlatformStatus(self._version, self._state, owned, es=self._es, guests=len(self._guests))

    def pdh_cert_export(
        self, pdh_room: int = certificate.SIZE, chain_room: int = chain.CERT_CHAIN_SIZE
    ) -> PlatformCertificates:
        """PDH_CERT_EXPORT: the certificates firmware has, so the CEK's carries no signature.

        Args:
            pdh_room: bytes of the caller's buffer for the PDH.
            chain_room: bytes of the caller's buffer for PEK||OCA||CEK.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE; INVALID_LENGTH (`ShortBufferError`).
        """
        require_platform(Command.PDH_CERT_EXPORT, self._state)
        sizes = (pdh_room, certificate.SIZE), (chain_room, chain.CERT_CHAIN_SIZE)
        require_room(Command.PDH_CERT_EXPORT, *sizes)
        return self._certificates(self._identity.cek.unsigned())

    def endorsed_certificates(self) -> PlatformCertificates:
        """PDH_CERT_EXPORT with the CEK as the manufacturer's key server serves it: what owners verify.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE.
        """
        require_platform(Command.PDH_CERT_EXPORT, self._state)
        return self._certificates(self._identity.cek)

    @property
    def ca_chain(self) -> bytes:
        """ASK||ARK, as the manufacturer publishes them."""
        return self._identity.ca_chain

    @property
    def version(self) -> FirmwareVersion:
        """API version and build."""
        return self._version

    # --- launch -----------------------------------------------------------------------------------------------

    def launch_start(
        self, memory: LaunchMemory, policy: int, dh_cert: bytes, launch_session: bytes, share: int = _NO_HANDLE
    ) -> int:
        """LAUNCH_START, and ACTIVATE as KVM does in the same call.

        Args:
            memory: the guest's.
            policy: the owner's 32 bits.
            dh_cert: the owner's Diffie-Hellman certificate; empty for a launch without an owner, whose
                transport keys are zeros and whose policy's version and reserved bits are not checked.
            launch_session: the owner's session blob.
            share: handle of the guest to share a key with, 0 for a key of its own.

        Returns:
            The guest's handle.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_LENGTH, INVALID_CERTIFICATE, BAD_MEASUREMENT,
                POLICY_FAILURE, INVALID_GUEST, RESOURCE_LIMIT or UNSUPPORTED, checked in this order.
        """
        require_platform(Command.LAUNCH_START, self._state)
        wanted = Policy(policy)
        with ExitStack() as undo:
            keys_held = self._identity.hold()
            undo.callback(keys_held.release)
            transport = self._transport_keys(wanted, dh_cert, launch_session)
            self._check_sharing(wanted, share)
            self._check_resources(wanted)
            undo.pop_all()
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        guest = GuestContext(handle, wanted, GuestState.UNINIT, memory, keys_held, transport, _ASID)
        guest.advance(Command.LAUNCH_START)
        self._guests[handle] = guest
        self._advance(Command.LAUNCH_START)
        return handle

    def launch_update_data(self, handle: int, gpa: int, length: int) -> None:
        """LAUNCH_UPDATE_DATA: measure and encrypt what the VMM put at `gpa`.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_ADDRESS, INVALID_LENGTH,
                INVALID_GUEST_STATE, INACTIVE; INVALID_ADDRESS also for what is not RAM.
        """
        launch.update_data(self._guest(Command.LAUNCH_UPDATE_DATA, handle), gpa, length)

    def launch_update_vmsa(self, handle: int, vcpu: int, vmsa: bytes) -> None:
        """LAUNCH_UPDATE_VMSA: measure the registers that vCPU `vcpu` starts with.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_LENGTH, INVALID_GUEST_STATE, INACTIVE,
                UNSUPPORTED (the guest is none with SEV-ES).
        """
        launch.update_vmsa(self._guest(Command.LAUNCH_UPDATE_VMSA, handle), vcpu, vmsa)

    def launch_measure(self, handle: int, room: int = measurement.SIZE) -> bytes:
        """LAUNCH_MEASURE: close the measurement; 48 bytes, measurement and nonce.

        Args:
            handle: the guest.
            room: bytes of the caller's buffer.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_GUEST_STATE; INVALID_LENGTH
                (`ShortBufferError`), after which the command can be repeated.
        """
        return launch.measure(self._guest(Command.LAUNCH_MEASURE, handle), self._version, room)

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
        launch.inject_secret(self._guest(Command.LAUNCH_SECRET, handle), header, payload, gpa, length)

    def launch_finish(self, handle: int) -> None:
        """LAUNCH_FINISH: forget the transport keys; the guest may run.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, INVALID_GUEST, INVALID_GUEST_STATE.
        """
        launch.finish(self._guest(Command.LAUNCH_FINISH, handle))

    # --- guests -----------------------------------------------------------------------------------------------

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

    def facts(self, handle: int) -> GuestFacts:
        """What anybody may know of a guest.

        Raises:
            FirmwareError: INVALID_GUEST.
        """
        guest = self._guests.get(handle)
        if guest is None:
            raise failure(Status.INVALID_GUEST, f"there is no guest with handle {handle}")
        return guest.facts()

    # --- inside -----------------------------------------------------------------------------------------------

    def _advance(self, command: Command) -> None:
        """Go where the table says `command` leads."""
        following = COMMANDS[command].platform_then
        self._state = self._state if following is None else following

    def _keys(self) -> PlatformKeys:
        """The host's keys as they are now: another process of the host may have changed them."""
        keys = self._identity.keys()
        if keys is None:
            raise failure(Status.SECURE_DATA_INVALID, "the platform's keys are gone since INIT")
        return keys

    def _certificates(self, cek: certificate.Certificate) -> PlatformCertificates:
        keys = self._keys()
        return PlatformCertificates(keys.pdh.encode(), keys.pek.encode() + keys.oca.encode() + cek.encode())

    def _guest(self, command: Command, handle: int) -> GuestContext:
        require_platform(command, self._state)
        guest = self._guests.get(handle)
        if guest is None:
            raise failure(Status.INVALID_GUEST, f"{command.name}: there is no guest with handle {handle}")
        return guest

    def _transport_keys(self, policy: Policy, dh_cert: bytes, launch_session: bytes) -> TransportKeys:
        """Open the owner's session, then check the policy it vouches for."""
        if not dh_cert:
            return TransportKeys.absent()
        transport = session.accept(self._keys().pdh_key, dh_cert, launch_session, policy)
        if policy.api > self._version.api:
            detail = f"the policy asks for API {policy.api}, this firmware has {self._version.api}"
            raise failure(Status.POLICY_FAILURE, detail)
        if policy.reserved:
            raise failure(Status.POLICY_FAILURE, f"the policy has reserved bits {policy.reserved:#x}")
        return transport

    def _check_sharing(self, policy: Policy, share: int) -> None:
        """A key can be shared only between guests of one policy that allows it."""
        if share == _NO_HANDLE:
            return
        other = self._guests.get(share)
        if other is None:
            raise failure(Status.INVALID_GUEST, f"there is no guest with handle {share} to share a key with")
        if policy != other.policy or policy & Policy.NOKS:
            raise failure(Status.POLICY_FAILURE, f"the policy forbids sharing the key of guest {share}")

    def _check_resources(self, policy: Policy) -> None:
        if len(self._guests) >= GUEST_SLOTS:
            raise failure(Status.RESOURCE_LIMIT, f"this platform process serves {GUEST_SLOTS} guest at a time")
        if policy & Policy.ES and not self._es:
            raise failure(Status.UNSUPPORTED, "the policy asks for SEV-ES, for which INIT did not prepare")
