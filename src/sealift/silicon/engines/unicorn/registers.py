"""A vCPU's architectural state as named registers.

Unicorn's own context blob is tied to one build of the library, so state that travels is written register by
register. Segments are flat in 64-bit mode and a guest enters with null selectors; what programs can change is FS and
GS base and the descriptor tables. A guest that loads a selector is beyond this form: its state cannot be saved. Those
that do, guests with SEV-ES, have VMSAs (`vmsa_state`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from unicorn import Uc, UcError
from unicorn import x86_const as x86

from sealift.errors import GuestError, StreamError
from sealift.wire.packed import unpack
from sealift.wire.platform import Registers, Segment, SystemRegisters, Table

_STATE_VERSION = 1
_GENERAL = (
    *("RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP"),
    *(f"R{number}" for number in range(8, 16)),
)
_CONTROL = ("CR0", "CR2", "CR3", "CR4", "CR8")
_INTEGERS = (*_GENERAL, *_CONTROL, "RIP", "EFLAGS", "FS_BASE", "GS_BASE", "MXCSR", "FPCW", "FPSW", "FPTAG")
_VECTORS = tuple(f"XMM{number}" for number in range(16))
_X87 = tuple(f"FP{number}" for number in range(8))
_TABLES = ("GDTR", "IDTR")
_SELECTORS = ("CS", "SS", "DS", "ES", "FS", "GS")
MSRS = {
    "EFER": 0xC000_0080,
    "STAR": 0xC000_0081,
    "LSTAR": 0xC000_0082,
    "CSTAR": 0xC000_0083,
    "SFMASK": 0xC000_0084,
    "KERNEL_GS_BASE": 0xC000_0102,
    "SYSENTER_CS": 0x174,
    "SYSENTER_ESP": 0x175,
    "SYSENTER_EIP": 0x176,
    "PAT": 0x277,
}
_EFER = MSRS["EFER"]
_FLAT = 0xFFFF_FFFF
_CODE_64, _DATA = 0xA9B, 0xC93
"""Attributes as in a VMCB: 64-bit code, and writable data, both accessed."""
_MAX_64 = (1 << 64) - 1
_MAX_16 = (1 << 16) - 1


def _register(name: str) -> int:
    constant: int = getattr(x86, f"UC_X86_REG_{name}")
    return constant


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names to values; tables as (base, limit), vectors as 16 bytes, x87 registers as (mantissa, exponent)."""

    version: int
    integers: dict[str, int]
    msrs: dict[str, int]
    tables: dict[str, tuple[int, int]]
    vectors: dict[str, bytes]
    x87: dict[str, tuple[int, int]]


def read_registers(uc: Uc) -> Registers:
    """General and control registers of a stopped emulator."""
    return Registers(
        general=tuple(uc.reg_read(_register(name)) for name in _GENERAL),
        rip=uc.reg_read(x86.UC_X86_REG_RIP),
        rflags=uc.reg_read(x86.UC_X86_REG_RFLAGS),
        cr0=uc.reg_read(x86.UC_X86_REG_CR0),
        cr2=uc.reg_read(x86.UC_X86_REG_CR2),
        cr3=uc.reg_read(x86.UC_X86_REG_CR3),
        cr4=uc.reg_read(x86.UC_X86_REG_CR4),
        efer=uc.msr_read(_EFER),
    )


def read_system_registers(uc: Uc) -> SystemRegisters:
    """Segments and descriptor tables of a stopped emulator; segments are flat, as programs of this engine have them."""
    bases = {"fs": uc.reg_read(x86.UC_X86_REG_FS_BASE), "gs": uc.reg_read(x86.UC_X86_REG_GS_BASE)}
    flat = {
        name: Segment(
            uc.reg_read(_register(name.upper())), bases.get(name, 0), _FLAT, _CODE_64 if name == "cs" else _DATA
        )
        for name in ("es", "cs", "ss", "ds", "fs", "gs")
    }
    system = {name: uc.reg_read(_register(name.upper())) for name in ("ldtr", "tr", "gdtr", "idtr")}
    segments = {name: Segment(selector, base, limit, 0) for name, (selector, base, limit, _) in system.items()}
    return SystemRegisters(
        **flat,
        ldtr=segments["ldtr"],
        tr=segments["tr"],
        gdtr=Table(segments["gdtr"].base, segments["gdtr"].limit),
        idtr=Table(segments["idtr"].base, segments["idtr"].limit),
        cr8=uc.reg_read(x86.UC_X86_REG_CR8),
        kernel_gs_base=uc.msr_read(MSRS["KERNEL_GS_BASE"]),
    )


