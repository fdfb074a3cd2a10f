"""The page walk in every mode, over tables that are made here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sealift.errors import UserError
from sealift.vmm.debug import walker
from sealift.vmm.debug.memory import View
from sealift.vmm.debug.walker import Bit, Mapping, NotMappedError, Paging, PagingMode, Translation, Walker

from .tables import GLOBAL, LARGE, NO_EXECUTE, PG, PRESENT, PSE, USER, WRITABLE, WRITE_THROUGH, Tables

M = PagingMode
RW = Bit.PRESENT | Bit.WRITABLE | Bit.USER
LONG = (M.LEVEL_4, M.LEVEL_5)

PAGES = [
    (M.BITS_32, 0x0804_8123, 12, 0x0012_3000),
    (M.BITS_32, 0xFFC0_0FFF, 12, 0xFFFF_F000),
    (M.BITS_32, 0xC012_3456, 22, 0x0080_0000),
    (M.PAE, 0xBFFF_F800, 12, 0x4_0000_0000),
    (M.PAE, 0x4012_3456, 21, 0xF_FFE0_0000),
    (M.PAE, 0xFFFF_FFFF, 12, 0x1000),
    (M.LEVEL_4, 0x0000_7FFF_FFFF_F123, 12, 0x12_3456_7000),
    (M.LEVEL_4, 0xFFFF_8000_0000_0000, 12, 0x1000),
    (M.LEVEL_4, 0xFFFF_FFFF_8123_4567, 21, 0x20_0000),
    (M.LEVEL_4, 0xFFFF_8880_4012_3456, 30, 0x40_0000_0000),
    (M.LEVEL_5, 0x00FF_FFFF_FFFF_F123, 12, 0x7FFF_FFFF_F000),
    (M.LEVEL_5, 0xFF00_0000_0020_0000, 21, 0x20_0000),
    (M.LEVEL_5, 0xFF11_0000_1234_5678, 30, 0x8000_0000),
]


@pytest.mark.parametrize(("mode", "address", "shift", "gpa"), PAGES)
@pytest.mark.parametrize("cbit", [None, 47, 51])
def test_a_page_of_each_size_is_found(mode: PagingMode, address: int, shift: int, gpa: int, cbit: int | None) -> None:
    """With the C-bit in CR3 and in every entry, as far as the mode has such bits."""
    cbit = None if mode is M.BITS_32 or (cbit is not None and gpa >> cbit) else cbit
    tables = Tables(mode, cbit)
    tables.map(address, gpa | tables.c, shift)
    found = tables.walker().translate(address)
    offset = address & (1 << shift) - 1
    assert found == Translation(gpa | offset, 1 << shift, RW, encrypted=cbit is not None)
    assert found.view is (View.PRIVATE if cbit else View.DECLARED)
    assert tables.views == {View.PRIVATE}


@pytest.mark.parametrize("mode", [M.PAE, *LONG])
def test_the_leafs_cbit_alone_says_which_content_is_meant(mode: PagingMode) -> None:
    tables = Tables(mode, 47)
    tables.map(0x1000, 0x5000)
    assert not tables.walker().translate(0x1000).encrypted
    tables.map(0x2000, 0x5000 | tables.c)
    tables.change(0x2000, 0, remove=tables.c)
    assert tables.walker().translate(0x2000) == Translation(0x5000, 0x1000, RW, encrypted=True)


def test_four_mib_pages_reach_beyond_four_gib() -> None:
    """PSE-36: bits 13 to 20 of the entry are bits 32 to 39 of the address."""
    tables = Tables(M.BITS_32)
    tables.map(0x40_0000, 0x80_0000 | 0xA5 << 13, 22)
    assert tables.walker().translate(0x40_0010).gpa == 0xA5_0080_0010
    assert list(tables.walker().mappings()) == [
        Mapping(0x40_0000, 0xA5_0080_0000, 1 << 22, 1 << 22, RW, encrypted=False)
    ]


def test_without_pse_there_are_no_large_pages() -> None:
    tables = Tables(M.BITS_32)
    tables.map(0x40_0000, 0x9000)
    tables.change(0x40_0000, 0, add=LARGE)
    without = Walker(tables, replace(tables.paging, cr4=tables.paging.cr4 & ~PSE))
    assert without.translate(0x40_0000).gpa == 0x9000
    assert [each.gpa for each in without.mappings()] == [0x9000]


def test_rights_are_those_of_all_levels_together() -> None:
    tables = Tables(M.LEVEL_4)
    tables.map(0x1000, 0x5000, leaf=WRITABLE | USER | GLOBAL | WRITE_THROUGH)
    tables.change(0x1000, 0, remove=USER)
    tables.change(0x1000, 1, add=NO_EXECUTE)
    expected = Bit.PRESENT | Bit.WRITABLE | Bit.GLOBAL | Bit.WRITE_THROUGH | Bit.NO_EXECUTE
    assert tables.walker().translate(0x1000).attributes == expected
    tables.change(0x1000, 2, remove=WRITABLE)
    assert tables.walker().translate(0x1000).attributes == expected & ~Bit.WRITABLE
    assert next(tables.walker().mappings()).attributes == expected & ~Bit.WRITABLE


def test_the_top_level_of_pae_has_no_rights() -> None:
    tables = Tables(M.PAE)
    tables.map(0x1000, 0x5000)
    assert tables.walker().translate(0x1000).attributes == RW


def test_with_paging_off_addresses_are_physical() -> None:
    off = Tables(M.OFF, 47).walker()
    assert off.translate(0xFFF0) == Translation(0xFFF0, 0x1000, RW, encrypted=False)
    assert list(off.mappings()) == []


@pytest.mark.parametrize(
    ("mode", "address", "reason"),
    [
        (M.LEVEL_4, 0x0000_8000_0000_0000, "not canonical: bits 47 to 63"),
        (M.LEVEL_4, 0xFFFF_7FFF_FFFF_FFFF, "not canonical"),
        (M.LEVEL_4, 1 << 64, "not canonical"),
        (M.LEVEL_4, -1, "not canonical"),
        (M.LEVEL_5, 0x0100_0000_0000_0000, "not canonical: bits 56 to 63"),
        (M.PAE, 1 << 32, "addresses have 32 bits"),
        (M.BITS_32, 1 << 32, "addresses have 32 bits"),
        (M.OFF, 1 << 32, "addresses have 32 bits"),
    ],
)
def test_an_address_that_the_mode_does_not_have_means_nothing(mode: PagingMode, address: int, reason: str) -> None:
    with pytest.raises(NotMappedError, match=reason):
        Tables(mode).walker().translate(address)


@pytest.mark.parametrize(("mode", "levels"), [(M.BITS_32, 2), (M.PAE, 3), (M.LEVEL_4, 4), (M.LEVEL_5, 5)])
def test_the_level_at_which_a_walk_ends_is_told(mode: PagingMode, levels: int) -> None:
    for depth in range(levels):
        tables = Tables(mode)
        tables.map(0x1000, 0x5000)
        tables.change(0x1000, depth, remove=PRESENT)
        with pytest.raises(NotMappedError, match=f"its entry at level {levels - depth} is not present"):
            tables.walker().translate(0x1000)
        assert list(tables.walker().mappings()) == []


def test_a_large_page_where_there_is_none_is_a_reserved_bit() -> None:
    for mode in (M.PAE, *LONG):
        tables = Tables(mode)
        tables.map(0x1000, 0x5000)
        tables.change(0x1000, 0, add=LARGE)
        with pytest.raises(NotMappedError, match="has a reserved bit set"):
            tables.walker().translate(0x1000)
        assert list(tables.walker().mappings()) == []


def test_a_table_where_there_is_no_ram_is_told() -> None:
    tables = Tables(M.LEVEL_4)
    tables.map(0x1000, 0x5000)
    tables.change(0x1000, 0, add=1 << 40)
    for look in (lambda: tables.walker().translate(0x1000), lambda: list(tables.walker().mappings())):
        with pytest.raises(UserError, match=r"GPA 0x100000\d{5} is no RAM"):
            look()


# --- all of it -----------------------------------------------------------------------------------------------------


def test_everything_that_is_mapped_is_listed_in_order_and_in_runs() -> None:
    tables = Tables(M.LEVEL_4, 51)
    tables.map(0xFFFF_8000_4000_0000, 0x4000_0000 | tables.c, 30)
    for page in range(600):  # two tables, and one run
        tables.map(0x40_0000 - 0x8_0000 + page * 0x1000, 0x10_0000 + page * 0x1000 | tables.c)
    tables.map(0x80_0000, 0x20_0000, 21)
    tables.map(0xA0_0000, 0x40_0000, 21)
    tables.map(0xC0_0000, 0xA0_0000, 21)
    tables.map(0xE0_0000, 0xC0_0000)
    found = list(tables.walker().mappings())
    assert [(each.address, each.gpa, each.length, each.page_size, each.encrypted) for each in found] == [
        (0x38_0000, 0x10_0000, 600 * 0x1000, 0x1000, True),
        (0x80_0000, 0x20_0000, 0x40_0000, 0x20_0000, False),
        (0xC0_0000, 0xA0_0000, 0x20_0000, 0x20_0000, False),
        (0xE0_0000, 0xC0_0000, 0x1000, 0x1000, False),
        (0xFFFF_8000_4000_0000, 0x4000_0000, 1 << 30, 1 << 30, True),
    ]


@pytest.mark.parametrize(("mode", "address", "shift", "gpa"), PAGES)
def test_the_list_says_what_a_walk_says(mode: PagingMode, address: int, shift: int, gpa: int) -> None:
    tables = Tables(mode)
    tables.map(address, gpa, shift, leaf=WRITABLE)
    (found,) = tables.walker().mappings()
    walked = tables.walker().translate(found.address)
    assert found.address == address & ~((1 << shift) - 1)
    assert (walked.gpa, walked.page_size, walked.attributes) == (found.gpa, found.page_size, found.attributes)
    assert found.length == 1 << shift


def test_tables_that_never_end_are_a_declared_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table whose every entry leads to itself maps 2**48 bytes by small pages."""
    monkeypatch.setattr(walker, "_RUNS_LIMIT", 1000)
    tables = Tables(M.LEVEL_4)
    for index in range(512):
        tables._put(0, index, PRESENT | (index % 3) << 1)
    with pytest.raises(UserError, match="map more than 1000 separate runs"):
        list(tables.walker().mappings())


def test_the_mode_follows_from_the_registers() -> None:
    for mode in M:
        assert Tables(mode).paging.mode is mode
    # Long mode enabled, and not active before there is paging.
    assert Paging(cr0=1, cr3=0, cr4=1 << 5, efer=1 << 8, cbit=None).mode is M.OFF
    assert Paging(cr0=PG | 1, cr3=0, cr4=1 << 12, efer=0, cbit=None).mode is M.BITS_32
