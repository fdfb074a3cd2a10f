"""Addresses, pages and the RAMBlock table.

A guest sees *guest physical addresses* (``Gpa``). Memory files, bitmaps and sealed records are indexed by
*RAM page* (``RamPage``): the page's place in all RAMBlocks laid end to end, as QEMU's ``ram_addr_t``. A guest
whose only block starts at 0 has RAM page == GPA >> 12.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NewType

from sealift.errors import UserError

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

Gpa = NewType("Gpa", int)
RamPage = NewType("RamPage", int)


def page_aligned(value: int) -> bool:
    """Whether `value` (bytes) is a whole number of 4 KiB pages."""
    return value & (PAGE_SIZE - 1) == 0


def pages_spanned(gpa: int, length: int) -> int:
    """Pages touched by `length` bytes at `gpa`; 0 for an empty range."""
    if length == 0:
        return 0
    return ((gpa + length - 1) >> PAGE_SHIFT) - (gpa >> PAGE_SHIFT) + 1


@dataclass(frozen=True, slots=True)
class RamBlock:
    """One contiguous piece of guest RAM.

    Attributes:
        name: QEMU-style identifier, at most 255 bytes of UTF-8 (``pc.ram``).
        gpa: first guest physical address, page aligned.
        size: bytes, page aligned, not 0.
    """

    name: str
    gpa: Gpa
    size: int

    def __post_init__(self) -> None:
        if not 1 <= len(self.name.encode()) <= 255:
            raise UserError(f"RAMBlock name {self.name!r} must be 1 to 255 bytes long")
        if self.gpa < 0 or not page_aligned(self.gpa):
            raise UserError(f"RAMBlock {self.name} starts at {self.gpa:#x}, which is not the start of a page")
        if self.size <= 0 or not page_aligned(self.size):
            raise UserError(f"memory of {self.size} bytes is not a whole number of 4096-byte pages")


@dataclass(frozen=True, slots=True)
class RamLayout:
    """The RAMBlock table: ordered, non-overlapping, immutable once made.

    Raises:
        UserError: no block, or two blocks overlap or are out of order.
    """

    blocks: tuple[RamBlock, ...]

    def __post_init__(self) -> None:
        if not self.blocks:
            raise UserError("a guest needs at least one RAMBlock")
        end = 0
        for block in self.blocks:
            if block.gpa < end:
                raise UserError(f"RAMBlock {block.name} overlaps the block before it or is out of order")
            end = block.gpa + block.size

    @property
    def size(self) -> int:
        """Bytes of RAM in all blocks."""
        return sum(block.size for block in self.blocks)

    @property
    def pages(self) -> int:
        """RAM pages in all blocks."""
        return self.size >> PAGE_SHIFT

    @property
    def end(self) -> int:
        """First GPA after the last block."""
        last = self.blocks[-1]
        return last.gpa + last.size

    def ranges(self) -> Iterator[tuple[RamBlock, int]]:
        """Each block with its byte offset in the memory file."""
        offset = 0
        for block in self.blocks:
            yield block, offset
            offset += block.size

    def offset(self, gpa: int, length: int = 1) -> int | None:
        """Byte offset of a GPA range in the memory file; None unless all of it lies in one block."""
        for block, start in self.ranges():
            if block.gpa <= gpa and gpa + length <= block.gpa + block.size:
                return start + gpa - block.gpa
        return None

    def gpa(self, offset: int) -> Gpa:
        """GPA of a byte offset in the memory file.

        Raises:
            ValueError: the offset is outside RAM.
        """
        for block, start in self.ranges():
            if start <= offset < start + block.size:
                return Gpa(block.gpa + offset - start)
        raise ValueError(f"offset {offset:#x} is outside RAM")
