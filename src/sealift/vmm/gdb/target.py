"""What registers gdb is told of, and how they stand in its packets (GDB manual, appendix G.5.14).

x87 registers are part of gdb's core feature, and are said to be unavailable: the platform shows none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sealift.vmm.debug.cpu import GENERAL, CpuRegisters
from sealift.wire.platform import Registers


@dataclass(frozen=True, slots=True)
class Register:
    """One register: its name, its size in bytes, and gdb's type of it."""

    name: str
    size: int
    kind: str


_SEGMENTS: Final = ("cs", "ss", "ds", "es", "fs", "gs")
_CONTROL: Final = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
_X87_CONTROL: Final = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
_POINTERS: Final = {"rbp": "data_ptr", "rsp": "data_ptr"}

_FEATURES: Final = {
    "org.gnu.gdb.i386.core": (
        *(Register(name, 8, _POINTERS.get(name, "int64")) for name in GENERAL),
        Register("rip", 8, "code_ptr"),
        Register("eflags", 4, "int32"),
        *(Register(name, 4, "int32") for name in _SEGMENTS),
        *(Register(f"st{number}", 10, "i387_ext") for number in range(8)),
        *(Register(name, 4, "int") for name in _X87_CONTROL),
    ),
    "org.gnu.gdb.i386.segments": (Register("fs_base", 8, "int64"), Register("gs_base", 8, "int64")),
    "org.sealift.system": tuple(Register(name, 8, "int64") for name in ("k_gs_base", *_CONTROL)),
}

REGISTERS: Final = tuple(register for feature in _FEATURES.values() for register in feature)
"""All of them, in the order of their numbers."""

_SETTABLE: Final = frozenset((*GENERAL, "rip", "eflags", "cr0", "cr2", "cr3", "cr4", "efer"))


def description() -> str:
    """target.xml."""
    lines = ['<?xml version="1.0"?>', '<!DOCTYPE target SYSTEM "gdb-target.dtd">', "<target>"]
    lines.append("<architecture>i386:x86-64</architecture>")
    for feature, registers in _FEATURES.items():
        lines.append(f'<feature name="{feature}">')
        lines += (f'<reg name="{each.name}" bitsize="{each.size * 8}" type="{each.kind}"/>' for each in registers)
        lines.append("</feature>")
    return "\n".join((*lines, "</target>", ""))


def shown(cpu: CpuRegisters, register: Register) -> str:
    """A register's value in gdb's hexadecimal, which is x for each digit that is not available."""
    value = _values(cpu).get(register.name)
    return "x" * (2 * register.size) if value is None else value.to_bytes(register.size, "little").hex()


def all_shown(cpu: CpuRegisters) -> str:
    """Those of the packet g."""
    values = _values(cpu)
    return "".join(
        "x" * (2 * each.size) if each.name not in values else values[each.name].to_bytes(each.size, "little").hex()
        for each in REGISTERS
    )


def with_value(registers: Registers, register: Register, value: int) -> Registers | None:
    """The same with one of them changed; None if that one cannot be."""
    if register.name not in _SETTABLE:
        return None
    if register.name in GENERAL:
        at = GENERAL.index(register.name)
        return _replaced(registers, "general", (*registers.general[:at], value, *registers.general[at + 1 :]))
    return _replaced(registers, "rflags" if register.name == "eflags" else register.name, value)


def _replaced(registers: Registers, name: str, value: object) -> Registers:
    fields = {field: getattr(registers, field) for field in registers.__struct_fields__}
    return Registers(**{**fields, name: value})


def _values(cpu: CpuRegisters) -> dict[str, int]:
    registers, system = cpu.registers, cpu.system
    return {
        **dict(zip(GENERAL, registers.general, strict=True)),
        "rip": registers.rip,
        "eflags": registers.rflags & 0xFFFF_FFFF,
        **{name: getattr(system, name).selector for name in _SEGMENTS},
        "fs_base": system.fs.base,
        "gs_base": system.gs.base,
        "k_gs_base": system.kernel_gs_base,
        **{name: getattr(registers, name) for name in ("cr0", "cr2", "cr3", "cr4", "efer")},
        "cr8": system.cr8,
    }
