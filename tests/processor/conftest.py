from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sealift.sev import session
from sealift.sev.certificate import Certificate
from sealift.sev.policy import DEFAULT_POLICY, Policy
from sealift.sev.session import OwnerSession
from sealift.sev.status import Status, failure
from sealift.silicon.processor.firmware import INIT_ES, SecureProcessor
from sealift.silicon.processor.identity import PlatformIdentity


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


@pytest.fixture(scope="session")
def manufacturer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One manufacturer for all tests: its keys take a second to make."""
    return tmp_path_factory.mktemp("silicon") / "manufacturer"


@pytest.fixture(scope="session")
def host_path(tmp_path_factory: pytest.TempPathFactory, manufacturer_path: Path) -> Path:
    """A host that tests share: its chip stays, its platform keys may change."""
    path = tmp_path_factory.mktemp("host") / "identity"
    PlatformIdentity(path, manufacturer_path)
    return path


@pytest.fixture
def identity(host_path: Path, manufacturer_path: Path) -> PlatformIdentity:
    return PlatformIdentity(host_path, manufacturer_path)


@pytest.fixture
def processor(identity: PlatformIdentity) -> Iterator[SecureProcessor]:
    made = SecureProcessor(identity)
    made.init()
    yield made
    made.close()


@pytest.fixture
def memory() -> Memory:
    return Memory(bytearray(b"content of the launch image, page by page".ljust(4096, b".") * 4))


def offer(processor: SecureProcessor, policy: Policy = DEFAULT_POLICY) -> OwnerSession:
    """An owner's session for this platform."""
    return session.offer(Certificate.decode(processor.pdh_cert_export().pdh), policy)


@pytest.fixture(scope="session")
def target_path(tmp_path_factory: pytest.TempPathFactory, manufacturer_path: Path) -> Path:
    """Another host, with a chip of the same manufacturer."""
    path = tmp_path_factory.mktemp("target") / "identity"
    PlatformIdentity(path, manufacturer_path)
    return path


@pytest.fixture
def target(target_path: Path, manufacturer_path: Path) -> Iterator[SecureProcessor]:
    made = SecureProcessor(PlatformIdentity(target_path, manufacturer_path))
    made.init(INIT_ES)
    made.pek_gen()
    yield made
    made.close()
