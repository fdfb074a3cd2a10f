"""The page walk: virtual addresses of a guest to physical ones, in all of x86's paging modes.

::

    mode      CR0.PG CR4.PAE EFER.LMA CR4.LA57   levels (bits of the address each)     large pages
    off          0      -        -       -       none: virtual is physical
    32-bit       1      0        -       -       10 10                                  4 MiB (CR4.PSE)
    PAE          1      1        0       -       2 9 9                                  2 MiB
    4-level      1      1        1       0       9 9 9 9                                1 GiB, 2 MiB
    5-level      1      1        1       1       9 9 9 9 9                              1 GiB, 2 MiB

Guest tables are private memory, and are read so. The C-bit is cleared from CR3 and from every entry, on the copy that
was read; of the leaf it says whether the page's private or its shared content is meant (AMD64 APM volume 2, sections
5.3 and 15.34). A walk changes nothing: no accessed or dirty bits are set.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from sealift.address import PAGE_SHIFT, PAGE_SIZE
from sealift.errors import InternalError, UserError
from sealift.vmm.debug.memory import View

_CR0_PG: Final = 1 << 31
_CR4_PSE, _CR4_PAE, _CR4_LA57 = 1 << 4, 1 << 5, 1 << 12
_EFER_LMA: Final = 1 << 10

_FRAME_64: Final = 0x000F_FFFF_FFFF_F000
_FRAME_32: Final = 0xFFFF_F000
_CR3_OF_PAE: Final = 0xFFFF_FFE0

_FRAME_PSE: Final = 0xFFC0_0000
_HIGH_PSE, _HIGH_PSE_SHIFT = 0x001F_E000, 19
"""A page of 4 MiB has bits 32 to 39 of its address in bits 13 to 20 of its entry (PSE-36)."""

_TABLES_LIMIT: Final = 1 << 16
"""Tables that a listing of all mappings reads: 256 MiB of them map 128 GiB by small pages, and tables that a guest
makes point at each other would never end."""

_RUNS_LIMIT: Final = 1 << 20
"""Runs of pages in such a listing, which take some hundred bytes each."""


class Bit(enum.IntFlag, boundary=enum.KEEP):
    """Bits of an entry that mean the same in every mode."""

    PRESENT = 1 << 0
    WRITABLE = 1 << 1
    USER = 1 << 2
    WRITE_THROUGH = 1 << 3
    CACHE_DISABLED = 1 << 4
    ACCESSED = 1 << 5
    DIRTY = 1 << 6
    LARGE = 1 << 7
    GLOBAL = 1 << 8
    NO_EXECUTE = 1 << 63


_OF_LEAF: Final = Bit.PRESENT | Bit.WRITE_THROUGH | Bit.CACHE_DISABLED | Bit.ACCESSED | Bit.DIRTY | Bit.GLOBAL


class PagingMode(enum.Enum):
    """How a vCPU translates addresses."""

    OFF = "off"
    BITS_32 = "32-bit"
    PAE = "PAE"
    LEVEL_4 = "4-level"
    LEVEL_5 = "5-level"


@dataclass(frozen=True, slots=True)
class _Rights:
    """What all levels together permit: WRITABLE and USER as long as every level has them, NO_EXECUTE once any has."""

    permitted: Bit
    forbidden: Bit

    def under(self, entry: int) -> _Rights:
        """Those below an entry."""
        return _Rights(self.permitted & entry, self.forbidden | Bit(entry) & Bit.NO_EXECUTE)


_ALL: Final = _Rights(Bit.WRITABLE | Bit.USER, Bit(0))


@dataclass(frozen=True, slots=True)
class _Level:
    """One level of tables.

    Attributes:
        shift: an entry maps, or has below it, 2**shift bytes.
        entries: of a table.
        large: whether an entry may map a page by itself.
    """

    shift: int
    entries: int
    large: bool = False

    @property
    def last(self) -> bool:
        """Whether there is nothing below but pages."""
        return self.shift == PAGE_SHIFT


_PML5, _PML4 = _Level(48, 512), _Level(39, 512)
_PDPT, _PD, _PT = _Level(30, 512, large=True), _Level(21, 512, large=True), _Level(PAGE_SHIFT, 512)
_PDPT_OF_PAE: Final = _Level(30, 4)

_LEVELS: Final = {
    PagingMode.OFF: (),
    PagingMode.BITS_32: (_Level(22, 1024, large=True), _Level(PAGE_SHIFT, 1024)),
    PagingMode.PAE: (_PDPT_OF_PAE, _PD, _PT),
    PagingMode.LEVEL_4: (_PML4, _PDPT, _PD, _PT),
    PagingMode.LEVEL_5: (_PML5, _PML4, _PDPT, _PD, _PT),
}
_ADDRESS_BITS: Final = {
    PagingMode.OFF: 32,
    PagingMode.BITS_32: 32,
    PagingMode.PAE: 32,
    PagingMode.LEVEL_4: 48,
    PagingMode.LEVEL_5: 57,
}


_LONG: Final = frozenset({PagingMode.LEVEL_4, PagingMode.LEVEL_5})
_WITHOUT_CBIT: Final = frozenset({PagingMode.OFF, PagingMode.BITS_32})


@dataclass(frozen=True, slots=True)
class Paging:
    """The registers of a vCPU that decide how it translates, and the position of the C-bit (None: there is none)."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    cbit: int | None

    @property
    def mode(self) -> PagingMode:
        """How it translates."""
        if not self.cr0 & _CR0_PG:
            return PagingMode.OFF
        if not self.cr4 & _CR4_PAE:
            return PagingMode.BITS_32
        if not self.efer & _EFER_LMA:
            return PagingMode.PAE
        return PagingMode.LEVEL_5 if self.cr4 & _CR4_LA57 else PagingMode.LEVEL_4


