"""The MMU: 4-level page walk with the C-bit (AMD64 APM volume 2, section 5.3 and 15.34).

Walks read the private plane whatever the C-bit says, as silicon does. Accessed and dirty bits are set in the
tables, and those writes are reported like the guest's own. Supervisor mode only: programs of this engine run in
ring 0, and user pages are not told apart.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from sealift.address import PAGE_SHIFT
from sealift.silicon.memory.guest_memory import GuestMemory

_PRESENT, _WRITABLE, _ACCESSED, _DIRTY, _LARGE, _NO_EXECUTE = 1, 1 << 1, 1 << 5, 1 << 6, 1 << 7, 1 << 63
_FRAME = 0x000F_FFFF_FFFF_F000
_LEVEL_SHIFTS = (39, 30, 21, 12)
_LARGEST_LEAF_SHIFT = 30  # a PML4 entry never maps a page


class Access(enum.IntEnum):
    """What the guest does; the values are Unicorn's UC_MEM_READ, UC_MEM_WRITE and UC_MEM_FETCH."""

    READ = 16
    WRITE = 17
    FETCH = 18


@dataclass(frozen=True, slots=True)
class Translation:
    """One 4 KiB page of a guest's address space: where it is and what may be cached about it."""

    gpa: int
    offset: int
    """Byte offset in the planes."""
    encrypted: bool
    writable: bool


class PageFault(Exception):  # noqa: N818  # the architecture's name for it
    """The walk failed at linear `address`; `error_code` as the #PF error code (present, write, reserved, fetch)."""

    def __init__(self, address: int, error_code: int, reason: str) -> None:
        super().__init__(reason)
        self.address = address
        self.error_code = error_code


class Walker:
    """Translates for every vCPU of a guest; `wrote` is told the RAM page of each table entry it changes.

    Without a C-bit (None) that bit is one of the address, where no RAM is.
    """

    def __init__(self, memory: GuestMemory, cbit: int | None, wrote: Callable[[int], None]) -> None:
        self._layout = memory.layout
        self._presence = memory.presence
        self._entries = memory.private.data.cast("Q")
        self._cbit_mask = 0 if cbit is None else 1 << cbit
        self._frame_mask = _FRAME & ~self._cbit_mask
        self._wrote = wrote

    def translate(self, cr3: int, address: int, access: Access) -> Translation:
        """Walk the tables at `cr3` for linear `address`.

        Raises:
            PageFault: not canonical, not present, not allowed, or a table outside RAM.
            MissingPageError: a table is not here yet.
        """
        code = (2 if access is Access.WRITE else 0) | (16 if access is Access.FETCH else 0)
        if address >> 47 not in (0, 0x1FFFF):
            raise PageFault(address, code, "a non-canonical address")
        table = cr3 & self._frame_mask
        writable, executable = True, True
        for shift in _LEVEL_SHIFTS:
            slot = self._layout.offset(table + ((address >> shift) & 511) * 8, 8)
            if slot is None:
                raise PageFault(address, code | 8, f"a page table outside RAM, at GPA {table:#x}")
            self._presence.need(slot >> PAGE_SHIFT)
            entry = self._entries[slot >> 3]
            if not entry & _PRESENT:
                raise PageFault(address, code, "a page that is not mapped")
            writable = writable and bool(entry & _WRITABLE)
            executable = executable and not entry & _NO_EXECUTE
            leaf = shift == PAGE_SHIFT or (shift <= _LARGEST_LEAF_SHIFT and bool(entry & _LARGE))
            if leaf:
                self._check(address, access, code, writable=writable, executable=executable)
            marked = entry | _ACCESSED | (_DIRTY if leaf and access is Access.WRITE else 0)
            if marked != entry:
                self._entries[slot >> 3] = marked
                self._wrote(slot >> PAGE_SHIFT)
            if leaf:
                offset_mask = (1 << shift) - 1
                gpa = (entry & self._frame_mask & ~offset_mask) | (address & offset_mask & ~0xFFF)
                offset = self._ram_offset(address, gpa)
                # Until a write has set the dirty bit, a cached translation must not let writes pass unseen.
                writable = writable and bool(marked & _DIRTY)
                return Translation(gpa, offset, bool(entry & self._cbit_mask), writable)
            table = entry & self._frame_mask
        raise AssertionError("a walk ends at level 1")

    def untranslated(self, address: int) -> Translation:
        """What `address` means with paging off: the same GPA, without a C-bit.

        Raises:
            PageFault: there is no RAM.
        """
        return Translation(address, self._ram_offset(address, address), encrypted=False, writable=True)

    def _ram_offset(self, address: int, gpa: int) -> int:
        offset = self._layout.offset(gpa)
        if offset is None:
            raise PageFault(address, 0, f"GPA {gpa:#x}, where there is no RAM")
        return offset

    @staticmethod
    def _check(address: int, access: Access, code: int, *, writable: bool, executable: bool) -> None:
        if access is Access.WRITE and not writable:
            raise PageFault(address, code | 1, "a write to a read-only page")
        if access is Access.FETCH and not executable:
            raise PageFault(address, code | 1, "an instruction fetch from a no-execute page")
