"""Page tables of every mode, laid out in a buffer as a guest would have them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from sealift.errors import UserError
from sealift.vmm.debug.memory import View
from sealift.vmm.debug.walker import Paging, PagingMode, Walker

PRESENT, WRITABLE, USER, WRITE_THROUGH, DIRTY, LARGE, GLOBAL, NO_EXECUTE = 1, 2, 4, 8, 64, 128, 256, 1 << 63

PG, PSE, PAE, LA57, LME, LMA, NXE = 1 << 31, 1 << 4, 1 << 5, 1 << 12, 1 << 8, 1 << 10, 1 << 11

SHIFTS = {
    PagingMode.BITS_32: (22, 12),
    PagingMode.PAE: (30, 21, 12),
    PagingMode.LEVEL_4: (39, 30, 21, 12),
    PagingMode.LEVEL_5: (48, 39, 30, 21, 12),
}


@dataclass
class Tables:
    """Tables from GPA 0 on, one after the other, and what reads them. Entries have `cbit` unless told otherwise.

    Attributes:
        views: every view that was read through.
    """

    mode: PagingMode
    cbit: int | None = None
    memory: bytearray = field(default_factory=lambda: bytearray(1 << 20))
    views: set[View] = field(default_factory=set)
    _next: int = 0x1000

    @property
    def c(self) -> int:
        """The C-bit as a mask."""
        return 0 if self.cbit is None else 1 << self.cbit

    @property
    def paging(self) -> Paging:
        """The registers that go with them; the root is the first page."""
        cr4 = {
            PagingMode.OFF: 0,
            PagingMode.BITS_32: PSE,
            PagingMode.PAE: PAE,
            PagingMode.LEVEL_4: PAE,
            PagingMode.LEVEL_5: PAE | LA57,
        }[self.mode]
        long = self.mode in {PagingMode.LEVEL_4, PagingMode.LEVEL_5}
        cr0 = 0 if self.mode is PagingMode.OFF else PG | 1
        return Paging(cr0, self.c if long else 0, cr4, LME | LMA | NXE if long else NXE, self.cbit)

    def walker(self) -> Walker:
        """Over what they are now."""
        return Walker(self, self.paging)

    def read(self, gpa: int, length: int, view: View) -> bytes:
        """What a walk reads."""
        self.views.add(view)
        if gpa + length > len(self.memory):
            raise UserError(f"GPA {gpa:#x} is no RAM")
        return bytes(self.memory[gpa : gpa + length])

    def map(self, address: int, gpa: int, shift: int = 12, leaf: int = WRITABLE | USER, above: int = 0) -> None:
        """Map one page of 2**shift bytes; `leaf` are its bits, `above` bits that upper levels lack."""
        table = 0
        shifts = SHIFTS[self.mode]
        for level in shifts:
            index = address >> level & (1 << self._bits(level)) - 1
            if level == shift:
                large = LARGE if shift != 12 else 0
                self._put(table, index, gpa | PRESENT | large | leaf)
                return
            entry = self._get(table, index)
            if not entry & PRESENT:
                rights = 0 if self.mode is PagingMode.PAE and level == 30 else (WRITABLE | USER) & ~above
                entry = self._next | PRESENT | rights | self.c
                self._next += 0x1000
                self._put(table, index, entry)
            table = entry & 0xFFFF_F000
        raise AssertionError("no such page size in this mode")

    def entry(self, address: int, depth: int) -> tuple[int, int]:
        """Table and index of an address's entry, `depth` levels below the root."""
        table = 0
        shifts = SHIFTS[self.mode]
        for level in shifts[:depth]:
            table = self._get(table, address >> level & (1 << self._bits(level)) - 1) & 0xFFFF_F000
        return table, address >> shifts[depth] & (1 << self._bits(shifts[depth])) - 1

    def change(self, address: int, depth: int, *, add: int = 0, remove: int = 0) -> None:
        """Change bits of an entry."""
        table, index = self.entry(address, depth)
        self._put(table, index, self._get(table, index) & ~remove | add)

    def _bits(self, level: int) -> int:
        if self.mode is PagingMode.BITS_32:
            return 10
        return 2 if self.mode is PagingMode.PAE and level == 30 else 9

    @property
    def _format(self) -> tuple[str, int]:
        return ("<I", 4) if self.mode is PagingMode.BITS_32 else ("<Q", 8)

    def _get(self, table: int, index: int) -> int:
        form, width = self._format
        value: int = struct.unpack_from(form, self.memory, table + index * width)[0]
        return value

    def _put(self, table: int, index: int, value: int) -> None:
        form, width = self._format
        struct.pack_into(form, self.memory, table + index * width, value)
