"""Kernels are loaded as their program headers say, and what is wrong with a file is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.address import Gpa, RamBlock, RamLayout
from sealift.errors import UserError
from sealift.guest.programs import program, program_names
from sealift.launch.elf import Kernel, Segment, load

from .kernels import HALT, Load, elf

RAM = RamLayout((RamBlock("ram", Gpa(0), 16 << 20),))
AT = 0xA0_0000
GOOD = Load(AT, HALT)


def test_segments_are_loaded_in_ascending_order_with_their_memory_size() -> None:
    data = Load(AT + 0x2000, b"data", memsz=0x1800)
    assert load(elf(data, GOOD, entry=AT), RAM) == Kernel(
        Gpa(AT), (Segment(Gpa(AT), HALT, 3), Segment(Gpa(AT + 0x2000), b"data", 0x1800))
    )
    assert load(elf(data, GOOD, entry=AT), RAM).end == AT + 0x3800


def test_headers_that_take_no_memory_are_skipped() -> None:
    assert len(load(elf(GOOD, Load(0, b"", memsz=0)), RAM).segments) == 1


@pytest.mark.parametrize("name", program_names())
def test_the_built_in_programs_load(name: str) -> None:
    kernel = load(program(name), RAM)
    assert kernel.segments[0].gpa == AT


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (b"\x7fELF", "has 4 bytes, too few"),
        (bytes(64), "neither an ELF file nor a Linux kernel"),
        (elf(GOOD, bits=1), "not a 64-bit"),
        (elf(GOOD, order=2), "not little-endian"),
        (elf(GOOD, ident=2), "unknown ELF version"),
        (elf(GOOD, version=2), "unknown ELF version"),
        (elf(GOOD, machine=183), "not for x86-64"),
        (elf(GOOD, kind=3), "fixed addresses"),
        (elf(GOOD, entry_size=64), "unknown size"),
        (elf(GOOD, count=0), "has 0 program headers"),
        (elf(GOOD, count=65), "has 65 program headers"),
        (elf(GOOD, count=2), "truncated within its program headers"),
        (elf(GOOD, offset=1 << 63), "truncated within its program headers"),
        (elf(Load(AT, HALT, filesz=5)), "truncated within segment 0"),
        (elf(Load(AT, HALT, memsz=2)), "3 bytes for 2 bytes of memory"),
        (elf(Load(AT + 16, HALT)), "not the start of a page"),
        (elf(Load(16 << 20, HALT)), "does not lie in the guest's memory"),
        (elf(Load(AT, HALT, memsz=16 << 20)), "does not lie in the guest's memory"),
        (elf(Load(AT, HALT, memsz=1 << 63)), "does not lie in the guest's memory"),
        (elf(Load(AT, HALT, memsz=0x1001), Load(AT + 0x1000, HALT)), "overlap"),
        (elf(GOOD, GOOD), "overlap"),
        (elf(Load(AT, b"", memsz=0)), "no segment to load"),
        (elf(GOOD, entry=AT + 3), "entry point 0xa00003 lies in none"),
    ],
)
def test_the_fault_of_a_wrong_file_is_named(image: bytes, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        load(image, RAM)


def test_a_file_that_wants_a_dynamic_linker_is_refused() -> None:
    image = bytearray(elf(GOOD))
    image[64] = 3
    with pytest.raises(UserError, match="dynamic linker"):
        load(bytes(image), RAM)


@given(st.integers(0, 64 + 56 * 3 - 1), st.integers(1, 255))
def test_a_damaged_header_is_refused_or_loads_within_memory(at: int, change: int) -> None:
    image = bytearray(program("ledger"))
    image[at] ^= change
    try:
        kernel = load(bytes(image), RAM)
    except UserError:
        return
    assert all(RAM.offset(segment.gpa, segment.memsz) is not None for segment in kernel.segments)
    assert all(len(segment.data) <= segment.memsz for segment in kernel.segments)
