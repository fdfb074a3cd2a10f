"""Linux is launched where its boot protocol wants it, and told of all memory that is its own, and of no other."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import UserError
from sealift.guest.programs import program, startup_blob
from sealift.launch import microvm
from sealift.launch.areas import Area
from sealift.launch.image import GuestRecipe
from sealift.launch.machine import MachineType

from .bzimages import ENTRY_64, VERSION, bzimage

MIB = 1 << 20
GIB = 1 << 30


def ram(size: int) -> RamLayout:
    low = min(size, microvm.LOW_RAM_LIMIT)
    blocks = [RamBlock("low", Gpa(0), low)]
    if size > low:
        blocks.append(RamBlock("high", Gpa(microvm.HIGH_RAM), size - low))
    return RamLayout(tuple(blocks))


RECIPE = GuestRecipe(
    startup=startup_blob(),
    layout=ram(64 * MIB),
    vcpus=2,
    handler_digest=b"h" * 32,
    kernel=bzimage(),
    command_line="console=ttyS0 quiet",
    machine=MachineType.MICROVM,
    initrd=b"initrd" * 1000,
)


def boot_params(recipe: GuestRecipe) -> bytes:
    (page,) = [piece.data for piece in recipe.pieces() if piece.name == "boot parameters"]
    return page


def memory_map(recipe: GuestRecipe) -> list[tuple[int, int, int]]:
    """Start, end and type of every e820 entry, as Linux reads them."""
    page = boot_params(recipe)
    entries = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * index) for index in range(page[0x1E8])]
    return [(gpa, gpa + size, kind) for gpa, size, kind in entries]


def test_pieces_come_in_the_documented_order() -> None:
    assert [piece.name for piece in RECIPE.pieces()] == [
        "start-up code", "start-up table", "kernel", "boot parameters", "command line", "ACPI tables", "initrd",
    ]  # fmt: skip


def test_the_launch_digest_is_the_hash_of_all_pieces_in_order() -> None:
    assert RECIPE.launch_digest() == hashlib.sha256(b"".join(p.data for p in RECIPE.pieces())).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"vcpus": 3},
        {"kernel": bzimage(code=b"\xeb\xfe")},
        {"kernel": bzimage(init_size=0x30_0000)},
        {"command_line": "console=ttyS0"},
        {"initrd": b"initrD" * 1000},
        {"initrd": b"initrd" * 1000 + b"\0"},
        {"initrd": b""},
        {"layout": ram(65 * MIB)},
    ],
)
def test_whatever_changes_in_a_recipe_changes_the_digest(change: dict[str, object]) -> None:
    assert replace(RECIPE, **change).launch_digest() != RECIPE.launch_digest()  # type: ignore[arg-type]  # tests


def test_the_kernel_is_told_where_everything_is() -> None:
    by_name = {piece.name: piece for piece in RECIPE.pieces()}
    page = boot_params(RECIPE)
    image = bzimage()
    assert page[0x1F1:0x210] == image[0x1F1:0x210]
    assert page[0x22C:0x26C] == image[0x22C:0x26C]
    assert (page[0x1EF], page[0x210]) == (0, 0xFF)  # sentinel, type of loader
    initrd, size = struct.unpack_from("<II", page, 0x218)
    (command_line,) = struct.unpack_from("<I", page, 0x228)
    (rsdp,) = struct.unpack_from("<Q", page, 0x70)
    assert (initrd, size) == (by_name["initrd"].gpa, len(RECIPE.initrd))
    assert command_line == by_name["command line"].gpa
    assert by_name["command line"].data.startswith(b"console=ttyS0 quiet\0")
    assert rsdp == by_name["ACPI tables"].gpa
    assert by_name["ACPI tables"].data.startswith(b"RSD PTR ")
    table = RECIPE.table()
    assert table.entry == by_name["kernel"].gpa + ENTRY_64
    assert table.boot_params == by_name["boot parameters"].gpa


def test_a_guest_without_initrd_is_told_so() -> None:
    recipe = replace(RECIPE, initrd=b"")
    assert struct.unpack_from("<II", boot_params(recipe), 0x218) == (0, 0)
    assert "initrd" not in [piece.name for piece in recipe.pieces()]


@settings(deadline=None)
@given(
    pages=st.one_of(st.integers(32 * 256, 80 * 256), st.integers(2 << 18, 16 << 18)),
    vcpus=st.integers(1, 255),
    initrd=st.integers(0, 3 * MIB),
)
def test_nothing_overlaps_and_the_map_covers_all_ram_exactly_once(pages: int, vcpus: int, initrd: int) -> None:
    recipe = replace(RECIPE, layout=ram(pages * PAGE_SIZE), vcpus=vcpus, initrd=bytes(initrd))
    table, layout = recipe.table(), recipe.layout
    needed = Area(Gpa(microvm.KERNEL), 0x20_0000)
    taken = [
        needed, table.secret, table.mailbox, table.page_tables, table.stacks,
        *(Area(piece.gpa, len(piece.data)) for piece in recipe.pieces() if piece.name != "kernel"),
    ]  # fmt: skip
    ordered = sorted(taken, key=lambda area: area.gpa)
    assert all(before.end <= after.gpa for before, after in pairwise(ordered))
    assert all(layout.offset(area.gpa, area.size) is not None for area in taken)

    entries = memory_map(recipe)
    assert all(start < end for start, end, _ in entries)
    assert all(before[1] <= after[0] for before, after in pairwise(entries))
    assert sum(end - start for start, end, _ in entries) == layout.size
    assert all(layout.offset(start, end - start) is not None for start, end, _ in entries)


@pytest.mark.parametrize("size", [64 * MIB, 3 * GIB, 8 * GIB])
def test_linux_is_given_no_page_of_the_start_up_area(size: int) -> None:
    recipe = replace(RECIPE, layout=ram(size))
    table = recipe.table()
    reserved = [(start, end) for start, end, kind in memory_map(recipe) if kind == 2]
    for area in (table.secret, table.mailbox, table.page_tables, table.stacks, recipe.areas().table):
        assert any(start <= area.gpa and area.end <= end for start, end in reserved)
    code = Area(Gpa(0x81_0000 - len(startup_blob())), len(startup_blob()))
    assert any(start <= code.gpa and code.end <= end for start, end in reserved)


def test_the_memory_map_is_that_of_a_pc() -> None:
    assert memory_map(replace(RECIPE, layout=ram(4 * GIB))) == [
        (0, 0x9_FC00, 1), (0x9_FC00, 0xE_0000, 2), (0xE_0000, 0xF_0000, 3), (0xF_0000, 0x10_0000, 2),
        (0x10_0000, 0x80_0000, 1), (0x80_0000, 0x90_0000, 2), (0x90_0000, 0xC000_0000, 1),
        (0x1_0000_0000, 0x1_4000_0000, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("memory", "kernel", "end"),
    [
        (64 * MIB, bzimage(), 64 * MIB),
        (64 * MIB, bzimage(initrd_addr_max=0x37F_FFFF), 0x380_0000),
        (4 * GIB, bzimage(initrd_addr_max=0xFFFF_FFFF), microvm.LOW_RAM_LIMIT),
    ],
)
def test_the_initrd_ends_as_high_as_memory_and_kernel_allow(memory: int, kernel: bytes, end: int) -> None:
    recipe = replace(RECIPE, layout=ram(memory), kernel=kernel)
    (initrd,) = [piece for piece in recipe.pieces() if piece.name == "initrd"]
    assert initrd.gpa + len(initrd.data) == end


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"initrd": bytes(47 * MIB)}, "initrd of 49,283,072 bytes does not fit .* the guest has 64 MiB"),
        ({"layout": ram(17 * MIB)}, "takes 2,097,152 bytes from 0x1000000 on; the guest has 17 MiB"),
        ({"layout": ram(300 * GIB)}, "memory of 307,200 MiB needs 1,212 KiB of page tables .* 872 KiB fit"),
        ({"layout": RamLayout((RamBlock("ram", Gpa(0), 4 * GIB),))}, "has its devices above 0xc0000000"),
        ({"kernel": bzimage(relocatable_kernel=0, pref_address=0x10_0000)}, "runs at 0x100000 only"),
        ({"kernel": bzimage(kernel_alignment=0x200_0000)}, "must be aligned to 0x2000000"),
        ({"kernel": bzimage(version=0x200)}, "boot protocol 2.00"),
        ({"command_line": "x" * 2048}, "2048 bytes is longer than 2047"),
        ({"command_line": "tab\t"}, "printable"),
        ({"payload": b"payload"}, "takes no payload; .* --initrd"),
        ({"machine": MachineType.BARE}, "is a Linux bzImage and so needs the machine microvm, not bare"),
        ({"kernel": program("idle")}, "is not a bzImage and so needs the machine bare, not microvm"),
        ({"kernel": program("idle"), "machine": MachineType.BARE}, "only Linux takes an initrd; .* --payload"),
        ({"kernel": None}, "needs a kernel"),
    ],
)
def test_parts_that_do_not_fit_are_named_with_their_sizes(change: dict[str, object], fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        replace(RECIPE, **change)  # type: ignore[arg-type]  # wrong on purpose


def test_only_vcpu_0_starts() -> None:
    assert RECIPE.entry(0) is not None
    assert RECIPE.entry(1) is None


def test_a_receiver_is_measured_alike_on_every_machine() -> None:
    """The target of a migration need not know what is to arrive."""
    receiver = RECIPE.receiver()
    assert receiver.machine is MachineType.MICROVM
    assert [piece.name for piece in receiver.pieces()] == ["start-up code", "start-up table"]
    assert receiver.launch_digest() == replace(receiver, machine=MachineType.BARE).launch_digest()


def test_the_kernel_says_its_version() -> None:
    assert RECIPE.kernel_version() == VERSION
    assert RECIPE.receiver().kernel_version() == ""
