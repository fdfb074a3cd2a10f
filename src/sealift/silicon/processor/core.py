"""What all groups of commands work on: the platform's state, its keys, and the guests it has.

Each group (``platform``, ``guests``, ``launch``, ``send``, ``receive``, ``debug``) is a class of commands over this
one; ``firmware`` puts them together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sealift.privatefiles import Lock
from sealift.sev import session
from sealift.sev.measurement import FirmwareVersion
from sealift.sev.policy import Policy
from sealift.sev.session import TransportKeys
from sealift.sev.status import Status, failure
from sealift.silicon.processor.asids import AsidTable
from sealift.silicon.processor.guest import FirmwareMemory, GuestContext
from sealift.silicon.processor.identity import PlatformIdentity
from sealift.silicon.processor.platformkeys import PlatformKeys
from sealift.silicon.processor.profile import AMD_1_55_25, Profile
from sealift.silicon.processor.states import COMMANDS, Command, GuestState, PlatformState, require_platform

GUEST_SLOTS: Final = 1024
"""Guests firmware has contexts for."""


class Core:
    """State of one secure processor; not thread-safe.

    Args:
        identity: the host's.
        profile: which firmware it behaves as.
    """

    def __init__(self, identity: PlatformIdentity, profile: Profile = AMD_1_55_25) -> None:
        self._identity = identity
        self._profile = profile
        self._state = PlatformState.UNINIT
        self._es = False
        self._asids = AsidTable()
        self._guests: dict[int, GuestContext] = {}
        self._next_handle = 1
        self._keys_held: Lock | None = None

    @property
    def version(self) -> FirmwareVersion:
        """API version and build."""
        return self._profile.version

    @property
    def ca_chain(self) -> bytes:
        """ASK||ARK, as the manufacturer publishes them."""
        return self._identity.ca_chain

    def _advance(self, command: Command) -> None:
        """Go where the table says `command` leads."""
        following = COMMANDS[command].platform_then
        self._state = self._state if following is None else following

    def _guest(self, command: Command, handle: int) -> GuestContext:
        """The guest a command is for, in a platform that allows the command.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, then INVALID_GUEST.
        """
        require_platform(command, self._state)
        return self._named(command, handle)

    def _named(self, command: Command, handle: int) -> GuestContext:
        guest = self._guests.get(handle)
        if guest is None:
            raise failure(Status.INVALID_GUEST, f"{command.name}: there is no guest with handle {handle}")
        return guest

    def _keys(self) -> PlatformKeys:
        """The host's keys as they are now: another process of the host may have changed them."""
        keys = self._identity.keys()
        if keys is None:
            raise failure(Status.SECURE_DATA_INVALID, "the platform's keys are gone since INIT")
        return keys

    # --- guests come and go --------------------------------------------------------------------------------------

    @contextmanager
    def _holding_keys(self) -> Iterator[PlatformKeys]:
        """Keep the host's keys as they are, and go on doing so for as long as there are guests."""
        if self._keys_held is None:
            self._keys_held = self._identity.hold()
        try:
            yield self._keys()
        finally:
            self._let_keys_go()

    def _let_keys_go(self) -> None:
        """Let the host's keys change again, unless a guest needs them."""
        if self._keys_held is not None and not self._guests:
            self._keys_held.release()
            self._keys_held = None

    def _open_session(self, keys: PlatformKeys, policy: Policy, dh_cert: bytes, blob: bytes) -> TransportKeys:
        """The transport keys out of a session, and the policy it vouches for checked.

        Raises:
            FirmwareError: INVALID_LENGTH, INVALID_CERTIFICATE, BAD_MEASUREMENT, POLICY_FAILURE, in this order.
        """
        transport = session.accept(keys.pdh_key, dh_cert, blob, policy)
        if policy.api > self.version.api:
            major, minor = self.version.api
            detail = f"the policy asks for API {policy.api[0]}.{policy.api[1]}, and this firmware has {major}.{minor}"
            raise failure(Status.POLICY_FAILURE, detail)
        if policy.reserved:
            raise failure(Status.POLICY_FAILURE, f"the policy has reserved bits {policy.reserved:#x}")
        return transport

    def _admit(self, command: Command, memory: FirmwareMemory, policy: Policy, transport: TransportKeys) -> int:
        """A new guest's handle.

        Raises:
            FirmwareError: RESOURCE_LIMIT, then UNSUPPORTED for SEV-ES.
        """
        if len(self._guests) >= GUEST_SLOTS:
            raise failure(Status.RESOURCE_LIMIT, f"firmware has contexts for {GUEST_SLOTS} guests and no more")
        if policy & Policy.ES and not self._es:
            raise failure(Status.UNSUPPORTED, "the policy asks for SEV-ES, for which INIT did not prepare")
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        guest = GuestContext(handle, policy, GuestState.UNINIT, memory, transport)
        guest.advance(command)
        self._guests[handle] = guest
        self._advance(command)
        return handle

    def _forget_guests(self) -> None:
        """End every guest; caches may still hold what was theirs."""
        for guest in self._guests.values():
            if guest.asid is not None:
                self._asids.disown(guest.asid)
        self._guests.clear()
        self._let_keys_go()
