"""The layout of a vmcore: an ELF64 core file as QEMU's dump-guest-memory writes it (System V ABI; dump/dump.c).

::

    ELF header │ program headers │ (section header, if those are too many to count) │ notes │ memory, page-aligned
                 PT_NOTE, PT_LOAD …                                                   for each vCPU NT_PRSTATUS, QEMU
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sealift.address import PAGE_SIZE
from sealift.vmm.debug.cpu import GENERAL, CpuRegisters
from sealift.wire.platform import Segment

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER: Final = struct.Struct("<IIQQQQQQ")
_SECTION_HEADER: Final = struct.Struct("<IIQQQQIIQQ")
_NOTE: Final = struct.Struct("<III")

_IDENT: Final = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
"""64-bit, little-endian, version 1."""
_ET_CORE, _EM_X86_64, _EV_CURRENT = 4, 62, 1
_PT_LOAD, _PT_NOTE, _NT_PRSTATUS = 1, 4, 1
_PN_XNUM: Final = 0xFFFF
"""In place of a number of program headers that has no room: section header 0 says how many."""

_PRSTATUS: Final = struct.Struct("<32xI76x27Q8x")
"""struct elf_prstatus of x86-64: process id and registers; the rest is of no use here."""
_PRSTATUS_ORDER: Final = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8"),
    *("rax", "rcx", "rdx", "rsi", "rdi"),
)

_CPU_STATE: Final = struct.Struct("<II18Q")
_CPU_SEGMENT: Final = struct.Struct("<IIIIQ")
_CPU_CONTROL: Final = struct.Struct("<6Q")
_CPU_STATE_VERSION: Final = 1
_CPU_STATE_ORDER: Final = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *(f"r{number}" for number in range(8, 16)),
)


@dataclass(frozen=True, slots=True)
class Load:
    """A PT_LOAD: `length` bytes of the file, from `offset` (counted from where memory begins), and where they are."""

    address: int
    gpa: int
    length: int
    offset: int


def head(loads: Sequence[Load], cpus: Sequence[CpuRegisters]) -> bytes:
    """All that comes before memory."""
    notes = b"".join(_prstatus(cpu) for cpu in cpus) + b"".join(_cpu_state(cpu) for cpu in cpus)
    count = len(loads) + bool(notes)
    many = count >= _PN_XNUM
    sections_at = _HEADER.size + count * _PROGRAM_HEADER.size
    notes_at = sections_at + (_SECTION_HEADER.size if many else 0)
    memory_at = -(-(notes_at + len(notes)) // PAGE_SIZE) * PAGE_SIZE
    parts = [
        _HEADER.pack(
            *(_IDENT, _ET_CORE, _EM_X86_64, _EV_CURRENT, 0, _HEADER.size, sections_at if many else 0, 0, _HEADER.size),
            *(_PROGRAM_HEADER.size, _PN_XNUM if many else count, _SECTION_HEADER.size, int(many), 0),
        )
    ]
    if notes:
        parts.append(_PROGRAM_HEADER.pack(_PT_NOTE, 0, notes_at, 0, 0, len(notes), len(notes), 0))
    parts += [
        _PROGRAM_HEADER.pack(_PT_LOAD, 0, memory_at + load.offset, load.address, load.gpa, *[load.length] * 2, 0)
        for load in loads
    ]
    if many:
        parts.append(_SECTION_HEADER.pack(0, 0, 0, 0, 0, 0, 0, count, 0, 0))
    return b"".join((*parts, notes)).ljust(memory_at, b"\0")


def _note(name: bytes, kind: int, content: bytes) -> bytes:
    terminated = name + b"\0"
    return b"".join((_NOTE.pack(len(terminated), len(content), kind), _padded(terminated), _padded(content)))


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 4) * 4, b"\0")


def _by_name(cpu: CpuRegisters) -> dict[str, int]:
    return dict(zip(GENERAL, cpu.registers.general, strict=True))


def _prstatus(cpu: CpuRegisters) -> bytes:
    """Threads are numbered from 1, as 0 is no process id."""
    general, system, registers = _by_name(cpu), cpu.system, cpu.registers
    values = (
        *(general[name] for name in _PRSTATUS_ORDER),
        *(0, registers.rip, system.cs.selector, registers.rflags, general["rsp"], system.ss.selector),
        *(system.fs.base, system.gs.base, system.ds.selector, system.es.selector),
        *(system.fs.selector, system.gs.selector),
    )
    return _note(b"CORE", _NT_PRSTATUS, _PRSTATUS.pack(cpu.index + 1, *values))


def _cpu_state(cpu: CpuRegisters) -> bytes:
    """QEMU's own note (struct QEMUCPUState): what a crash tool needs to walk page tables."""
    general, system, registers = _by_name(cpu), cpu.system, cpu.registers
    segments = (system.cs, system.ds, system.es, system.fs, system.gs, system.ss, system.ldtr, system.tr)
    tables = (Segment(0, table.base, table.limit, 0) for table in (system.gdtr, system.idtr))
    behind = b"".join(
        _CPU_SEGMENT.pack(each.selector, each.limit, _descriptor_flags(each.attributes), 0, each.base)
        for each in (*segments, *tables)
    ) + _CPU_CONTROL.pack(*(registers.cr0, 0, registers.cr2, registers.cr3, registers.cr4), cpu.system.kernel_gs_base)
    size = _CPU_STATE.size + len(behind)
    values = (*(general[name] for name in _CPU_STATE_ORDER), registers.rip, registers.rflags)
    return _note(b"QEMU", 0, _CPU_STATE.pack(_CPU_STATE_VERSION, size, *values) + behind)


def _descriptor_flags(attributes: int) -> int:
    """As in a descriptor's upper half, where QEMU keeps them."""
    return (attributes & 0xFF) << 8 | (attributes >> 8) << 20
