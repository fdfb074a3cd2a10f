"""The GHCB protocol: how an SEV-ES guest asks its hypervisor (AMD publication 56421; Linux ``asm/sev-common.h``).

An instruction that would have to show registers raises #VC in the guest instead. The guest's handler then says what
it wants, and nothing else: in the GHCB MSR, or in a page of shared memory, the GHCB, and executes VMGEXIT::

    guest                                              hypervisor
      │  GHCB MSR = request ── VMGEXIT ──────────────►│  `msr_request`      low 12 bits of the MSR are not 0
      │◄───────────────── GHCB MSR = response ────────│  `…_response`
      │  GHCB page = exit code, inputs ── VMGEXIT ───►│  `decode`           the MSR is the page's address
      │◄────────── GHCB page = outputs, or an error ──│  `answer`, `refuse`

A field of the page counts only if its bit in the valid bitmap is set. The page is shared, so whoever reads it first
copies it: everything here works on such a copy.
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

from sealift.address import PAGE_SIZE

VC_VECTOR: Final = 29
GHCB_MSR: Final = 0xC001_0130
SEV_STATUS_MSR: Final = 0xC001_0131
MIN_VERSION: Final = 1
MAX_VERSION: Final = 2
"""Versions of the protocol; 2 adds features and page-state changes by MSR."""

BUFFER_OFFSET: Final = 0x800
BUFFER_SIZE: Final = 2032

_BITMAP_WORDS: Final = 0x3F0 // 8
_MASK_64: Final = (1 << 64) - 1


class ExitCode(IntEnum):
    """Why #VC was raised, and what VMGEXIT asks for: intercepts' numbers, and events of the protocol's own."""

    CPUID = 0x72
    IOIO = 0x7B
    MSR = 0x7C
    VMMCALL = 0x81
    MMIO_READ = 0x8000_0001
    MMIO_WRITE = 0x8000_0002


class Refusal(IntEnum):
    """SW_EXITINFO2 of an answer that the request was malformed."""

    INVALID_USAGE = 2
    INVALID_SCRATCH_AREA = 3
    MISSING_INPUT = 4
    INVALID_INPUT = 5
    INVALID_EVENT = 6


class Ghcb(ctypes.LittleEndianStructure):
    """The page."""

    _fields_ = (
        ("reserved_000", c_uint8 * 0xCB),
        ("cpl", c_uint8),
        ("reserved_0cc", c_uint8 * 0x12C),
        ("rax", c_uint64),
        ("reserved_200", c_uint8 * 0x108),
        ("rcx", c_uint64),
        ("rdx", c_uint64),
        ("rbx", c_uint64),
        ("reserved_320", c_uint8 * 0x10),
        ("rsi", c_uint64),
        ("reserved_338", c_uint8 * 0x58),
        ("sw_exitcode", c_uint64),
        ("sw_exitinfo1", c_uint64),
        ("sw_exitinfo2", c_uint64),
        ("sw_scratch", c_uint64),
        ("reserved_3b0", c_uint8 * 0x38),
        ("xcr0", c_uint64),
        ("valid_bitmap", c_uint8 * 16),
        ("reserved_400", c_uint8 * 0x400),
        ("shared_buffer", c_uint8 * BUFFER_SIZE),
        ("reserved_ff0", c_uint8 * 10),
        ("protocol_version", c_uint16),
        ("ghcb_usage", c_uint32),
    )

    def valid(self, *names: str) -> bool:
        """Whether all these fields are marked as valid."""
        return all(self.valid_bitmap[word >> 3] >> (word & 7) & 1 for word in map(_word, names))

    def put(self, name: str, value: int) -> None:
        """Set a field and mark it as valid."""
        word = _word(name)
        setattr(self, name, value)
        self.valid_bitmap[word >> 3] |= 1 << (word & 7)

    def read(self, name: str) -> int:
        """A field, or 0 if it is not valid."""
        return int(getattr(self, name)) if self.valid(name) else 0


if ctypes.sizeof(Ghcb) != PAGE_SIZE:
    raise AssertionError("the GHCB is not one page")


def _word(name: str) -> int:
    """The field's bit in the valid bitmap: one for each 8 bytes."""
    offset: int = getattr(Ghcb, name).offset
    return offset >> 3


# --- requests by page -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CpuidExit:
    """CPUID of a leaf and subleaf."""

    leaf: int
    subleaf: int


