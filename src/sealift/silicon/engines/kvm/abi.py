"""The part of KVM's interface that this engine uses: structures, request numbers, constants.

Source: ``linux/kvm.h`` and ``asm/kvm.h`` (x86) of the Linux UAPI; `tests/silicon/test_kvm_abi.py` compiles a probe
against those headers and compares every size, offset and number. Names are the kernel's, without their KVM_ prefix.
"""

from __future__ import annotations

import ctypes
from typing import Final

_u8, _u16, _u32, _u64, _s64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64

_IOC_WRITE, _IOC_READ = 1, 2
_KVMIO: Final = 0xAE

API_VERSION: Final = 12


def _request(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | _KVMIO << 8 | number


def _io(number: int) -> int:
    return _request(0, number, 0)


def _iow(number: int, of: type[ctypes.Structure]) -> int:
    return _request(_IOC_WRITE, number, ctypes.sizeof(of))


def _ior(number: int, of: type[ctypes.Structure]) -> int:
    return _request(_IOC_READ, number, ctypes.sizeof(of))


def _iowr(number: int, of: type[ctypes.Structure]) -> int:
    return _request(_IOC_READ | _IOC_WRITE, number, ctypes.sizeof(of))


class _Structure(ctypes.LittleEndianStructure):
    """As the kernel lays it out."""


# --- VM ---------------------------------------------------------------------------------------------------------


class UserspaceMemoryRegion(_Structure):
    """struct kvm_userspace_memory_region."""

    _fields_ = (
        ("slot", _u32),
        ("flags", _u32),
        ("guest_phys_addr", _u64),
        ("memory_size", _u64),
        ("userspace_addr", _u64),
    )


class EnableCap(_Structure):
    """struct kvm_enable_cap."""

    _fields_ = (("cap", _u32), ("flags", _u32), ("args", _u64 * 4), ("pad", _u8 * 64))


class MsrFilterRange(_Structure):
    """struct kvm_msr_filter_range; a bit of the bitmap allows what `flags` name, and a clear one sends it to us."""

    _fields_ = (("flags", _u32), ("nmsrs", _u32), ("base", _u32), ("bitmap", _u64))


MSR_FILTER_MAX_RANGES: Final = 16


class MsrFilter(_Structure):
    """struct kvm_msr_filter."""

    _fields_ = (("flags", _u32), ("ranges", MsrFilterRange * MSR_FILTER_MAX_RANGES))


class DirtyLog(_Structure):
    """struct kvm_dirty_log; the union with a pointer is the pointer."""

    _fields_ = (("slot", _u32), ("padding1", _u32), ("dirty_bitmap", _u64))


class ClearDirtyLog(_Structure):
    """struct kvm_clear_dirty_log; the union with a pointer is the pointer."""

    _fields_ = (("slot", _u32), ("num_pages", _u32), ("first_page", _u64), ("dirty_bitmap", _u64))


class Irqfd(_Structure):
    """struct kvm_irqfd."""

    _fields_ = (("fd", _u32), ("gsi", _u32), ("flags", _u32), ("resamplefd", _u32), ("pad", _u8 * 16))


class PitConfig(_Structure):
    """struct kvm_pit_config."""

    _fields_ = (("flags", _u32), ("pad", _u32 * 15))


class Irqchip(_Structure):
    """struct kvm_irqchip; `chip` is the union of both kinds of chip."""

    _fields_ = (("chip_id", _u32), ("pad", _u32), ("chip", _u8 * 512))


class PitState2(_Structure):
    """struct kvm_pit_state2; three channels of 24 bytes, flags, reserved."""

    _fields_ = (("channels", _u8 * 72), ("flags", _u32), ("reserved", _u32 * 9))


class ClockData(_Structure):
    """struct kvm_clock_data."""

    _fields_ = (
        ("clock", _u64),
        ("flags", _u32),
        ("pad0", _u32),
        ("realtime", _u64),
        ("host_tsc", _u64),
        ("pad", _u32 * 4),
    )


# --- vCPU -------------------------------------------------------------------------------------------------------


class Regs(_Structure):
    """struct kvm_regs, in the order of `sealift.wire.platform.Registers` but for rsi … rsp."""

    _fields_ = tuple(
        (name, _u64)
        for name in (
            *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
            *(f"r{number}" for number in range(8, 16)),
            *("rip", "rflags"),
        )
    )


class Segment(_Structure):
    """struct kvm_segment."""

    _fields_ = (
        ("base", _u64),
        ("limit", _u32),
        ("selector", _u16),
        ("type", _u8),
        ("present", _u8),
        ("dpl", _u8),
        ("db", _u8),
        ("s", _u8),
        ("l", _u8),
        ("g", _u8),
        ("avl", _u8),
        ("unusable", _u8),
        ("padding", _u8),
    )


class Dtable(_Structure):
    """struct kvm_dtable."""

    _fields_ = (("base", _u64), ("limit", _u16), ("padding", _u16 * 3))


class Sregs(_Structure):
    """struct kvm_sregs."""

    _fields_ = (
        *((name, Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        *((name, Dtable) for name in ("gdt", "idt")),
        *((name, _u64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", _u64 * 4),
    )


class MsrEntry(_Structure):
    """struct kvm_msr_entry."""

    _fields_ = (("index", _u32), ("reserved", _u32), ("data", _u64))


class Msrs(_Structure):
    """struct kvm_msrs with room for one entry."""

    _fields_ = (("nmsrs", _u32), ("pad", _u32), ("entry", MsrEntry))


class _MsrsHead(_Structure):
    _fields_ = (("nmsrs", _u32), ("pad", _u32))


MSR_LIST_ROOM: Final = 1024
"""MSR numbers in one answer; today's kernels list about a hundred and fifty."""


class MsrList(_Structure):
    """struct kvm_msr_list with room."""

    _fields_ = (("nmsrs", _u32), ("indices", _u32 * MSR_LIST_ROOM))


class _MsrListHead(_Structure):
    _fields_ = (("nmsrs", _u32),)


class CpuidEntry2(_Structure):
    """struct kvm_cpuid_entry2."""

    _fields_ = (
        ("function", _u32),
        ("index", _u32),
        ("flags", _u32),
        ("eax", _u32),
        ("ebx", _u32),
        ("ecx", _u32),
        ("edx", _u32),
        ("padding", _u32 * 3),
    )


CPUID_ROOM: Final = 256
"""KVM_MAX_CPUID_ENTRIES."""


class Cpuid2(_Structure):
    """struct kvm_cpuid2 with room."""

    _fields_ = (("nent", _u32), ("padding", _u32), ("entries", CpuidEntry2 * CPUID_ROOM))


class _Cpuid2Head(_Structure):
    _fields_ = (("nent", _u32), ("padding", _u32))


class MpState(_Structure):
    """struct kvm_mp_state."""

    _fields_ = (("mp_state", _u32),)


class LapicState(_Structure):
    """struct kvm_lapic_state."""

    _fields_ = (("regs", _u8 * 0x400),)


class VcpuEvents(_Structure):
    """struct kvm_vcpu_events, whose fields travel as they are."""

    _fields_ = (("content", _u8 * 64),)


class Debugregs(_Structure):
    """struct kvm_debugregs."""

    _fields_ = (("db", _u64 * 4), ("dr6", _u64), ("dr7", _u64), ("flags", _u64), ("reserved", _u64 * 9))


class Xsave(_Structure):
    """struct kvm_xsave."""

    _fields_ = (("region", _u8 * 4096),)


class Xcrs(_Structure):
    """struct kvm_xcrs; up to 16 registers of 16 bytes."""

    _fields_ = (("nr_xcrs", _u32), ("flags", _u32), ("xcrs", _u8 * 256), ("padding", _u64 * 16))


# --- kvm_run ----------------------------------------------------------------------------------------------------


class RunIo(_Structure):
    """Port access; the data lie `data_offset` bytes into the run area."""

    _fields_ = (("direction", _u8), ("size", _u8), ("port", _u16), ("count", _u32), ("data_offset", _u64))


class RunMmio(_Structure):
    """Memory-mapped access."""

    _fields_ = (("phys_addr", _u64), ("data", _u8 * 8), ("len", _u32), ("is_write", _u8))


class RunHypercall(_Structure):
    """VMMCALL, up to its result."""

    _fields_ = (("nr", _u64), ("args", _u64 * 6), ("ret", _u64))


class RunMsr(_Structure):
    """RDMSR or WRMSR."""

    _fields_ = (("error", _u8), ("pad", _u8 * 7), ("reason", _u32), ("index", _u32), ("data", _u64))


class RunInternalError(_Structure):
    """KVM cannot go on."""

    _fields_ = (("suberror", _u32), ("ndata", _u32), ("data", _u64 * 16))


class RunFailEntry(_Structure):
    """The processor refused to enter the guest."""

    _fields_ = (("hardware_entry_failure_reason", _u64), ("cpu", _u32))


class _RunUnion(ctypes.Union):
    _fields_ = (
        ("io", RunIo),
        ("mmio", RunMmio),
        ("hypercall", RunHypercall),
        ("msr", RunMsr),
        ("internal", RunInternalError),
        ("fail_entry", RunFailEntry),
        ("padding", _u8 * 256),
    )


class Run(_Structure):
    """struct kvm_run up to the end of its union."""

    _fields_ = (
        ("request_interrupt_window", _u8),
        ("immediate_exit", _u8),
        ("padding1", _u8 * 6),
        ("exit_reason", _u32),
        ("ready_for_interrupt_injection", _u8),
        ("if_flag", _u8),
        ("flags", _u16),
        ("cr8", _u64),
        ("apic_base", _u64),
        ("u", _RunUnion),
    )


EXIT_IO: Final = 2
EXIT_HYPERCALL: Final = 3
EXIT_HLT: Final = 5
EXIT_MMIO: Final = 6
EXIT_IRQ_WINDOW_OPEN: Final = 7
EXIT_SHUTDOWN: Final = 8
EXIT_FAIL_ENTRY: Final = 9
EXIT_INTR: Final = 10
EXIT_INTERNAL_ERROR: Final = 17
EXIT_X86_RDMSR: Final = 29
EXIT_X86_WRMSR: Final = 30

EXIT_IO_IN: Final = 0

CAP_USER_MEMORY: Final = 3
CAP_SET_TSS_ADDR: Final = 4
CAP_IRQFD: Final = 32

CAP_MANUAL_DIRTY_LOG_PROTECT2: Final = 168
CAP_X86_USER_SPACE_MSR: Final = 188
CAP_X86_MSR_FILTER: Final = 189
CAP_EXIT_HYPERCALL: Final = 201

MEM_LOG_DIRTY_PAGES: Final = 1
DIRTY_LOG_MANUAL_PROTECT_ENABLE: Final = 1
PIT_SPEAKER_DUMMY: Final = 1
MSR_FILTER_READ: Final = 1
MSR_FILTER_WRITE: Final = 2
MSR_EXIT_REASON_ALL: Final = 7
"""KVM_MSR_EXIT_REASON_INVAL | _UNKNOWN | _FILTER."""
MP_STATE_RUNNABLE: Final = 0
MP_STATE_UNINITIALIZED: Final = 1

GET_API_VERSION: Final = _io(0x00)
CREATE_VM: Final = _io(0x01)
GET_MSR_INDEX_LIST: Final = _iowr(0x02, _MsrListHead)
CHECK_EXTENSION: Final = _io(0x03)
GET_VCPU_MMAP_SIZE: Final = _io(0x04)
GET_SUPPORTED_CPUID: Final = _iowr(0x05, _Cpuid2Head)

CREATE_VCPU: Final = _io(0x41)
GET_DIRTY_LOG: Final = _iow(0x42, DirtyLog)
SET_USER_MEMORY_REGION: Final = _iow(0x46, UserspaceMemoryRegion)
SET_TSS_ADDR: Final = _io(0x47)
CREATE_IRQCHIP: Final = _io(0x60)
GET_IRQCHIP: Final = _iowr(0x62, Irqchip)
SET_IRQCHIP: Final = _ior(0x63, Irqchip)
IRQFD: Final = _iow(0x76, Irqfd)
CREATE_PIT2: Final = _iow(0x77, PitConfig)
SET_CLOCK: Final = _iow(0x7B, ClockData)
GET_CLOCK: Final = _ior(0x7C, ClockData)
GET_PIT2: Final = _ior(0x9F, PitState2)
SET_PIT2: Final = _iow(0xA0, PitState2)
ENABLE_CAP: Final = _iow(0xA3, EnableCap)
X86_SET_MSR_FILTER: Final = _iow(0xC6, MsrFilter)
CLEAR_DIRTY_LOG: Final = _iowr(0xC0, ClearDirtyLog)

RUN: Final = _io(0x80)
GET_REGS: Final = _ior(0x81, Regs)
SET_REGS: Final = _iow(0x82, Regs)
GET_SREGS: Final = _ior(0x83, Sregs)
SET_SREGS: Final = _iow(0x84, Sregs)
GET_MSRS: Final = _iowr(0x88, _MsrsHead)
SET_MSRS: Final = _iow(0x89, _MsrsHead)
GET_LAPIC: Final = _ior(0x8E, LapicState)
SET_LAPIC: Final = _iow(0x8F, LapicState)
SET_CPUID2: Final = _iow(0x90, _Cpuid2Head)
GET_MP_STATE: Final = _ior(0x98, MpState)
SET_MP_STATE: Final = _iow(0x99, MpState)
GET_VCPU_EVENTS: Final = _ior(0x9F, VcpuEvents)
SET_VCPU_EVENTS: Final = _iow(0xA0, VcpuEvents)
GET_DEBUGREGS: Final = _ior(0xA1, Debugregs)
SET_DEBUGREGS: Final = _iow(0xA2, Debugregs)
GET_XSAVE: Final = _ior(0xA4, Xsave)
SET_XSAVE: Final = _iow(0xA5, Xsave)
GET_XCRS: Final = _ior(0xA6, Xcrs)
SET_XCRS: Final = _iow(0xA7, Xcrs)
KVMCLOCK_CTRL: Final = _io(0xAD)
