"""The start-up area: where the start-up code says the things around it are.

The start-up code is one flat binary that ends at the anchor, as firmware ends at 4 GiB. Everything else is
found through the GUIDed table at its end, so only the anchor is a constant::

    0x80d000  start-up code, bootstrap page tables   (length as built)
    0x810000  anchor: end of the code and its GUIDed table
    0x810000  secret block                           (LAUNCH_SECRET)
    0x814000  start-up table, one page               (`sealift.launch.startup`)
    0x820000  mailbox of the migration handler, two pages, shared by the start-up code
    0x822000  for Linux: page tables and stack of the start-up code, up to 0x900000
    0x900000  with SEV-ES: a page for each vCPU's GHCB, shared by the start-up code
    0xa00000  our own kernels are linked here
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from sealift.address import PAGE_SIZE, Gpa, page_aligned
from sealift.errors import StreamError
from sealift.launch import guided

Read: TypeAlias = Callable[[Gpa, int], bytes]
"""Reads that many bytes of guest memory at a GPA."""

ANCHOR = Gpa(0x81_0000)
"""End of the start-up code."""

GHCBS = Gpa(0x90_0000)
"""GHCB of vCPU 0; in the 2 MiB of the mailbox, so that no further page table is needed."""

BOOT_GUID = UUID("6654b260-afdf-4881-b4b1-b7f717d46309")
"""Data: u32 entry point of every vCPU, u32 CR3 of the bootstrap page tables."""
TABLE_GUID = UUID("23650f51-3c55-4f08-a4e2-d0536016931b")
"""Data: u32 base, u32 size of the start-up table."""
MAILBOX_GUID = UUID("5a5bf2f3-c123-4f16-81cb-cc9f929c5875")
"""Data: u32 base, u32 size of the migration handler's mailbox."""

MAILBOX_SIZE = 2 * PAGE_SIZE

_PAIR = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Area:
    """A range of guest physical addresses; `size` in bytes."""

    gpa: Gpa
    size: int

    @property
    def end(self) -> Gpa:
        """First GPA after the area."""
        return Gpa(self.gpa + self.size)

    def overlaps(self, other: Area) -> bool:
        """Whether any byte is in both."""
        return self.gpa < other.end and other.gpa < self.end

    def __str__(self) -> str:
        return f"{self.gpa:#x}-{self.end:#x}"


@dataclass(frozen=True, slots=True)
class StartupAreas:
    """What the start-up code's GUIDed table says.

    Attributes:
        entry: where every vCPU starts, in 64-bit mode.
        bootstrap_cr3: page tables it starts on.
        secret: where LAUNCH_SECRET puts the owner's secret table.
        table: the page of the start-up table.
        mailbox: the migration handler's two pages.
    """

    entry: Gpa
    bootstrap_cr3: Gpa
    secret: Area
    table: Area
    mailbox: Area


def areas_of(image: bytes) -> StartupAreas:
    """The areas named by a start-up image, of which the end is enough.

    Raises:
        StreamError: no table, an entry is missing or malformed, or areas are misplaced.
    """
    entries = guided.parse(image)
    entry, cr3 = _pair(entries, BOOT_GUID, "boot")
    areas = StartupAreas(
        entry=Gpa(entry),
        bootstrap_cr3=Gpa(cr3),
        secret=_area(entries, guided.SECRET_BLOCK_GUID, "secret block"),
        table=_area(entries, TABLE_GUID, "start-up table"),
        mailbox=_area(entries, MAILBOX_GUID, "mailbox"),
    )
    if areas.table.size != PAGE_SIZE:
        raise StreamError(f"the start-up table is {areas.table.size} bytes, not one page")
    if areas.mailbox.size != MAILBOX_SIZE:
        raise StreamError(f"the mailbox is {areas.mailbox.size} bytes, not two pages")
    named = (areas.secret, areas.table, areas.mailbox)
    for index, area in enumerate(named):
        if any(area.overlaps(other) for other in named[index + 1 :]):
            raise StreamError(f"the area {area} overlaps another one of the start-up image")
    if not areas.entry < ANCHOR or not areas.bootstrap_cr3 < ANCHOR or not page_aligned(areas.bootstrap_cr3):
        raise StreamError("the entry point or the page tables of the start-up image lie outside it")
    return areas


def areas_in_memory(read: Read) -> StartupAreas:
    """The areas named by the start-up code that is loaded below the anchor of a guest.

    Raises:
        StreamError: no start-up code of ours is loaded there.
    """
    length = guided.span(read(Gpa(ANCHOR - guided.FOOTER_SPAN), guided.FOOTER_SPAN))
    return areas_of(read(Gpa(ANCHOR - length), length))


def _pair(entries: Mapping[UUID, bytes], guid: UUID, name: str) -> tuple[int, int]:
    """Two u32 of one entry."""
    data = entries.get(guid)
    if data is None or len(data) != _PAIR.size:
        raise StreamError(f"the {name} entry of the start-up image is missing or not {_PAIR.size} bytes long")
    first, second = _PAIR.unpack(data)
    return first, second


def _area(entries: Mapping[UUID, bytes], guid: UUID, name: str) -> Area:
    """A non-empty, page-aligned area."""
    gpa, size = _pair(entries, guid, name)
    if not size or not page_aligned(gpa) or not page_aligned(size):
        raise StreamError(f"the {name} at {gpa:#x} of {size} bytes is not made of whole pages")
    return Area(Gpa(gpa), size)
