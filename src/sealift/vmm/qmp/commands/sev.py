"""The SEV part of qapi/misc-i386.json: what the guest's secure processor says, and its owner's secret on the way in.

Semantics are those of QEMU's sev-guest: the measurement can be fetched from LAUNCH_MEASURE on, a secret is taken
until LAUNCH_FINISH, which the first `cont` issues, and certificates are as firmware exports them, so that the CEK's
carries no signature. All binary values are base64.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

import msgspec

from sealift.errors import FirmwareError, UserError
from sealift.sev import certificate
from sealift.sev.certificate import Certificate
from sealift.sev.report import MNONCE_SIZE
from sealift.sev.text import decode_base64
from sealift.vmm.guest import Guest
from sealift.vmm.qmp.message import QmpError
from sealift.vmm.qmp.table import Command, NoArguments, Runs
from sealift.wire import platform as wire


class SevState(enum.StrEnum):
    """QEMU's SevState."""

    UNINIT = "uninit"
    LAUNCH_UPDATE = "launch-update"
    LAUNCH_SECRET = "launch-secret"  # noqa: S105  # no password
    RUNNING = "running"
    SEND_UPDATE = "send-update"
    RECEIVE_UPDATE = "receive-update"


class SevGuestType(enum.StrEnum):
    """QEMU's SevGuestType, as far as it exists here."""

    SEV = "sev"


_STATES: Final = (*SevState, SevState.SEND_UPDATE)
"""By the firmware's number; QEMU has no name for SENT (6), and leaves such a guest in send-update."""

_LAUNCH_SECRET: Final = 2

_GPA_LIMIT: Final = 1 << 52
"""No x86 CPU has longer physical addresses."""


class SevInfo(msgspec.Struct, frozen=True, rename="kebab"):
    """QEMU's SevInfo with the branch SevGuestInfo (`policy`, `handle`)."""

    enabled: bool
    api_major: int
    api_minor: int
    build_id: int
    state: SevState
    policy: int
    handle: int
    sev_type: SevGuestType = SevGuestType.SEV


class SevLaunchMeasureInfo(msgspec.Struct, frozen=True):
    """QEMU's SevLaunchMeasureInfo: measurement (32 bytes) and nonce (16 bytes)."""

    data: bytes


class SevCapability(msgspec.Struct, frozen=True, rename="kebab"):
    """QEMU's SevCapability: PDH, PEK||OCA||CEK, the chip's id, and where the C-bit is."""

    pdh: bytes
    cert_chain: bytes
    cpu0_id: bytes
    cbitpos: int
    reduced_phys_bits: int


class ReportArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The asker's nonce, 16 bytes in base64."""

    mnonce: str


class SevAttestationReport(msgspec.Struct, frozen=True):
    """QEMU's SevAttestationReport."""

    data: bytes


class InjectArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """The packet in base64; without `gpa` it goes where the start-up code's GUIDed table says."""

    packet_header: str
    secret: str
    gpa: Annotated[int, msgspec.Meta(ge=0, lt=_GPA_LIMIT)] | None = None


def query_sev(guest: Guest, _: NoArguments) -> SevInfo:
    """SevInfo; not enabled before a guest that is awaited begins to arrive, nor in a plain one."""
    if guest.awaited or _is_plain(guest):
        return SevInfo(False, 0, 0, 0, _STATES[0], 0, 0)  # noqa: FBT003  # the field says what
    platform = guest.machine.platform
    info, status = platform.info(), platform.status()
    return SevInfo(
        enabled=True,
        api_major=info.api_major,
        api_minor=info.api_minor,
        build_id=info.build_id,
        state=_STATES[status.state],
        policy=status.policy,
        handle=status.handle,
    )


def query_launch_measure(guest: Guest, _: NoArguments) -> SevLaunchMeasureInfo:
    """SevLaunchMeasureInfo of the launch on this host."""
    if _is_plain(guest):
        raise QmpError("SEV launch measurement is not available: the guest is not confidential")
    try:
        measure = guest.launched.measure
    except UserError as error:
        raise QmpError(f"SEV launch measurement is not available: {error}") from error
    if not measure:
        raise QmpError("SEV launch measurement is not available: the guest was not launched on this host")
    return SevLaunchMeasureInfo(measure)


def query_capabilities(guest: Guest, _: NoArguments) -> SevCapability:
    """SevCapability of the platform that the guest is on."""
    platform = guest.machine.platform
    info = platform.info()
    certificates = platform.request(wire.PdhCertExport(), wire.PdhCertificates)
    pek_oca, cek = certificates.cert_chain[: -certificate.SIZE], certificates.cert_chain[-certificate.SIZE :]
    return SevCapability(
        pdh=certificates.pdh,
        cert_chain=pek_oca + Certificate.decode(cek).unsigned().encode(),
        cpu0_id=platform.request(wire.GetId(), wire.PlatformId).chip_id,
        cbitpos=info.cbit,
        reduced_phys_bits=info.reduced_phys_bits,
    )


def query_attestation_report(guest: Guest, arguments: ReportArguments) -> SevAttestationReport:
    """SevAttestationReport, signed by the platform's PEK."""
    if _is_plain(guest):
        raise QmpError("SEV is not enabled")
    mnonce = _decoded(arguments.mnonce, "SEV: failed to decode mnonce input")
    if len(mnonce) != MNONCE_SIZE:
        raise QmpError(f"SEV: mnonce must be {MNONCE_SIZE} bytes (got {len(mnonce)})")
    try:
        report = guest.machine.platform.request(wire.GetAttestation(mnonce), wire.AttestationReport)
    except FirmwareError as error:
        raise QmpError(f"SEV: Failed to get attestation report fw_err={error.status} ({error})") from error
    return SevAttestationReport(report.report)


def inject_launch_secret(guest: Guest, arguments: InjectArguments) -> None:
    """LAUNCH_SECRET."""
    if _is_plain(guest):
        raise QmpError("SEV not enabled for guest")
    state = guest.machine.platform.status().state
    if state != _LAUNCH_SECRET:
        raise QmpError(f"SEV: Not in correct state. (LSECRET) {state:x}")
    header = _decoded(arguments.packet_header, "SEV: Failed to decode sequence header")
    secret = _decoded(arguments.secret, "SEV: Failed to decode data")
    try:
        guest.inject_secret(header, secret, arguments.gpa)
    except FirmwareError as error:
        raise QmpError(f"SEV: failed to inject secret fw_error={error.status} '{error}'") from error


def _is_plain(guest: Guest) -> bool:
    return not guest.awaited and guest.machine.spec.plain


def _decoded(text: str, complaint: str) -> bytes:
    data = decode_base64(text.encode())
    if not data:
        raise QmpError(complaint)
    return data


COMMANDS = (
    Command("query-sev", NoArguments, query_sev, Runs.IN_THREAD),
    Command("query-sev-launch-measure", NoArguments, query_launch_measure),
    Command("query-sev-capabilities", NoArguments, query_capabilities, Runs.IN_THREAD),
    Command("query-sev-attestation-report", ReportArguments, query_attestation_report, Runs.IN_THREAD),
    Command("sev-inject-launch-secret", InjectArguments, inject_launch_secret, Runs.IN_THREAD),
)
