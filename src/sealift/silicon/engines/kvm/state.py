"""The state of a vCPU: what is saved, and the order in which a fresh one takes it.

Loading follows KVM's dependencies: CPUID before all, XCRs before XSAVE, SREGS (with the local APIC's mode) before
LAPIC, LAPIC before the MSRs of its timer, events and the run state last. Saving goes the other way round: to be asked
for the run state makes KVM act on a start-up message that waits, and that gives the vCPU other registers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Final

import msgspec

from sealift.errors import StreamError
from sealift.silicon.engines.kvm import abi
from sealift.silicon.engines.kvm.kernel import fetch, give
from sealift.wire.packed import unpack
from sealift.wire.platform import Registers, Segment, SystemRegisters, Table

_STATE_VERSION: Final = 1
_MSRS_LIMIT: Final = abi.MSR_LIST_ROOM

_SAME_ORDER: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp")
_GENERAL: Final = (*_SAME_ORDER, *(f"r{number}" for number in range(8, 16)))
_MAX_64: Final = (1 << 64) - 1

CODE_SELECTOR, DATA_SELECTOR, TASK_SELECTOR = 0x10, 0x18, 0x20

_KERNEL_GS_BASE: Final = 0xC000_0102
_MTRR_DEF_TYPE: Final = 0x2FF
_MTRR_ON_WRITE_BACK: Final = 0xC06
"""Memory types work, and the default is write-back: with them off, Linux leaves its page-attribute table unset."""


class _Msr(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    index: int
    value: int


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """KVM's structures as they are, little-endian; `lapic` and `mp_state` are empty without an interrupt controller."""

    version: int
    cpu: bytes
    xcrs: bytes
    sregs: bytes
    xsave: bytes
    regs: bytes
    lapic: bytes
    msrs: list[_Msr]
    events: bytes
    debugregs: bytes
    mp_state: bytes


_Part = tuple[str, type[ctypes.Structure], int, int]

_BEFORE_MSRS: Final[tuple[_Part, ...]] = (
    ("xcrs", abi.Xcrs, abi.GET_XCRS, abi.SET_XCRS),
    ("sregs", abi.Sregs, abi.GET_SREGS, abi.SET_SREGS),
    ("xsave", abi.Xsave, abi.GET_XSAVE, abi.SET_XSAVE),
    ("regs", abi.Regs, abi.GET_REGS, abi.SET_REGS),
    ("lapic", abi.LapicState, abi.GET_LAPIC, abi.SET_LAPIC),
)
_AFTER_MSRS: Final[tuple[_Part, ...]] = (
    ("events", abi.VcpuEvents, abi.GET_VCPU_EVENTS, abi.SET_VCPU_EVENTS),
    ("debugregs", abi.Debugregs, abi.GET_DEBUGREGS, abi.SET_DEBUGREGS),
    ("mp_state", abi.MpState, abi.GET_MP_STATE, abi.SET_MP_STATE),
)
_OF_THE_IRQCHIP: Final = frozenset({"lapic", "mp_state"})


class VcpuState:
    """Saves and loads the state of one vCPU by its descriptor; it is out of guest mode meanwhile."""

    def __init__(self, fd: int, cpu: bytes, msrs: Iterable[int], *, irqchip: bool) -> None:
        self._fd = fd
        self._cpu = cpu
        self._msrs = tuple(msrs)
        self._irqchip = irqchip

    def reset(self) -> None:
        """What firmware would have set up before any kernel."""
        _set_msr(self._fd, _MTRR_DEF_TYPE, _MTRR_ON_WRITE_BACK)

    def save(self) -> bytes:
        """The whole architectural state."""
        order = reversed(self._parts(_BEFORE_MSRS + _AFTER_MSRS))
        parts = {name: bytes(fetch(self._fd, get, of)) for name, of, get, _ in order}
        absent = dict.fromkeys(_OF_THE_IRQCHIP - parts.keys(), b"")
        state = _State(version=_STATE_VERSION, cpu=self._cpu, msrs=self._read_msrs(), **parts, **absent)
        return msgspec.msgpack.encode(state)

    def restore(self, data: bytes) -> None:
        """Load `save`'s state.

        Raises:
            StreamError: it does not parse, is of another CPU, or KVM here does not take some of it.
        """
        state = unpack(data, _State, "vCPU state")
        if state.version != _STATE_VERSION:
            raise StreamError(f"vCPU state has version {state.version}; this engine reads version {_STATE_VERSION}")
        if state.cpu != self._cpu:
            raise StreamError("the vCPU state is of another CPU than the guest was announced with")
        if len(state.msrs) > _MSRS_LIMIT:
            raise StreamError(f"vCPU state has {len(state.msrs)} MSRs, more than {_MSRS_LIMIT}")
        expected = {name for name, *_ in self._parts(_BEFORE_MSRS + _AFTER_MSRS)}
        if any(bool(getattr(state, name)) != (name in expected) for name in _OF_THE_IRQCHIP):
            raise StreamError("the vCPU state is of a machine with other interrupt controllers")
        self._load(_BEFORE_MSRS, state)
        for msr in state.msrs:
            self._write_msr(msr)
        self._load(_AFTER_MSRS, state)

    def _parts(self, parts: tuple[_Part, ...]) -> list[_Part]:
        return [part for part in parts if self._irqchip or part[0] not in _OF_THE_IRQCHIP]

    def _load(self, parts: tuple[_Part, ...], state: _State) -> None:
        for name, of, _, put in self._parts(parts):
            if name == "xcrs" and not any(state.xcrs):
                continue  # a CPU without XSAVE has none, and KVM refuses to be told so
            load(self._fd, put, of, getattr(state, name), f"the vCPU's {name}")

    def _read_msrs(self) -> list[_Msr]:
        found = []
        for index in self._msrs:
            value = _get_msr(self._fd, index)
            if value is not None:
                found.append(_Msr(index, value))
        return found

    def _write_msr(self, msr: _Msr) -> None:
        """Set one MSR; that KVM refuses one which has the value already does no harm."""
        if not (0 <= msr.index < 1 << 32 and 0 <= msr.value <= _MAX_64):
            raise StreamError("the vCPU state holds an MSR that is none")
        if not _set_msr(self._fd, msr.index, msr.value) and _get_msr(self._fd, msr.index) != msr.value:
            raise StreamError(
                f"KVM here does not take {msr.value:#x} for MSR {msr.index:#x}, which the guest has there"
            )


