"""An owner, and hosts whose VMM does what it is told or what the test makes it do; silicon is the real one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sealift.address import Gpa, RamBlock, RamLayout
from sealift.guest.programs import program, startup_blob
from sealift.launch.image import GuestRecipe
from sealift.launch.secrets import GUEST_GUID, MigrationFlags, MigrationSecret, take_migration_secret
from sealift.owner.definition import GuestDefinition
from sealift.owner.owner import Owner
from sealift.sev.policy import Policy
from sealift.sev.secret import SecretEntry
from sealift.silicon.memory.guest_memory import GuestMemory
from sealift.silicon.processor.asids import fitting
from sealift.silicon.processor.firmware import INIT_ES, SecureProcessor
from sealift.silicon.processor.identity import PlatformIdentity
from sealift.silicon.processor.manufacturer import Manufacturer
from sealift.wire.owner import PlatformEvidence, SecretGrant, SessionGrant

HANDLER = hashlib.sha256(b"the handler all hosts run").digest()
PLANTED = b"only for the guest's eyes"


@dataclass
class Host:
    """One host: a secure processor, and the VMM's steps of a launch."""

    processor: SecureProcessor
    handler: bytes = HANDLER
    memory: GuestMemory | None = None
    handle: int = 0

    @property
    def fingerprint(self) -> bytes:
        """Of the chip."""
        return self.processor._identity.cek.fingerprint()

    def evidence(self) -> PlatformEvidence:
        """What the platform says of itself."""
        certificates, version = self.processor.endorsed_certificates(), self.processor.version
        numbers = version.api_major, version.api_minor, version.build_id
        return PlatformEvidence(
            certificates.pdh, certificates.cert_chain, self.processor.ca_chain, *numbers, self.handler
        )

    def load(self, grant: SessionGrant, recipe: GuestRecipe) -> bytes:
        """Launch `recipe` up to its measurement."""
        recipe = replace(recipe, handler_digest=self.handler).under(Policy(grant.policy))
        self.memory = GuestMemory(recipe.layout, os.urandom(32))
        self.handle = self.processor.launch_start(self.memory, grant.policy, grant.dh_cert, grant.session)
        self.processor.activate(self.handle, fitting(Policy(grant.policy)).start)
        for piece in recipe.pieces():
            offset = recipe.layout.offset(piece.gpa, len(piece.data))
            assert offset is not None
            self.memory.shared.data[offset : offset + len(piece.data)] = piece.data
            self.processor.launch_update_data(self.handle, piece.gpa, len(piece.data))
        for vcpu, vmsa in enumerate(recipe.vmsas()):
            self.processor.launch_update_vmsa(self.handle, vcpu, vmsa)
        return self.processor.launch_measure(self.handle)

    def finish(self, grant: SecretGrant, recipe: GuestRecipe) -> tuple[bytearray, MigrationSecret | None]:
        """Inject the secret and finish; the guest's secret area after its handler has taken the key."""
        assert self.memory is not None
        area = recipe.areas().secret
        self.processor.launch_secret(self.handle, grant.header, grant.payload, area.gpa, len(grant.payload))
        self.processor.launch_finish(self.handle)
        image = bytearray(self.memory.read_private(area.gpa, area.size))
        return image, take_migration_secret(image)

    def restart(self) -> None:
        """End the guest."""
        self.processor.close()
        self.processor.init(INIT_ES)


@pytest.fixture(scope="session")
def manufacturer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("silicon") / "manufacturer"
    Manufacturer(path)
    return path


@pytest.fixture(scope="session")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where hosts keep their identities; a host of one name is the same in every test."""
    return tmp_path_factory.mktemp("sites")


@pytest.fixture
def make_host(manufacturer: Path, sites: Path) -> Iterator[Callable[[str], Host]]:
    hosts: list[Host] = []

    def make(name: str) -> Host:
        processor = SecureProcessor(PlatformIdentity(sites / name, manufacturer))
        processor.init(INIT_ES)
        hosts.append(Host(processor))
        return hosts[-1]

    yield make
    for host in hosts:
        host.processor.close()


@pytest.fixture
def host(make_host: Callable[[str], Host]) -> Host:
    return make_host("a")


@pytest.fixture(scope="session")
def recipe() -> GuestRecipe:
    """A guest that starts and halts; the digest in it is nobody's."""
    layout = RamLayout((RamBlock("pc.ram", Gpa(0), 32 << 20),))
    return GuestRecipe(startup_blob(), layout, 2, bytes(32), program("idle"), b"payload", "quiet")


@pytest.fixture
def definition(recipe: GuestRecipe) -> GuestDefinition:
    entries = (SecretEntry(GUEST_GUID, PLANTED),)
    return GuestDefinition(recipe, entries=entries, flags=MigrationFlags.SKIP_ZERO_PAGES)


@pytest.fixture(scope="session")
def ark(manufacturer: Path) -> bytes:
    return Manufacturer(manufacturer).ark.encode()


@pytest.fixture
def owner(tmp_path: Path, definition: GuestDefinition, ark: bytes) -> Owner:
    """An owner that trusts the manufacturer and the handler all hosts run."""
    made = Owner(tmp_path / "owner", definition, clock=lambda: 0.0)
    made.trust(ark)
    made.accept_handler(HANDLER)
    return made


@pytest.fixture
def log(owner: Owner) -> Callable[[], list[str]]:
    """The owner's decisions, in sentences."""
    return lambda: [decision.sentence for decision in owner.log.read()]
