"""The VMSA: the page that holds an SEV-ES vCPU while it is out of guest mode (AMD64 APM volume 2, table B-4).

Its bytes are hashed into the launch digest as the hypervisor supplies them, so an owner has to know what a
hypervisor puts there. Two generations of KVM differ in the FPU's fields; both are in use (`FpuProfile`).
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64
from enum import Enum
from types import MappingProxyType
from typing import Final

from sealift.address import PAGE_SIZE

RESET_EIP: Final = 0xFFFF_FFF0
"""Where the first vCPU begins after a reset; the others begin where firmware's SEV-ES reset block says."""

# Attributes of a segment as in a VMCB: descriptor bits 40-47 and 52-55 in a row.
CODE_16: Final = 0x9B
DATA_16: Final = 0x93
LDT: Final = 0x82
BUSY_TSS: Final = 0x8B

EFER_SVME: Final = 1 << 12
CR4_MCE: Final = 1 << 6
CR0_EXTENSION_TYPE: Final = 1 << 4
DR6_RESET: Final = 0xFFFF_0FF0
DR7_RESET: Final = 0x400
RFLAGS_RESET: Final = 0x2
PAT_RESET: Final = 0x0007_0406_0007_0406
XCR0_X87: Final = 1
MXCSR_RESET: Final = 0x1F80
FCW_RESET: Final = 0x37F


class FpuProfile(Enum):
    """What a hypervisor leaves in MXCSR and the x87 control word of a fresh vCPU."""

    LEGACY = "legacy"
    """Zeros."""
    INIT2 = "init2"
    """Their reset values."""

    @property
    def made_by(self) -> str:
        """Which hypervisors leave that: the ioctl by which QEMU makes the VM decides."""
        if self is FpuProfile.LEGACY:
            return "KVM_SEV_ES_INIT: Linux before 6.10, and older QEMU (7.2, 8) on any"
        return "KVM_SEV_INIT2: Linux 6.10 and later"


class Segment(ctypes.LittleEndianStructure):
    """A segment or table register."""

    _fields_ = (("selector", c_uint16), ("attributes", c_uint16), ("limit", c_uint32), ("base", c_uint64))


class Vmsa(ctypes.LittleEndianStructure):
    """The whole page; fields that KVM leaves zero and nobody here uses are reserved by offset."""

    _fields_ = (
        ("es", Segment),
        ("cs", Segment),
        ("ss", Segment),
        ("ds", Segment),
        ("fs", Segment),
        ("gs", Segment),
        ("gdtr", Segment),
        ("ldtr", Segment),
        ("idtr", Segment),
        ("tr", Segment),
        ("reserved_0a0", c_uint8 * 0x2B),
        ("cpl", c_uint8),
        ("reserved_0cc", c_uint8 * 4),
        ("efer", c_uint64),
        ("reserved_0d8", c_uint8 * 0x68),
        ("xss", c_uint64),
        ("cr4", c_uint64),
        ("cr3", c_uint64),
        ("cr0", c_uint64),
        ("dr7", c_uint64),
        ("dr6", c_uint64),
        ("rflags", c_uint64),
        ("rip", c_uint64),
        ("reserved_180", c_uint8 * 0x58),
        ("rsp", c_uint64),
        ("reserved_1e0", c_uint8 * 0x18),
        ("rax", c_uint64),
        ("star", c_uint64),
        ("lstar", c_uint64),
        ("cstar", c_uint64),
        ("sfmask", c_uint64),
        ("kernel_gs_base", c_uint64),
        ("sysenter_cs", c_uint64),
        ("sysenter_esp", c_uint64),
        ("sysenter_eip", c_uint64),
        ("cr2", c_uint64),
        ("reserved_248", c_uint8 * 0x20),
        ("g_pat", c_uint64),
        ("reserved_270", c_uint8 * 0x78),
        ("pkru", c_uint32),
        ("tsc_aux", c_uint32),
        ("reserved_2f0", c_uint8 * 0x18),
        ("rcx", c_uint64),
        ("rdx", c_uint64),
        ("rbx", c_uint64),
        ("reserved_320", c_uint64),
        ("rbp", c_uint64),
        ("rsi", c_uint64),
        ("rdi", c_uint64),
        ("r8", c_uint64),
        ("r9", c_uint64),
        ("r10", c_uint64),
        ("r11", c_uint64),
        ("r12", c_uint64),
        ("r13", c_uint64),
        ("r14", c_uint64),
        ("r15", c_uint64),
        ("reserved_380", c_uint8 * 0x30),
        ("sev_features", c_uint64),
        ("reserved_3b8", c_uint8 * 0x30),
        ("xcr0", c_uint64),
        ("reserved_3f0", c_uint8 * 0x10),
        ("x87_dp", c_uint64),
        ("mxcsr", c_uint32),
        ("x87_ftw", c_uint16),
        ("x87_fsw", c_uint16),
        ("x87_fcw", c_uint16),
        ("x87_fop", c_uint16),
        ("x87_ds", c_uint16),
        ("x87_cs", c_uint16),
        ("x87_rip", c_uint64),
        ("fpreg_x87", c_uint8 * 80),
        ("fpreg_xmm", c_uint8 * 256),
        ("fpreg_ymm", c_uint8 * 256),
        ("reserved_670", c_uint8 * 0x990),
    )