def write_registers(uc: Uc, registers: Registers) -> None:
    """Load general and control registers into a stopped emulator.

    Raises:
        StreamError: not 16 general registers, or a value that is not 64 bits wide.
    """
    control = (registers.cr0, registers.cr2, registers.cr3, registers.cr4, registers.efer)
    values = (*registers.general, registers.rip, registers.rflags, *control)
    if len(registers.general) != len(_GENERAL) or not all(0 <= value <= _MAX_64 for value in values):
        raise StreamError("registers must be sixteen general ones, each a 64-bit number")
    uc.msr_write(_EFER, registers.efer)
    uc.reg_write(x86.UC_X86_REG_CR4, registers.cr4)
    uc.reg_write(x86.UC_X86_REG_CR3, registers.cr3)
    uc.reg_write(x86.UC_X86_REG_CR2, registers.cr2)
    uc.reg_write(x86.UC_X86_REG_CR0, registers.cr0)
    for name, value in zip(_GENERAL, registers.general, strict=True):
        uc.reg_write(_register(name), value)
    uc.reg_write(x86.UC_X86_REG_RFLAGS, registers.rflags)
    uc.reg_write(x86.UC_X86_REG_RIP, registers.rip)


def save_state(uc: Uc) -> bytes:
    """The whole state of a stopped emulator.

    Raises:
        GuestError: the guest loaded a segment selector.
    """
    loaded = [name for name in _SELECTORS if uc.reg_read(_register(name))]
    if loaded:
        raise GuestError(f"the guest loaded segment selectors ({', '.join(loaded)}), which this engine cannot move")
    state = _State(
        version=_STATE_VERSION,
        integers={name: uc.reg_read(_register(name)) for name in _INTEGERS},
        msrs={name: uc.msr_read(number) for name, number in MSRS.items()},
        tables={name: uc.reg_read(_register(name))[1:3] for name in _TABLES},
        vectors={name: uc.reg_read(_register(name)).to_bytes(16, "little") for name in _VECTORS},
        x87={name: uc.reg_read(_register(name)) for name in _X87},
    )
    return msgspec.msgpack.encode(state)


def restore_state(uc: Uc, data: bytes) -> None:
    """Load `save_state`'s result into a fresh emulator.

    Raises:
        StreamError: not a state of this version, or registers missing, unknown or too wide.
    """
    state = unpack(data, _State, "vCPU state")
    if state.version != _STATE_VERSION:
        raise StreamError(f"vCPU state has version {state.version}; this engine reads version {_STATE_VERSION}")
    _expect(state.integers, _INTEGERS)
    _expect(state.msrs, MSRS)
    _expect(state.tables, _TABLES)
    _expect(state.vectors, _VECTORS)
    _expect(state.x87, _X87)
    _check_widths(state)
    try:
        _load(uc, state)
    except UcError as error:
        raise StreamError("vCPU state holds a value its register cannot take") from error


def _expect(found: Mapping[str, object], names: Iterable[str]) -> None:
    if set(found) != set(names):
        raise StreamError("vCPU state lacks registers or has unknown ones")


def _check_widths(state: _State) -> None:
    """Unicorn would cut off what is too wide."""
    mantissas = [mantissa for mantissa, _ in state.x87.values()]
    words = all(0 <= value <= _MAX_64 for value in (*state.integers.values(), *state.msrs.values(), *mantissas))
    vectors = all(len(raw) == 16 for raw in state.vectors.values())
    exponents = all(0 <= exponent <= _MAX_16 for _, exponent in state.x87.values())
    if not (words and vectors and exponents):
        raise StreamError("vCPU state holds a value that is too wide for its register")


def _load(uc: Uc, state: _State) -> None:
    # EFER and CR4 before CR0: paging must find long mode and PAE already set.
    for name, value in state.msrs.items():
        uc.msr_write(MSRS[name], value)
    late = ("CR0", "EFLAGS", "RIP")
    for name, value in state.integers.items():
        if name not in late:
            uc.reg_write(_register(name), value)
    for name, (base, limit) in state.tables.items():
        uc.reg_write(_register(name), (0, base, limit, 0))
    for name, raw in state.vectors.items():
        uc.reg_write(_register(name), int.from_bytes(raw, "little"))
    for name, pair in state.x87.items():
        uc.reg_write(_register(name), pair)
    for name in late:
        uc.reg_write(_register(name), state.integers[name])
