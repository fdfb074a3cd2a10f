"""Exceptions into the guest's own handlers, which Unicorn leaves to us (AMD64 APM volume 2, section 8.9).

Long mode, and from ring 0 to ring 0: through a gate of the IDT into the code segment that is running, on the stack in
use. A guest of this engine has no use for more, and a gate that wants more cannot be delivered to.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from unicorn import Uc
from unicorn import x86_const as x86

from sealift.address import PAGE_SHIFT, PAGE_SIZE
from sealift.pageset import PageSet
from sealift.silicon.engines.unicorn.walker import Access, PageFault, Translation, Walker
from sealift.silicon.memory.guest_memory import GuestMemory

_GATE: Final = struct.Struct("<HHBBHII")
_INTERRUPT_GATE, _TRAP_GATE = 0x8E, 0x8F
_FRAME: Final = struct.Struct("<6Q")
_STACK_ALIGNMENT: Final = 16
_TRAP, _INTERRUPTS, _NESTED, _RESUME, _VIRTUAL_8086 = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17
_MASK_64: Final = (1 << 64) - 1


class UndeliverableError(Exception):
    """The guest has no handler that could be entered; on silicon, a double fault and soon a shutdown."""


class Delivery:
    """Enters exception handlers of vCPUs whose memory is `memory`; the caller holds the turn."""

    def __init__(self, memory: GuestMemory, walker: Walker, encrypted_log: PageSet, plain_log: PageSet) -> None:
        self._memory = memory
        self._walker = walker
        self._encrypted_log = encrypted_log
        self._plain_log = plain_log

    def deliver(self, uc: Uc, vector: int, error_code: int) -> None:
        """Push the frame of an exception at the current instruction, and go on in its handler.

        Raises:
            UndeliverableError: there is no usable gate, or no stack; nothing has changed.
        """
        try:
            self._enter(uc, vector, error_code)
        except PageFault as fault:
            raise UndeliverableError(f"exception {vector} meets {fault}") from fault

    def _enter(self, uc: Uc, vector: int, error_code: int) -> None:
        code_segment = uc.reg_read(x86.UC_X86_REG_CS)
        kind, target = self._gate(uc, vector, code_segment)
        flags = uc.reg_read(x86.UC_X86_REG_RFLAGS)
        stack = uc.reg_read(x86.UC_X86_REG_RSP)
        frame = _FRAME.pack(
            error_code,
            uc.reg_read(x86.UC_X86_REG_RIP),
            code_segment,
            flags,
            stack,
            uc.reg_read(x86.UC_X86_REG_SS),
        )
        top = (stack & -_STACK_ALIGNMENT) - len(frame) & _MASK_64
        self._write(uc, top, frame)
        cleared = _TRAP | _NESTED | _RESUME | _VIRTUAL_8086 | (_INTERRUPTS if kind == _INTERRUPT_GATE else 0)
        uc.reg_write(x86.UC_X86_REG_RSP, top)
        uc.reg_write(x86.UC_X86_REG_RFLAGS, flags & ~cleared)
        uc.reg_write(x86.UC_X86_REG_RIP, target)

    def _gate(self, uc: Uc, vector: int, code_segment: int) -> tuple[int, int]:
        """Kind and target of a vector's gate."""
        _, base, limit, _ = uc.reg_read(x86.UC_X86_REG_IDTR)
        if (vector + 1) * _GATE.size > limit + 1:
            raise UndeliverableError(f"exception {vector}, for which it has no handler")
        raw = b"".join(
            bytes(self._plane(found)[found.offset + start : found.offset + end])
            for found, start, end in self._pages(uc, base + vector * _GATE.size, _GATE.size, Access.READ)
        )
        low, selector, stack_table, kind, middle, high, _ = _GATE.unpack(raw)
        if kind not in (_INTERRUPT_GATE, _TRAP_GATE):
            raise UndeliverableError(f"exception {vector}, for which it has no handler")
        if selector != code_segment or stack_table:
            raise UndeliverableError(f"exception {vector}, whose handler has a code segment or stack of its own")
        return kind, high << 32 | middle << 16 | low

    def _write(self, uc: Uc, address: int, data: bytes) -> None:
        """Write all of it, or nothing."""
        done = 0
        for found, start, end in list(self._pages(uc, address, len(data), Access.WRITE)):
            log = self._encrypted_log if found.encrypted else self._plain_log
            log.mark(found.offset >> PAGE_SHIFT)
            self._plane(found)[found.offset + start : found.offset + end] = data[done : done + end - start]
            done += end - start

    def _pages(self, uc: Uc, address: int, length: int, access: Access) -> Iterator[tuple[Translation, int, int]]:
        """A linear range page by page: the page, and from where to where in it."""
        while length:
            start = address & PAGE_SIZE - 1
            count = min(length, PAGE_SIZE - start)
            found = self._walker.translate(uc.reg_read(x86.UC_X86_REG_CR3), address - start, access)
            yield found, start, start + count
            address, length = address + count & _MASK_64, length - count

    def _plane(self, found: Translation) -> memoryview:
        shared = not found.encrypted and found.offset >> PAGE_SHIFT in self._memory.states
        return (self._memory.shared if shared else self._memory.private).data
