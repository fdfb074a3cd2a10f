"""One guest as firmware knows it: its context, its memory, and what a VMM may learn of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from cryptography.hazmat.primitives import hashes

from sealift.errors import InternalError
from sealift.sev.policy import Policy
from sealift.sev.session import TransportKeys
from sealift.sev.status import Status, failure
from sealift.silicon.processor.states import COMMANDS, Command, GuestState

ALIGNMENT: Final = 16
"""Addresses and lengths of guest memory in commands are multiples of this."""

DIGEST_SIZE: Final = 32
"""Bytes of a launch digest."""


class FirmwareMemory(Protocol):
    """Guest memory as firmware's commands need it: in pieces of a command's size, never page by page.

    Every method raises `FirmwareError` INVALID_ADDRESS, and changes nothing, if part of the range is not RAM or the
    vCPU has no such page.
    """

    def move_to_private(self, gpa: int, length: int) -> Iterable[memoryview]:
        """Take what the VMM put at `gpa` as the guest's content, and yield it in order.

        Bytes are copied once from the shared plane to the private plane, ciphertext stays behind, and what is
        yielded is the private copy: what is measured is what the guest will find.
        """

    def view_private(self, gpa: int, length: int) -> memoryview:
        """The private plane itself, to read; a guest that runs changes it meanwhile."""

    def copy_private(self, gpa: int, destination: memoryview) -> None:
        """Fill `destination` with what lies there on the private plane, which a guest that runs changes meanwhile."""

    def write_private(self, gpa: int, data: bytes) -> None:
        """Put `data` on the private plane of a guest that is not running, and mark it unsent."""

    def patch_private(self, gpa: int, data: bytes) -> None:
        """`write_private` under a guest that may be running: no vCPU goes on with what it had cached."""

    def place_vmsa(self, vcpu: int, page: bytes) -> None:
        """Make `page` the save area, with all registers, of a vCPU."""

    def read_vmsa(self, vcpu: int) -> bytes:
        """The save area of a vCPU that is out of guest mode."""


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
        transport: keys of the open session; None when there is none.
        asid: None while the guest is not active.
        digest: the launch digest so far.
        launch_digest: the launch digest, once LAUNCH_MEASURE has closed it; zeros before, and for a guest that was
            received instead of launched.
        measure: LAUNCH_MEASURE's output.
    """

    handle: int
    policy: Policy
    state: GuestState
    memory: FirmwareMemory = field(repr=False)
    transport: TransportKeys | None
    asid: int | None = None
    digest: hashes.Hash = field(default_factory=lambda: hashes.Hash(hashes.SHA256()), repr=False)
    launch_digest: bytes = bytes(DIGEST_SIZE)
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

    def require_es(self, command: Command) -> None:
        """Demand a guest whose registers are encrypted.

        Raises:
            FirmwareError: UNSUPPORTED.
        """
        if not self.policy & Policy.ES:
            raise failure(Status.UNSUPPORTED, f"{command.name} is for SEV-ES guests; this one's policy has no ES bit")

    def facts(self) -> GuestFacts:
        """What anybody may know."""
        return GuestFacts(self.handle, self.policy, self.state, self.measure)


def check_address(gpa: int) -> None:
    """Check an address of guest memory, as far as firmware does before it looks at the guest.

    Raises:
        FirmwareError: INVALID_ADDRESS.
    """
    if gpa < 0 or gpa % ALIGNMENT:
        raise failure(Status.INVALID_ADDRESS, f"the guest address {gpa:#x} is not a multiple of {ALIGNMENT}")


def check_length(length: int, limit: int | None = None) -> None:
    """Check a length of guest memory likewise; no more than `limit` bytes, if there is one.

    Raises:
        FirmwareError: INVALID_LENGTH.
    """
    if length <= 0 or length % ALIGNMENT:
        detail = f"the guest length of {length} bytes is not a whole number of {ALIGNMENT}-byte blocks"
        raise failure(Status.INVALID_LENGTH, detail)
    if limit is not None and length > limit:
        detail = f"the guest length of {length} bytes is over the {limit} of one packet"
        raise failure(Status.INVALID_LENGTH, detail)


def require_payload(payload: bytes, length: int) -> None:
    """Demand as many bytes of payload as of guest memory, since nothing is compressed.

    Raises:
        FirmwareError: INVALID_LENGTH.
    """
    if len(payload) != length:
        detail = f"the packet's payload has {len(payload)} bytes for a guest length of {length}"
        raise failure(Status.INVALID_LENGTH, detail)