@dataclass(frozen=True, slots=True)
class PortExit:
    """IN (`value` is None) or OUT of `size` bytes."""

    port: int
    size: int
    value: int | None


@dataclass(frozen=True, slots=True)
class MsrExit:
    """RDMSR (`value` is None) or WRMSR."""

    number: int
    value: int | None


@dataclass(frozen=True, slots=True)
class HypercallExit:
    """VMMCALL, with KVM's registers."""

    number: int
    arguments: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class MmioExit:
    """A read (`value` is None) or write of `size` bytes at a GPA; `buffer` is where in the page its data lies."""

    gpa: int
    size: int
    buffer: int
    value: int | None


PageRequest: TypeAlias = CpuidExit | PortExit | MsrExit | HypercallExit | MmioExit


def decode(ghcb: Ghcb, gpa: int) -> PageRequest | Refusal:
    """What a copy of the GHCB at `gpa` asks for, or what is wrong with it."""
    if ghcb.ghcb_usage or not MIN_VERSION <= ghcb.protocol_version <= MAX_VERSION:
        return Refusal.INVALID_USAGE
    if not ghcb.valid("sw_exitcode", "sw_exitinfo1", "sw_exitinfo2"):
        return Refusal.MISSING_INPUT
    match ghcb.sw_exitcode:
        case ExitCode.CPUID:
            request: PageRequest | Refusal = _cpuid(ghcb)
        case ExitCode.IOIO:
            request = _port(ghcb)
        case ExitCode.MSR:
            request = _msr(ghcb)
        case ExitCode.VMMCALL:
            request = _hypercall(ghcb)
        case ExitCode.MMIO_READ | ExitCode.MMIO_WRITE:
            request = _mmio(ghcb, gpa)
        case _:
            request = Refusal.INVALID_EVENT
    return request


def _cpuid(ghcb: Ghcb) -> CpuidExit | Refusal:
    if not ghcb.valid("rax", "rcx") or (ghcb.rax & 0xFFFF_FFFF == 0xD and not ghcb.valid("xcr0")):
        return Refusal.MISSING_INPUT
    return CpuidExit(ghcb.rax & 0xFFFF_FFFF, ghcb.rcx & 0xFFFF_FFFF)


_IN: Final = 1 << 0
_SIZES: Final = {1 << 4: 1, 1 << 5: 2, 1 << 6: 4}
_SIZE_BITS: Final = 0x70
_ADDRESS_BITS: Final = 0x1F80
"""Address size and segment: meaningful for string instructions alone, which are not taken."""


def _port(ghcb: Ghcb) -> PortExit | Refusal:
    """EXITINFO1 as a VMCB has it for IOIO (AMD64 APM volume 2, 15.10.2)."""
    info = ghcb.sw_exitinfo1
    size = _SIZES.get(info & _SIZE_BITS)
    if size is None or info >> 32 or info & 0xFFFF & ~(_IN | _SIZE_BITS | _ADDRESS_BITS):
        return Refusal.INVALID_INPUT
    port = info >> 16
    if info & _IN:
        return PortExit(port, size, None)
    if not ghcb.valid("rax"):
        return Refusal.MISSING_INPUT
    return PortExit(port, size, ghcb.rax & (1 << 8 * size) - 1)


def _msr(ghcb: Ghcb) -> MsrExit | Refusal:
    if ghcb.sw_exitinfo1 > 1:
        return Refusal.INVALID_INPUT
    if not ghcb.valid("rcx") or (ghcb.sw_exitinfo1 and not ghcb.valid("rax", "rdx")):
        return Refusal.MISSING_INPUT
    value = (ghcb.rdx & 0xFFFF_FFFF) << 32 | ghcb.rax & 0xFFFF_FFFF
    return MsrExit(ghcb.rcx & 0xFFFF_FFFF, value if ghcb.sw_exitinfo1 else None)


def _hypercall(ghcb: Ghcb) -> HypercallExit | Refusal:
    if not ghcb.valid("rax", "cpl"):
        return Refusal.MISSING_INPUT
    if ghcb.cpl:
        return Refusal.INVALID_INPUT
    return HypercallExit(ghcb.rax, (ghcb.read("rbx"), ghcb.read("rcx"), ghcb.read("rdx"), ghcb.read("rsi")))


