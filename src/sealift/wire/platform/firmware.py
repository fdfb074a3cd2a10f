"""The secure processor: launch and attestation of the guest, and the platform as such.

Named after the SEV API's commands; what fails brings the firmware's status code (`Failed.status`).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from sealift.address import PAGE_SIZE
from sealift.wire.obstacle import Obstacle
from sealift.wire.platform.message import Message
from sealift.wire.platform.phase import Phase


class GetPlatformInfo(Message, frozen=True):
    """Reply: PlatformInfo."""


class PlatformInfo(Message, frozen=True):
    """What the platform says of itself; none of it is secret and none of it is proof.

    `cbit` is where guests have the C-bit, `engine` what runs their vCPUs, and `engine_reason` why it is that one,
    `ca_chain` ASK‖ARK as the manufacturer publishes them, `handler_digest` the
    SHA-256 of the handler modules that were loaded.
    """

    api_major: int
    api_minor: int
    build_id: int
    cbit: int
    reduced_phys_bits: int
    engine: str
    engine_reason: str
    handler_digest: bytes
    ca_chain: bytes


class PdhCertExport(Message, frozen=True):
    """Reply: PdhCertificates."""


class PdhCertificates(Message, frozen=True):
    """PDH (2084 bytes) and PEK‖OCA‖CEK (6252 bytes)."""

    pdh: bytes
    cert_chain: bytes


class LaunchStart(Message, frozen=True):
    """LAUNCH_START with the owner's policy, Diffie-Hellman certificate and session blob.

    Without certificate (and session) there is no channel to any owner.
    """

    policy: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    dh_cert: bytes
    session: bytes


class LaunchUpdateData(Message, frozen=True):
    """LAUNCH_UPDATE_DATA: measure and encrypt what the VMM put on the shared plane at `gpa`."""

    gpa: int
    length: int


class LaunchUpdateVmsa(Message, frozen=True):
    """LAUNCH_UPDATE_VMSA: measure a page of registers, and start vCPU `index` of an SEV-ES guest from it."""

    index: int
    vmsa: Annotated[bytes, msgspec.Meta(max_length=PAGE_SIZE)]


class LaunchMeasure(Message, frozen=True):
    """LAUNCH_MEASURE. Reply: Measurement."""


class Measurement(Message, frozen=True):
    """Measurement (32 bytes) and nonce (16 bytes)."""

    measure: bytes


class LaunchSecret(Message, frozen=True):
    """LAUNCH_SECRET: the owner's packet, to be decrypted to `gpa`."""

    header: bytes
    payload: bytes
    gpa: int


class LaunchFinish(Message, frozen=True):
    """LAUNCH_FINISH: the guest may run; the handler takes its key out of the secret area first."""


class GetGuestStatus(Message, frozen=True):
    """GUEST_STATUS and the VM's phase. Reply: GuestStatus."""


class GuestStatus(Message, frozen=True):
    """State by the SEV API's number, policy, handle; where the VM is in its life, and what the guest lets be known.

    An `aware` guest has asked whether its memory is encrypted; a `ready` one says that it can be migrated. `blocked`
    is everything for which the platform makes no offer to migrate it.
    """

    phase: Phase
    state: int
    policy: int
    handle: int
    aware: bool
    ready: bool
    blocked: tuple[Obstacle, ...] = ()


class GetAttestation(Message, frozen=True):
    """ATTESTATION with the asker's nonce. Reply: AttestationReport."""

    mnonce: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class AttestationReport(Message, frozen=True):
    """The report's 208 bytes, signed by the PEK (sealift.sev.report)."""

    report: bytes


# --- the platform as such ----------------------------------------------------------------------------------------


class GetPlatformStatus(Message, frozen=True):
    """PLATFORM_STATUS. Reply: PlatformStatus."""


class PlatformStatus(Message, frozen=True):
    """State by the SEV API's number, whether an external owner is in, whether SEV-ES is on, guests of this process."""

    api_major: int
    api_minor: int
    build_id: int
    state: int
    owned: bool
    es: bool
    guests: int


class PlatformReset(Message, frozen=True):
    """SHUTDOWN, PLATFORM_RESET and INIT: other keys and no external owner any more; not while a guest exists."""


class PekGen(Message, frozen=True):
    """PEK_GEN: other keys, and no external owner any more."""


class PekCsr(Message, frozen=True):
    """PEK_CSR. Reply: PekRequest."""


class PekRequest(Message, frozen=True):
    """The PEK's certificate (2084 bytes) for an owner to sign."""

    pek: bytes


class PekCertImport(Message, frozen=True):
    """PEK_CERT_IMPORT: let an owner in, by the PEK that it signed and its own certificate."""

    pek: bytes
    oca: bytes


class PdhGen(Message, frozen=True):
    """PDH_GEN: another Diffie-Hellman key; sessions made for the old one open no more."""


class GetId(Message, frozen=True):
    """GET_ID. Reply: PlatformId."""


class PlatformId(Message, frozen=True):
    """What names the chip in the manufacturer's records: 64 bytes a socket."""

    chip_id: bytes
