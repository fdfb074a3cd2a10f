"""Guest memory without planes or engines, an owner's offer, and the status of what fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest

from sealift.errors import FirmwareError
from sealift.sev import session
from sealift.sev.certificate import Certificate
from sealift.sev.policy import DEFAULT_POLICY, Policy
from sealift.sev.session import OwnerSession
from sealift.sev.status import Status, failure
from sealift.silicon.processor.firmware import SecureProcessor


@dataclass
class Memory:
    """Guest memory of one block at 0: what the VMM put there, and what the guest will find."""

    shared: bytearray
    private: bytearray = field(default_factory=bytearray)
    vmsas: dict[int, bytes] = field(default_factory=dict)
    vcpus: int = 2

    def __post_init__(self) -> None:
        self.private = bytearray(len(self.shared))

    def move_to_private(self, gpa: int, length: int) -> Iterable[memoryview]:
        """Move content over and yield it page by page."""
        self._check(gpa, length)
        self.private[gpa : gpa + length] = self.shared[gpa : gpa + length]
        self.shared[gpa : gpa + length] = b"\xcc" * length
        view = memoryview(self.private)
        for start in range(gpa, gpa + length, 4096):
            yield view[start : min(start + 4096, gpa + length)]

    def write_private(self, gpa: int, data: bytes) -> None:
        """Put data where the guest finds it."""
        self._check(gpa, len(data))
        self.private[gpa : gpa + len(data)] = data

    patch_private = write_private

    def view_private(self, gpa: int, length: int) -> memoryview:
        """What the guest finds there."""
        self._check(gpa, length)
        return memoryview(self.private)[gpa : gpa + length].toreadonly()

    def copy_private(self, gpa: int, destination: memoryview) -> None:
        """Fill `destination` with what the guest finds there."""
        destination[:] = self.view_private(gpa, len(destination))

    def place_vmsa(self, vcpu: int, page: bytes) -> None:
        """Make `page` the vCPU's registers."""
        if not 0 <= vcpu < self.vcpus:
            raise failure(Status.INVALID_ADDRESS, f"there is no vCPU {vcpu}")
        self.vmsas[vcpu] = page

    def read_vmsa(self, vcpu: int) -> bytes:
        """The vCPU's registers."""
        if vcpu not in self.vmsas:
            raise failure(Status.INVALID_ADDRESS, f"vCPU {vcpu} has no VMSA")
        return self.vmsas[vcpu]

    def _check(self, gpa: int, length: int) -> None:
        if gpa + length > len(self.shared):
            raise failure(Status.INVALID_ADDRESS, "outside the test's memory")


def offer(processor: SecureProcessor, policy: Policy = DEFAULT_POLICY) -> OwnerSession:
    """An owner's session for this platform."""
    return session.offer(Certificate.decode(processor.pdh_cert_export().pdh), policy)


def status_of(command: Callable[..., object], *arguments: object) -> Status:
    """The status code a command fails with."""
    with pytest.raises(FirmwareError) as caught:
        command(*arguments)
    return Status(caught.value.status)