class NotMappedError(UserError):
    """A virtual address means nothing.

    Attributes:
        address: which.
    """

    def __init__(self, address: int, reason: str) -> None:
        super().__init__(f"virtual address {address:#x} cannot be reached: {reason}")
        self.address = address


@dataclass(frozen=True, slots=True)
class Translation:
    """What a virtual address means.

    Attributes:
        gpa: of the very address.
        page_size: of the page that holds it, in bytes.
        attributes: WRITABLE and USER if every level has them, NO_EXECUTE if any has; of other bits the leaf's.
        encrypted: the leaf's C-bit.
    """

    gpa: int
    page_size: int
    attributes: Bit
    encrypted: bool

    @property
    def view(self) -> View:
        """Which of the page's contents the guest reaches there."""
        return View.PRIVATE if self.encrypted else View.DECLARED


@dataclass(frozen=True, slots=True)
class Mapping:
    """A run of virtual addresses on a run of physical ones, by pages of one size with the same attributes."""

    address: int
    gpa: int
    length: int
    page_size: int
    attributes: Bit
    encrypted: bool

    def continues(self, other: Mapping) -> bool:
        """Whether this is just where `other` leads on to."""
        return (
            self.address == other.address + other.length
            and self.gpa == other.gpa + other.length
            and (self.page_size, self.attributes, self.encrypted)
            == (other.page_size, other.attributes, other.encrypted)
        )


class TableMemory(Protocol):
    """What a walk reads tables from."""

    def read(self, gpa: int, length: int, view: View) -> bytes:
        """`length` bytes at `gpa`; `UserError` if they cannot be had."""


_Entries: TypeAlias = npt.NDArray[np.uint64]


