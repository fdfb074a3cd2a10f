"""One guest as firmware knows it: its context, its memory, and what a VMM may learn of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from cryptography.hazmat.primitives import hashes

from sealift.errors import InternalError
from sealift.privatefiles import Lock
from sealift.sev.policy import Policy
from sealift.sev.session import TransportKeys
from sealift.sev.status import Status, failure
from sealift.silicon.processor.states import COMMANDS, Command, GuestState

ALIGNMENT: Final = 16
"""Addresses and lengths of guest memory in commands are multiples of this."""


class LaunchMemory(Protocol):
    """Guest memory as the launch commands need it."""

    def move_to_private(self, gpa: int, length: int) -> Iterable[memoryview]:
        """Take what the VMM put at `gpa` as the guest's content, and yield it in order.

        Bytes are copied once from the shared plane to the private plane, ciphertext stays behind, and what is
        yielded is the private copy: what is measured is what the guest will find.

        Raises:
            FirmwareError: INVALID_ADDRESS, part of the range is not RAM; nothing has moved.
        """

    def write_private(self, gpa: int, data: bytes) -> None:
        """Put `data` on the private plane.

        Raises:
            FirmwareError: INVALID_ADDRESS, as above.
        """


@dataclass(frozen=True, slots=True)
class GuestStatus:
    """Answer of GUEST_STATUS; state UNINIT and zeros for a handle of no guest."""

    handle: int
    policy: Policy
    asid: int
    state: GuestState


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """What anybody may know of a guest; `measure` is LAUNCH_MEASURE's output, None before it."""

    handle: int
    policy: Policy
    state: GuestState
    measure: bytes | None


@dataclass(slots=True)
class GuestContext:
    """A guest's context in firmware; what must not be seen is kept out of repr.

    Attributes:
        handle: names the guest in commands.
        policy: the owner's.
        state: where the guest is; only `advance` changes it.
        memory: the guest's.
        keys_held: keeps the host's keys as they are while the guest exists.
        transport: keys of the open session; None when there is none.
        asid: None while the guest is not active.
        digest: the launch digest so far.
        measure: LAUNCH_MEASURE's output.
    """

    handle: int
    policy: Policy
    state: GuestState
    memory: LaunchMemory = field(repr=False)
    keys_held: Lock = field(repr=False)
    transport: TransportKeys | None
    asid: int | None
    digest: hashes.Hash = field(default_factory=lambda: hashes.Hash(hashes.SHA256()), repr=False)
    measure: bytes | None = None

    def advance(self, command: Command) -> None:
        """Go where the table says `command` leads."""
        following = COMMANDS[command].then
        self.state = self.state if following is None else following

    def session(self) -> TransportKeys:
        """The keys of the open session, which the guest's state promises."""
        if self.transport is None:
            raise InternalError(f"guest {self.handle} in state {self.state.name} has no session")
        return self.transport

    def require_active(self) -> None:
        """Demand an ASID.

        Raises:
            FirmwareError: INACTIVE.
        """
        if self.asid is None:
            raise failure(Status.INACTIVE, f"guest {self.handle} has no ASID")

    def facts(self) -> GuestFacts:
        """What anybody may know."""
        return GuestFacts(self.handle, self.policy, self.state, self.measure)


def check_range(gpa: int, length: int) -> None:
    """Check a range of guest memory, as far as firmware does before it looks at the guest.

    Raises:
        FirmwareError: INVALID_ADDRESS, then INVALID_LENGTH.
    """
    if gpa < 0 or gpa % ALIGNMENT:
        raise failure(Status.INVALID_ADDRESS, f"{gpa:#x} is not a multiple of {ALIGNMENT}")
    if length <= 0 or length % ALIGNMENT:
        raise failure(Status.INVALID_LENGTH, f"{length} bytes are not a whole number of {ALIGNMENT}-byte blocks")
