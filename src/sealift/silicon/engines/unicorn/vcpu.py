"""One emulated vCPU: a Unicorn instance, its TLB-fill hook, and the reasons it leaves guest mode.

Stops must be exact: an instruction that is executed again, or skipped, corrupts a guest in silence. Unicorn's stops
are exact only from inside a hook, and only while it counts instructions (it then checks before every one, which
halves its speed). So a vCPU runs in slices of a fixed number of instructions, hooks note an outcome and stop right
behind theirs, and nobody ever stops an emulator from another thread.

A vCPU is only ever emulated by its own thread while that holds the engine's turn; what other threads want of it
(a TLB flush, leaving guest mode) is noted, and carried out before its next slice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from unicorn import Uc, UcError
from unicorn import unicorn_const as const
from unicorn import x86_const as x86

from sealift.address import PAGE_SHIFT, PAGE_SIZE
from sealift.errors import InternalError
from sealift.pageset import PageSet
from sealift.sev.ghcb import SEV_STATUS_MSR
from sealift.silicon.engines.cpuid import Leaf
from sealift.silicon.engines.interface import DeviceIo, Hypercall, Outcome
from sealift.silicon.engines.unicorn import registers
from sealift.silicon.engines.unicorn.stops import HLT, RDMSR, WRMSR, Stops
from sealift.silicon.engines.unicorn.turn import Turn
from sealift.silicon.engines.unicorn.walker import Access, PageFault, Translation, Walker
from sealift.silicon.memory.guest_memory import GuestMemory
from sealift.silicon.memory.presence import MissingPageError
from sealift.wire.platform import (
    Fault,
    Halt,
    Interrupted,
    MmioRead,
    MmioWrite,
    PortIn,
    PortOut,
    Registers,
    SystemRegisters,
)

SHARED_WINDOW = 1 << 52
"""Emulator-physical address at which the shared plane is mapped; the private plane is mapped at 0."""

_SLICE_INSTRUCTIONS = 20_000
"""Instructions before other threads get a chance: under half a millisecond, and long beside a slice's fixed cost."""

SEV_ENABLED: Final = 1 << 0
"""Bit of the SEV_STATUS MSR."""

_VMMCALL = b"\x0f\x01\xd9"
_CR0_PAGING = 1 << 31
_NO_END = 0  # slices end by count or by a hook: the list of exit addresses is empty


class Unsettled:
    """A reason that a kind of vCPU settles within its slice."""


@dataclass(frozen=True, slots=True)
class _Missing:
    """A page that is not here yet; the instruction that needs it is to be executed again."""

    page: int


Reason: TypeAlias = Outcome | PortIn | PortOut | MmioRead | MmioWrite | Unsettled | _Missing
"""Why a slice ended before its time."""


class Board(Protocol):
    """What the vCPUs of one engine have in common."""

    memory: GuestMemory
    walker: Walker
    turn: Turn
    encrypted_log: PageSet
    plain_log: PageSet