def load(fd: int, request: int, of: type[ctypes.Structure], data: bytes, what: str) -> None:
    """Give KVM a structure that came from elsewhere.

    Raises:
        StreamError: it has another size, or KVM refuses it.
    """
    if len(data) != ctypes.sizeof(of):
        raise StreamError(f"{what} has {len(data)} bytes, not {ctypes.sizeof(of)}")
    try:
        give(fd, request, of.from_buffer_copy(data))
    except OSError as error:
        raise StreamError(f"KVM does not take {what}") from error


def read_registers(fd: int) -> Registers:
    """General and control registers."""
    regs, sregs = fetch(fd, abi.GET_REGS, abi.Regs), fetch(fd, abi.GET_SREGS, abi.Sregs)
    return Registers(
        general=tuple(getattr(regs, name) for name in _GENERAL),
        rip=regs.rip,
        rflags=regs.rflags,
        cr0=sregs.cr0,
        cr2=sregs.cr2,
        cr3=sregs.cr3,
        cr4=sregs.cr4,
        efer=sregs.efer,
    )


def read_system_registers(fd: int) -> SystemRegisters:
    """Segments and descriptor tables."""
    sregs = fetch(fd, abi.GET_SREGS, abi.Sregs)
    return SystemRegisters(
        **{name: _segment(getattr(sregs, name)) for name in ("es", "cs", "ss", "ds", "fs", "gs")},
        ldtr=_segment(sregs.ldt),
        tr=_segment(sregs.tr),
        gdtr=Table(sregs.gdt.base, sregs.gdt.limit),
        idtr=Table(sregs.idt.base, sregs.idt.limit),
        cr8=sregs.cr8,
        kernel_gs_base=_get_msr(fd, _KERNEL_GS_BASE) or 0,
    )


def _segment(segment: abi.Segment) -> Segment:
    """KVM's fields put together as a VMCB has them."""
    low = segment.type | segment.s << 4 | segment.dpl << 5 | segment.present << 7
    high = segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3
    return Segment(segment.selector, segment.base, segment.limit, low | high << 8)


def write_registers(fd: int, registers: Registers, *, flat: bool) -> None:
    """Load general and control registers; with `flat` also 64-bit segments, as a vCPU starts with.

    Raises:
        StreamError: not 16 general registers, a value that is not 64 bits wide, or KVM refuses the combination.
    """
    control = {name: getattr(registers, name) for name in ("cr0", "cr2", "cr3", "cr4", "efer")}
    values = (*registers.general, registers.rip, registers.rflags, *control.values())
    if len(registers.general) != len(_GENERAL) or not all(0 <= value <= _MAX_64 for value in values):
        raise StreamError("registers must be sixteen general ones, each a 64-bit number")
    sregs = fetch(fd, abi.GET_SREGS, abi.Sregs)
    if flat:
        _make_flat(sregs)
    for name, value in control.items():
        setattr(sregs, name, value)
    regs = abi.Regs(**dict(zip(_GENERAL, registers.general, strict=True)), rip=registers.rip, rflags=registers.rflags)
    try:
        give(fd, abi.SET_SREGS, sregs)
        give(fd, abi.SET_REGS, regs)
    except OSError as error:
        raise StreamError("KVM does not take these registers") from error


def _make_flat(sregs: abi.Sregs) -> None:
    """Segments of 64-bit mode, with no tables behind them: whatever reloads one or faults ends the guest."""
    sregs.cs = abi.Segment(limit=0xFFFF_FFFF, selector=CODE_SELECTOR, type=11, present=1, s=1, l=1, g=1)
    data = abi.Segment(limit=0xFFFF_FFFF, selector=DATA_SELECTOR, type=3, present=1, db=1, s=1, g=1)
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data
    sregs.tr = abi.Segment(limit=0x67, selector=TASK_SELECTOR, type=11, present=1)
    sregs.ldt = abi.Segment(unusable=1)
    sregs.gdt, sregs.idt = abi.Dtable(), abi.Dtable()


def _get_msr(fd: int, index: int) -> int | None:
    request = abi.Msrs(nmsrs=1)
    request.entry.index = index
    try:
        return int(request.entry.data) if give(fd, abi.GET_MSRS, request) == 1 else None
    except OSError:
        return None


def _set_msr(fd: int, index: int, value: int) -> bool:
    request = abi.Msrs(nmsrs=1)
    request.entry.index, request.entry.data = index, value
    try:
        return give(fd, abi.SET_MSRS, request) == 1
    except OSError:
        return False