def _mmio(ghcb: Ghcb, gpa: int) -> MmioExit | Refusal:
    size = ghcb.sw_exitinfo2
    if not ghcb.valid("sw_scratch"):
        return Refusal.MISSING_INPUT
    if size not in (1, 2, 4, 8):
        return Refusal.INVALID_INPUT
    buffer = ghcb.sw_scratch - gpa
    if not BUFFER_OFFSET <= buffer <= BUFFER_OFFSET + BUFFER_SIZE - size:
        return Refusal.INVALID_SCRATCH_AREA
    value = None
    if ghcb.sw_exitcode == ExitCode.MMIO_WRITE:
        value = int.from_bytes(bytes(ghcb)[buffer : buffer + size], "little")
    return MmioExit(ghcb.sw_exitinfo1, size, buffer, value)


# --- answers by page ------------------------------------------------------------------------------------------------

_ISSUE_EXCEPTION: Final = 1
_MALFORMED: Final = 2
_GENERAL_PROTECTION: Final = 0x8000_0B0D
"""EVENTINJ's form: valid, with error code (0), exception, vector 13."""


def answer(ghcb: Ghcb, **outputs: int) -> None:
    """The request was carried out; `outputs` are fields with their values."""
    _respond(ghcb, 0, 0)
    for name, value in outputs.items():
        ghcb.put(name, value & _MASK_64)


def refuse(ghcb: Ghcb, reason: Refusal) -> None:
    """The request was malformed."""
    _respond(ghcb, _MALFORMED, reason)


def raise_protection(ghcb: Ghcb) -> None:
    """The instruction has to end in #GP."""
    _respond(ghcb, _ISSUE_EXCEPTION, _GENERAL_PROTECTION)


def _respond(ghcb: Ghcb, info1: int, info2: int) -> None:
    ctypes.memset(ghcb.valid_bitmap, 0, ctypes.sizeof(ghcb.valid_bitmap))
    ghcb.put("sw_exitinfo1", info1)
    ghcb.put("sw_exitinfo2", info2)


# --- requests and responses by MSR ------------------------------------------------------------------------------------

_INFO: Final = 0xFFF
_PAGE_MASK: Final = 0x000F_FFFF_FFFF_F000


@dataclass(frozen=True, slots=True)
class SevInfoRequest:
    """Which versions of the protocol there are, and where the C-bit is."""


@dataclass(frozen=True, slots=True)
class CpuidRequest:
    """One register of CPUID's subleaf 0; 0 to 3 are eax, ebx, ecx, edx."""

    leaf: int
    register: int


@dataclass(frozen=True, slots=True)
class PageStateRequest:
    """Make one page private or shared."""

    gpa: int
    private: bool


@dataclass(frozen=True, slots=True)
class FeaturesRequest:
    """What the hypervisor can do beyond the protocol's version."""


@dataclass(frozen=True, slots=True)
class TerminationRequest:
    """End the guest, for a reason out of a set of reasons."""

    reason_set: int
    reason: int


MsrRequest: TypeAlias = SevInfoRequest | CpuidRequest | PageStateRequest | FeaturesRequest | TerminationRequest

_PRIVATE: Final = 1
_SHARED: Final = 2


def msr_request(value: int) -> MsrRequest | None:
    """What a value of the GHCB MSR asks for; None if nothing that is known here."""
    match value & _INFO:
        case 0x002:
            return SevInfoRequest()
        case 0x004:
            return CpuidRequest(value >> 32, value >> 30 & 3)
        case 0x014:
            operation = value >> 52 & 0xF
            return PageStateRequest(value & _PAGE_MASK, operation == _PRIVATE) if operation in (1, _SHARED) else None
        case 0x080:
            return FeaturesRequest()
        case 0x100:
            return TerminationRequest(value >> 12 & 0xF, value >> 16 & 0xFF)
        case _:
            return None


def sev_info_response(cbit: int) -> int:
    """Answer to SevInfoRequest."""
    return MAX_VERSION << 48 | MIN_VERSION << 32 | cbit << 24 | 0x001


def cpuid_response(value: int) -> int:
    """Answer to CpuidRequest."""
    return value << 32 | 0x005


def page_state_response(error: int) -> int:
    """Answer to PageStateRequest: 0 is success, anything else the reason (here an errno)."""
    return (error & 0xFFFF_FFFF) << 32 | 0x015


def features_response() -> int:
    """Answer to FeaturesRequest: none."""
    return 0x081