if ctypes.sizeof(Vmsa) != PAGE_SIZE:
    raise AssertionError("the VMSA is not one page")


def signature(family: int, model: int, stepping: int) -> int:
    """CPUID leaf 1's EAX of a vCPU, which rdx holds after a reset (AMD publication 25481, Fn0000_0001_EAX).

    Raises:
        ValueError: a number that has no encoding.
    """
    extended = max(family - 0xF, 0)
    if not (0 <= extended <= 0xFF and family >= 0 and 0 <= model <= 0xFF and 0 <= stepping <= 0xF):
        raise ValueError(f"there is no CPU of family {family}, model {model}, stepping {stepping}")
    return extended << 20 | (model >> 4) << 16 | min(family, 0xF) << 8 | (model & 0xF) << 4 | stepping


_NAPLES, _ROME, _MILAN = signature(23, 1, 2), signature(23, 49, 0), signature(25, 1, 1)
_GENOA, _TURIN = signature(25, 17, 0), signature(26, 0, 0)

CPU_SIGNATURES: Final = MappingProxyType(
    {
        "EPYC": _NAPLES,
        "EPYC-v1": _NAPLES,
        "EPYC-v2": _NAPLES,
        "EPYC-IBPB": _NAPLES,
        "EPYC-v3": _NAPLES,
        "EPYC-v4": _NAPLES,
        "EPYC-Rome": _ROME,
        "EPYC-Rome-v1": _ROME,
        "EPYC-Rome-v2": _ROME,
        "EPYC-Rome-v3": _ROME,
        "EPYC-Milan": _MILAN,
        "EPYC-Milan-v1": _MILAN,
        "EPYC-Milan-v2": _MILAN,
        "EPYC-Genoa": _GENOA,
        "EPYC-Genoa-v1": _GENOA,
        "EPYC-Turin": _TURIN,
    }
)
"""QEMU's names of CPU models to the signatures of their vCPUs."""


def reset_vmsa(eip: int, signature: int, fpu: FpuProfile, sev_features: int = 0) -> bytes:
    """The page of a vCPU after reset, as QEMU on KVM supplies it.

    Args:
        eip: linear address of the first instruction, below 4 GiB; its high half becomes the code segment's base.
        signature: of the vCPU's model (`CPU_SIGNATURES`, `signature`).
        fpu: which KVM.
        sev_features: 0, or 0x20 where the host swaps debug registers.

    Raises:
        ValueError: `eip` or `signature` needs more than 32 bits.
    """
    if not 0 <= eip < 1 << 32 or not 0 <= signature < 1 << 32:
        raise ValueError("the address of the first instruction and the CPU's signature are 32-bit numbers")
    data = Segment(0, DATA_16, 0xFFFF, 0)
    page = Vmsa(
        es=data,
        cs=Segment(0xF000, CODE_16, 0xFFFF, eip & 0xFFFF_0000),
        ss=data,
        ds=data,
        fs=data,
        gs=data,
        gdtr=Segment(0, 0, 0xFFFF, 0),
        ldtr=Segment(0, LDT, 0xFFFF, 0),
        idtr=Segment(0, 0, 0xFFFF, 0),
        tr=Segment(0, BUSY_TSS, 0xFFFF, 0),
        efer=EFER_SVME,
        cr4=CR4_MCE,
        cr0=CR0_EXTENSION_TYPE,
        dr7=DR7_RESET,
        dr6=DR6_RESET,
        rflags=RFLAGS_RESET,
        rip=eip & 0xFFFF,
        g_pat=PAT_RESET,
        rdx=signature,
        sev_features=sev_features,
        xcr0=XCR0_X87,
    )
    if fpu is FpuProfile.INIT2:
        page.mxcsr, page.x87_fcw = MXCSR_RESET, FCW_RESET
    return bytes(page)