class Walker:
    """Translates for one vCPU as it is now: tables are read once and remembered, so each command makes its own.

    Args:
        memory: where the tables are.
        paging: the vCPU's registers.
    """

    def __init__(self, memory: TableMemory, paging: Paging) -> None:
        self.paging = paging
        self._memory = memory
        self._mode = paging.mode
        self._levels = _LEVELS[self._mode]
        self._cbit = 0 if paging.cbit is None or self._mode in _WITHOUT_CBIT else 1 << paging.cbit
        self._frames = _FRAME_32 if self._mode is PagingMode.BITS_32 else _FRAME_64 & ~self._cbit
        self._tables: dict[tuple[int, int], _Entries] = {}

    @property
    def highest_address(self) -> int:
        """The highest virtual address that the vCPU can form; beyond it they begin at 0 again."""
        return (1 << (64 if self._mode in _LONG else 32)) - 1

    def translate(self, address: int) -> Translation:
        """What `address` means.

        Raises:
            NotMappedError: nothing; the reason says at which level the walk ended.
            UserError: a table cannot be read.
        """
        self._check_canonical(address)
        if self._mode is PagingMode.OFF:
            return Translation(address, PAGE_SIZE, Bit.PRESENT | Bit.WRITABLE | Bit.USER, encrypted=False)
        table, rights = self._root(), _ALL
        for depth, level in enumerate(self._levels):
            entry = int(self._table(table, level)[address >> level.shift & level.entries - 1])
            if not entry & Bit.PRESENT:
                raise NotMappedError(address, f"its entry at level {len(self._levels) - depth} is not present")
            if entry & Bit.LARGE and not level.large and not level.last:
                raise NotMappedError(address, f"its entry at level {len(self._levels) - depth} has a reserved bit set")
            rights = self._below(rights, entry, level)
            if self._is_leaf(entry, level):
                gpa = self._page(entry, level) | address & (1 << level.shift) - 1
                attributes = Bit(entry) & _OF_LEAF | rights.permitted | rights.forbidden
                return Translation(gpa, 1 << level.shift, attributes, bool(entry & self._cbit))
            table = entry & self._frames
        raise InternalError("a page walk went beyond the last level")

    def mappings(self) -> Iterator[Mapping]:
        """Everything that is mapped, by ascending address; neighbours that go together are one.

        Raises:
            UserError: a table cannot be read, or the tables are larger than any guest needs.
        """
        if self._mode is PagingMode.OFF:
            return
        last: Mapping | None = None
        for number, found in enumerate(self._found_in(self._root(), 0, 0, _ALL)):
            if number == _RUNS_LIMIT:
                raise UserError(f"the guest's page tables map more than {_RUNS_LIMIT} separate runs of pages")
            if last is not None and found.continues(last):
                last = replace(last, length=last.length + found.length)
                continue
            if last is not None:
                yield last
            last = found
        if last is not None:
            yield last

    # --- entries -------------------------------------------------------------------------------------------------

    def _root(self) -> int:
        return self.paging.cr3 & (_CR3_OF_PAE if self._mode is PagingMode.PAE else self._frames)

    def _table(self, gpa: int, level: _Level) -> _Entries:
        found = self._tables.get((gpa, level.shift))
        if found is None:
            if len(self._tables) == _TABLES_LIMIT:
                raise UserError(f"the guest's page tables are more than {_TABLES_LIMIT} pages")
            width = 4 if self._mode is PagingMode.BITS_32 else 8
            raw = self._memory.read(gpa, level.entries * width, View.PRIVATE)
            found = self._tables[gpa, level.shift] = np.frombuffer(raw, f"<u{width}").astype(np.uint64)
        return found

    def _is_leaf(self, entry: int, level: _Level) -> bool:
        return level.last or (level.large and bool(entry & Bit.LARGE) and self._has_large)

    @property
    def _has_large(self) -> bool:
        return self._mode is not PagingMode.BITS_32 or bool(self.paging.cr4 & _CR4_PSE)

    def _page(self, entry: int, level: _Level) -> int:
        """The GPA of a leaf's page."""
        if self._mode is PagingMode.BITS_32 and not level.last:
            return entry & _FRAME_PSE | (entry & _HIGH_PSE) << _HIGH_PSE_SHIFT
        return entry & self._frames & ~((1 << level.shift) - 1)

    @staticmethod
    def _below(rights: _Rights, entry: int, level: _Level) -> _Rights:
        """Rights below an entry; those at the top of PAE's tables have no such bits."""
        return rights if level is _PDPT_OF_PAE else rights.under(entry)

    # --- addresses -----------------------------------------------------------------------------------------------

    def _check_canonical(self, address: int) -> None:
        bits = _ADDRESS_BITS[self._mode]
        if self._mode in _LONG:
            if self._extended(address & (1 << bits) - 1) != address:
                raise NotMappedError(address, f"it is not canonical: bits {bits - 1} to 63 must be the same")
        elif not 0 <= address < 1 << bits:
            raise NotMappedError(address, f"addresses have {bits} bits in the mode that the vCPU is in")

    def _extended(self, address: int) -> int:
        """An address that the levels' indices make up, with its highest bit repeated up to bit 63."""
        bits = _ADDRESS_BITS[self._mode]
        high = self._mode in _LONG and address >> (bits - 1)
        return address | (((1 << 64) - 1) ^ ((1 << bits) - 1) if high else 0)

    # --- everything ----------------------------------------------------------------------------------------------

    def _found_in(self, table: int, base: int, depth: int, rights: _Rights) -> Iterator[Mapping]:
        """What a table and those below it map, from `base` on; Python runs per table and run, not per page."""
        level = self._levels[depth]
        entries = self._table(table, level)
        present = np.flatnonzero(entries & np.uint64(Bit.PRESENT))
        if not present.size:
            return
        large = (entries[present] & np.uint64(Bit.LARGE if level.large and self._has_large else 0)) != 0
        for group in np.split(present, np.flatnonzero(large[1:] != large[:-1]) + 1):
            if self._is_leaf(int(entries[group[0]]), level):
                yield from self._runs(entries, group, base, level, rights)
                continue
            for index in group.tolist():
                entry = int(entries[index])
                if not entry & Bit.LARGE or level.large:
                    below = self._below(rights, entry, level)
                    yield from self._found_in(entry & self._frames, base | index << level.shift, depth + 1, below)

    def _runs(
        self, entries: _Entries, indices: npt.NDArray[np.intp], base: int, level: _Level, rights: _Rights
    ) -> Iterator[Mapping]:
        """Leaves of one table as runs of neighbours that go together."""
        leaves, size = entries[indices], 1 << level.shift
        if self._mode is PagingMode.BITS_32 and not level.last:
            low, high = leaves & np.uint64(_FRAME_PSE), leaves & np.uint64(_HIGH_PSE)
            pages = low | high << np.uint64(_HIGH_PSE_SHIFT)
        else:
            pages = leaves & np.uint64(self._frames & ~(size - 1))
        kept = int(_OF_LEAF | rights.permitted | Bit.NO_EXECUTE) | self._cbit
        kinds = leaves & np.uint64(kept) | np.uint64(int(rights.forbidden))
        together = (np.diff(indices) == 1) & (np.diff(pages) == size) & (kinds[1:] == kinds[:-1])
        firsts = np.concatenate(([0], np.flatnonzero(~together) + 1))
        counts = np.diff(np.concatenate((firsts, [len(indices)])))
        for first, count in zip(firsts.tolist(), counts.tolist(), strict=True):
            kind = int(kinds[first])
            yield Mapping(
                address=self._extended(base | int(indices[first]) << level.shift),
                gpa=int(pages[first]),
                length=count << level.shift,
                page_size=size,
                attributes=Bit(kind & ~self._cbit),
                encrypted=bool(kind & self._cbit),
            )