class UnicornVcpu:
    """A vCPU of the portable engine (see `sealift.silicon.engines.interface.Vcpu`).

    Attributes:
        started: whether it was ever given registers; until then it waits, here without interrupts for ever.
    """

    def __init__(self, board: Board, leaves: dict[int, Leaf], *, sev_status: int = SEV_ENABLED) -> None:
        self.started = False
        self._sev_status = sev_status
        self._board = board
        self._leaves = leaves
        self._stopped_by: Reason | None = None
        self._flush_tlb = False
        self._flush_code = False
        self._interrupt = threading.Event()
        self._uc = self._emulator()
        self._stops = Stops(self._uc)

    def _emulator(self) -> Uc:
        uc = Uc(const.UC_ARCH_X86, const.UC_MODE_64)
        uc.ctl_exits_enabled(True)  # noqa: FBT003  # Unicorn's signature
        uc.ctl_set_exits([])
        uc.ctl_set_tlb_mode(const.UC_TLB_VIRTUAL)
        memory = self._board.memory
        for block, offset in memory.layout.ranges():
            for base, plane in ((0, memory.private), (SHARED_WINDOW, memory.shared)):
                uc.mem_map_ptr(base + block.gpa, block.size, const.UC_PROT_ALL, plane.address + offset)
        uc.hook_add(const.UC_HOOK_TLB_FILL, self._fill)
        uc.hook_add(const.UC_HOOK_INSN_INVALID, self._invalid_instruction)
        uc.hook_add(const.UC_HOOK_INTR, self._exception)
        instruction_hooks: tuple[tuple[Callable[..., Any], int], ...] = (
            (self._in, x86.UC_X86_INS_IN),
            (self._out, x86.UC_X86_INS_OUT),
            (self._cpuid, x86.UC_X86_INS_CPUID),
        )
        for hook, instruction in instruction_hooks:
            uc.hook_add(const.UC_HOOK_INSN, hook, None, 1, 0, instruction)
        return uc

    # --- running -------------------------------------------------------------------------------------------------

    def run(self, device_io: DeviceIo) -> Outcome:
        """Enter the guest; port accesses go to `device_io` on the way."""
        while True:
            with self._board.turn.held():
                # Looked at with the turn held: a kick, which takes the turn, comes either before or after a slice.
                if self._interrupt.is_set():
                    self._interrupt.clear()
                    return Interrupted()
                if not self.started:
                    return Halt()
                stopped_by = self._slice()
            match stopped_by:
                case None:
                    pass
                case PortIn() | MmioRead():
                    self._complete_read(stopped_by, device_io(stopped_by))
                case PortOut() | MmioWrite():
                    device_io(stopped_by)
                case _Missing(page):
                    self._board.memory.presence.wait(page, give_up=self._interrupt.is_set)
                case Unsettled():
                    raise InternalError(f"a slice left {stopped_by} unsettled")
                case _:
                    return stopped_by

    def _slice(self) -> Reason | None:
        self._flush()
        self._stopped_by = None
        try:
            start = self._uc.reg_read(x86.UC_X86_REG_RIP)
            self._uc.emu_start(start, _NO_END, count=_SLICE_INSTRUCTIONS)
        except UcError as error:
            if self._stopped_by is None:
                self._stopped_by = self._fault(f"{error}", 0, 0)
        return self._at_stop() if self._stopped_by is None else self._stopped_by

    def _at_stop(self) -> Reason | None:
        """Carry out what is next, if it is an instruction that Unicorn was stopped in front of (see `stops`)."""
        rip = self._uc.reg_read(x86.UC_X86_REG_RIP)
        if rip in self._stops:
            if self._fetch(self._uc, rip, len(HLT)) == HLT:
                self._uc.reg_write(x86.UC_X86_REG_RIP, rip + len(HLT))
                return Halt()
            match self._fetch(self._uc, rip, len(RDMSR)):
                case instruction if instruction == RDMSR:
                    return self._rdmsr(rip)
                case instruction if instruction == WRMSR:
                    return self._wrmsr(rip)
        if rip in self._stops or (rip - 1 not in self._stops and self._fetch(self._uc, rip - 1, 1) == HLT):
            # Code changed through another address: look at all of it again. A HLT that Unicorn passed meanwhile was
            # woken from, as by an interrupt; the guest's loop around it comes back.
            self._stops.forget()
            self.request_code_flush()
        return None

    def _rdmsr(self, rip: int) -> Reason | None:
        value = self._read_msr(self._uc.reg_read(x86.UC_X86_REG_ECX))
        if not isinstance(value, int):
            return value
        self._uc.reg_write(x86.UC_X86_REG_RAX, value & 0xFFFF_FFFF)
        self._uc.reg_write(x86.UC_X86_REG_RDX, value >> 32)
        self._uc.reg_write(x86.UC_X86_REG_RIP, rip + len(RDMSR))
        return None

    def _wrmsr(self, rip: int) -> Reason | None:
        high, low = self._uc.reg_read(x86.UC_X86_REG_EDX), self._uc.reg_read(x86.UC_X86_REG_EAX)
        reason = self._write_msr(self._uc.reg_read(x86.UC_X86_REG_ECX), high << 32 | low)
        if reason is None:
            self._uc.reg_write(x86.UC_X86_REG_RIP, rip + len(WRMSR))
        return reason

    def _read_msr(self, number: int) -> int | Reason:
        """An MSR's value, or why the vCPU leaves guest mode in front of RDMSR."""
        if number == SEV_STATUS_MSR:
            return self._sev_status
        return int(self._uc.msr_read(number))

    def _write_msr(self, number: int, value: int) -> Reason | None:
        """Write an MSR; why the vCPU leaves guest mode in front of WRMSR, if it does."""
        self._uc.msr_write(number, value)
        return None

    def _complete_read(self, access: PortIn | MmioRead, data: int) -> None:
        """Give an IN its data: the accumulator's low bytes, a 32-bit one clearing the upper half."""
        mask = (1 << 8 * access.size) - 1
        kept = 0 if access.size == 4 else self._uc.reg_read(x86.UC_X86_REG_RAX) & ~mask
        self._uc.reg_write(x86.UC_X86_REG_RAX, kept | data & mask)

    def _flush(self) -> None:
        if self._flush_tlb:
            self._flush_tlb = False
            self._uc.ctl(const.UC_CTL_TLB_FLUSH, const.UC_CTL_IO_WRITE)
        if self._flush_code:
            self._flush_code = False
            self._uc.ctl_flush_tb()
            self._stops.forget()

    def kick(self) -> None:
        """Make the current or else the next `run` return Interrupted; it has left its slice when this returns."""
        self._interrupt.set()
        self._board.memory.presence.stir()
        with self._board.turn.held():
            pass

    def request_flush(self) -> None:
        """Drop cached address translations before the next instruction; the caller holds the turn."""
        self._flush_tlb = True

    def request_code_flush(self) -> None:
        """Drop cached address translations and translated code: what is behind addresses has changed."""
        self._flush_tlb = self._flush_code = True

    def complete_hypercall(self, result: int) -> None:
        """Give the last VMMCALL its result (two's complement)."""
        self._uc.reg_write(x86.UC_X86_REG_RAX, result & ((1 << 64) - 1))

    # --- state ---------------------------------------------------------------------------------------------------

    def registers(self) -> Registers:
        """General and control registers."""
        with self._board.turn.held():
            return registers.read_registers(self._uc)

    def set_registers(self, values: Registers) -> None:
        """Load general and control registers."""
        with self._board.turn.held():
            registers.write_registers(self._uc, values)
            self.request_code_flush()
            self.started = True

    def system_registers(self) -> SystemRegisters:
        """Segments and descriptor tables."""
        with self._board.turn.held():
            return registers.read_system_registers(self._uc)

    def save(self) -> bytes:
        """The whole architectural state."""
        with self._board.turn.held():
            return registers.save_state(self._uc)

    def restore(self, state: bytes) -> None:
        """Load `save`'s state."""
        with self._board.turn.held():
            registers.restore_state(self._uc, state)
            self.request_code_flush()
            self.started = True

    def save_visible(self) -> bytes:
        """All of it: the host of a guest without SEV-ES sees its registers."""
        return self.save()

    def restore_visible(self, state: bytes) -> None:
        """Load `save_visible`'s state."""
        self.restore(state)

    # --- hooks ---------------------------------------------------------------------------------------------------

    def _fill(self, uc: Uc, address: int, access: int, entry: Any, _user: object) -> bool:  # noqa: ANN401  # ctypes
        kind = Access(access)
        board = self._board
        try:
            found = self._translate(uc, address, kind)
            page = found.offset >> PAGE_SHIFT
            shared = not found.encrypted and page in board.memory.states
            if kind is Access.FETCH or not shared:
                board.memory.presence.need(page)
        except MissingPageError as missing:
            self._stopped_by = _Missing(missing.page)
            return False
        except PageFault as fault:
            self._stopped_by = self._fault(f"{kind.name.lower()} of {fault}", fault.address, fault.error_code)
            uc.reg_write(x86.UC_X86_REG_CR2, fault.address)
            return False
        if kind is Access.FETCH:
            # Silicon fetches through the key whatever the C-bit says: of a shared page the entry serves fetches alone.
            self._stops.scan(address, board.memory.private.window(page, 1))
            entry.paddr = found.gpa
            entry.perms = const.UC_PROT_EXEC | (0 if shared else const.UC_PROT_READ)
            return True
        log = board.encrypted_log if found.encrypted else board.plain_log
        if kind is Access.WRITE:
            log.mark(page)
        # Never writable and executable at once: code that was written is scanned before it is fetched.
        permissions = const.UC_PROT_READ
        if found.writable and page in log:
            permissions |= const.UC_PROT_WRITE
        entry.paddr = found.gpa + SHARED_WINDOW if shared else found.gpa
        entry.perms = permissions
        return True

    def _translate(self, uc: Uc, address: int, kind: Access) -> Translation:
        walker = self._board.walker
        if uc.reg_read(x86.UC_X86_REG_CR0) & _CR0_PAGING:
            return walker.translate(uc.reg_read(x86.UC_X86_REG_CR3), address, kind)
        return walker.untranslated(address)

    def _in(self, uc: Uc, port: int, size: int, _user: object) -> int:
        self._leave(uc, PortIn(port, size))
        return 0

    def _out(self, uc: Uc, port: int, size: int, value: int, _user: object) -> None:
        self._leave(uc, PortOut(port, size, value))

    def _cpuid(self, uc: Uc, _user: object) -> int:
        leaf = self._leaves.get(uc.reg_read(x86.UC_X86_REG_EAX), (0, 0, 0, 0))
        targets = (x86.UC_X86_REG_RAX, x86.UC_X86_REG_RBX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_RDX)
        for register, value in zip(targets, leaf, strict=True):
            uc.reg_write(register, value)
        return 1  # skip Unicorn's own

    def _invalid_instruction(self, uc: Uc, _user: object) -> bool:
        rip = uc.reg_read(x86.UC_X86_REG_RIP)
        known = self._call_out(uc, rip)
        if not known:
            self._stopped_by = self._fault("an invalid instruction", rip, 0)
        return known

    def _call_out(self, uc: Uc, rip: int) -> bool:
        """Carry out VMMCALL; whether that was the instruction."""
        if self._fetch(uc, rip, len(_VMMCALL)) != _VMMCALL:
            return False
        uc.reg_write(x86.UC_X86_REG_RIP, rip + len(_VMMCALL))
        number, *arguments = (
            uc.reg_read(register)
            for register in (
                x86.UC_X86_REG_RAX,
                x86.UC_X86_REG_RBX,
                x86.UC_X86_REG_RCX,
                x86.UC_X86_REG_RDX,
                x86.UC_X86_REG_RSI,
            )
        )
        first, second, third, fourth = arguments
        self._leave(uc, Hypercall(number, (first, second, third, fourth)))
        return True

    def _exception(self, uc: Uc, vector: int, _user: object) -> None:
        self._stopped_by = self._fault(f"exception {vector}, for which it has no handler", 0, 0)
        uc.emu_stop()

    def _leave(self, uc: Uc, reason: Reason) -> None:
        if self._stopped_by is not None:
            raise InternalError(f"a vCPU stopped for two reasons: {self._stopped_by} and {reason}")
        self._stopped_by = reason
        uc.emu_stop()

    def _fetch(self, uc: Uc, address: int, length: int) -> bytes:
        """Instruction bytes as the guest executes them, from the private plane; empty where there is none."""
        fetched = bytearray()
        while len(fetched) < length:
            start = (address + len(fetched)) & (PAGE_SIZE - 1)
            count = min(length - len(fetched), PAGE_SIZE - start)
            try:
                found = self._translate(uc, address + len(fetched) - start, Access.FETCH)
                self._board.memory.presence.need(found.offset >> PAGE_SHIFT)
            except (PageFault, MissingPageError):
                return b""
            fetched += self._board.memory.private.data[found.offset + start : found.offset + start + count]
        return bytes(fetched)

    def _fault(self, reason: str, address: int, error_code: int) -> Fault:
        return Fault(reason, self._uc.reg_read(x86.UC_X86_REG_RIP), address, error_code)
