"""A vCPU's registers as a VMSA, the form in which those of an SEV-ES guest are launched, kept and moved.

The emulator has no registers beside these but CR8, which belongs to interrupt controllers that no such guest has. What
the page holds and the emulator lacks stays as it was loaded.
"""

from __future__ import annotations

import ctypes
from typing import Final

from unicorn import Uc, UcError
from unicorn import x86_const as x86

from sealift.address import PAGE_SIZE
from sealift.errors import StreamError
from sealift.sev.vmsa import EFER_SVME, Vmsa
from sealift.silicon.engines.unicorn.registers import MSRS

_INTEGERS: Final = {
    name: getattr(x86, f"UC_X86_REG_{name.upper()}")
    for name in (
        *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16))),
        *("cr2", "cr3", "mxcsr"),
    )
}
_X87: Final = {"x87_ftw": x86.UC_X86_REG_FPTAG, "x87_fsw": x86.UC_X86_REG_FPSW, "x87_fcw": x86.UC_X86_REG_FPCW}
_MSRS: Final = {
    name: MSRS[name.removeprefix("g_").upper()]
    for name in (
        *("star", "lstar", "cstar", "sfmask", "kernel_gs_base", "sysenter_cs", "sysenter_esp", "sysenter_eip"),
        "g_pat",
    )
}
_SELECTORS: Final = {"es": x86.UC_X86_REG_ES, "cs": x86.UC_X86_REG_CS, "ss": x86.UC_X86_REG_SS, "ds": x86.UC_X86_REG_DS}
_BASES: Final = {"fs": x86.UC_X86_REG_FS_BASE, "gs": x86.UC_X86_REG_GS_BASE}
_TABLES: Final = {"gdtr": x86.UC_X86_REG_GDTR, "idtr": x86.UC_X86_REG_IDTR}
# Unicorn would look them up in the guest's GDT.
_FIXED: Final = {"fs": x86.UC_X86_REG_FS, "gs": x86.UC_X86_REG_GS}

_EFER: Final = MSRS["EFER"]
_LONG_MODE: Final = 1 << 10
_PAGING: Final = 1 << 31
_PROTECTED: Final = 1
_CODE_64: Final = 1 << 9
_X87_SIZE, _XMM_SIZE = 10, 16


def why_not_entered(page: bytes) -> str:
    """Why this engine cannot run a vCPU from this page, as a sentence; empty if it can."""
    vmsa = Vmsa.from_buffer_copy(page)
    if not (vmsa.efer & _LONG_MODE and vmsa.cr0 & _PAGING and vmsa.cr0 & _PROTECTED and vmsa.cs.attributes & _CODE_64):
        return "the portable engine enters guests in 64-bit mode, and the VMSA has another"
    if vmsa.cpl or vmsa.fs.selector or vmsa.gs.selector or vmsa.cs.base:
        return "the portable engine enters guests in ring 0 with flat segments, and the VMSA has others"
    return ""


def load(uc: Uc, page: bytes) -> None:
    """Load a page into a stopped emulator.

    Raises:
        StreamError: the emulator cannot be in that state.
    """
    if len(page) != PAGE_SIZE or (reason := why_not_entered(page)):
        raise StreamError(reason if len(page) == PAGE_SIZE else f"a VMSA of {len(page)} bytes is not one page")
    try:
        _load(uc, Vmsa.from_buffer_copy(page))
    except UcError as error:
        raise StreamError("the VMSA holds a value its register cannot take") from error


def _load(uc: Uc, vmsa: Vmsa) -> None:
    # EFER and CR4 before CR0: paging must find long mode and PAE already set.
    uc.msr_write(_EFER, vmsa.efer & ~EFER_SVME)
    uc.reg_write(x86.UC_X86_REG_CR4, vmsa.cr4)
    for name, register in (*_INTEGERS.items(), *_X87.items()):
        uc.reg_write(register, getattr(vmsa, name))
    for name, number in _MSRS.items():
        uc.msr_write(number, getattr(vmsa, name))
    for name, register in _BASES.items():
        uc.reg_write(register, getattr(vmsa, name).base)
    for name, register in _TABLES.items():
        table = getattr(vmsa, name)
        uc.reg_write(register, (0, table.base, table.limit, 0))
    for name, register in _SELECTORS.items():
        uc.reg_write(register, getattr(vmsa, name).selector)
    for number in range(8):
        raw = bytes(vmsa.fpreg_x87)[number * _X87_SIZE : (number + 1) * _X87_SIZE]
        value = int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")
        uc.reg_write(x86.UC_X86_REG_FP0 + number, value)
    for number in range(16):
        raw = bytes(vmsa.fpreg_xmm)[number * _XMM_SIZE : (number + 1) * _XMM_SIZE]
        uc.reg_write(x86.UC_X86_REG_XMM0 + number, int.from_bytes(raw, "little"))
    uc.reg_write(x86.UC_X86_REG_CR0, vmsa.cr0)
    uc.reg_write(x86.UC_X86_REG_RFLAGS, vmsa.rflags)
    uc.reg_write(x86.UC_X86_REG_RIP, vmsa.rip)


def save(uc: Uc, loaded: bytes) -> bytes:
    """The page of a stopped emulator; `loaded` is the one it started from."""
    vmsa = Vmsa.from_buffer_copy(loaded)
    vmsa.efer = uc.msr_read(_EFER) | EFER_SVME
    control = {"cr0": x86.UC_X86_REG_CR0, "cr4": x86.UC_X86_REG_CR4}
    flow = {"rflags": x86.UC_X86_REG_RFLAGS, "rip": x86.UC_X86_REG_RIP}
    for name, register in (*_INTEGERS.items(), *_X87.items(), *control.items(), *flow.items()):
        setattr(vmsa, name, uc.reg_read(register))
    for name, number in _MSRS.items():
        setattr(vmsa, name, uc.msr_read(number))
    for name, register in _BASES.items():
        getattr(vmsa, name).base = uc.reg_read(register)
    for name, register in _TABLES.items():
        _, base, limit, _ = uc.reg_read(register)
        getattr(vmsa, name).base, getattr(vmsa, name).limit = base, limit
    for name, register in (*_SELECTORS.items(), *_FIXED.items()):
        getattr(vmsa, name).selector = uc.reg_read(register)
    x87 = (uc.reg_read(x86.UC_X86_REG_FP0 + number) for number in range(8))
    _fill(vmsa.fpreg_x87, b"".join(m.to_bytes(8, "little") + e.to_bytes(2, "little") for m, e in x87))
    vectors = (uc.reg_read(x86.UC_X86_REG_XMM0 + number) for number in range(16))
    _fill(vmsa.fpreg_xmm, b"".join(vector.to_bytes(_XMM_SIZE, "little") for vector in vectors))
    return bytes(vmsa)


def _fill(field: ctypes.Array[ctypes.c_uint8], raw: bytes) -> None:
    ctypes.memmove(field, raw, len(raw))
