"""A recipe decides every byte that is loaded, and says so when its parts do not fit."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import pairwise

import pytest

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import StreamError, UserError
from sealift.guest.programs import program, startup_blob
from sealift.launch.entry import EntryState
from sealift.launch.image import GuestRecipe
from sealift.launch.pieces import PIECE_LIMIT
from sealift.launch.startup import STACK_SIZE, StartupTable

from .kernels import HALT, Load, elf

RAM = RamLayout((RamBlock("ram", Gpa(0), 16 << 20),))
RECIPE = GuestRecipe(
    startup=startup_blob(),
    layout=RAM,
    vcpus=2,
    handler_digest=b"h" * 32,
    kernel=program("ledger"),
    payload=b"payload" * 1000,
    command_line="ws=16",
)


def test_pieces_come_in_the_documented_order_in_whole_pages_and_never_overlap() -> None:
    pieces = tuple(RECIPE.pieces())
    names = [piece.name for piece in pieces]
    assert names == ["start-up code", "start-up table", "kernel segment 0", "kernel segment 1", "payload"]
    assert all(piece.gpa % PAGE_SIZE == 0 == len(piece.data) % PAGE_SIZE for piece in pieces)
    ordered = sorted((piece.gpa, piece.gpa + len(piece.data)) for piece in pieces)
    assert all(before[1] <= after[0] for before, after in pairwise(ordered))


def test_the_launch_digest_is_the_hash_of_all_pieces_in_order() -> None:
    assert RECIPE.launch_digest() == hashlib.sha256(b"".join(p.data for p in RECIPE.pieces())).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"vcpus": 3},
        {"handler_digest": b"i" * 32},
        {"kernel": program("idle")},
        {"payload": b"payloaD" * 1000},
        {"payload": b"payload" * 1000 + b"\0"},
        {"command_line": "ws=17"},
        {"layout": RamLayout((RamBlock("ram", Gpa(0), 17 << 20),))},
        {"layout": RamLayout((RamBlock("mem", Gpa(0), 16 << 20),))},
    ],
)
def test_whatever_changes_in_a_recipe_changes_the_digest(change: dict[str, object]) -> None:
    assert replace(RECIPE, **change).launch_digest() != RECIPE.launch_digest()  # type: ignore[arg-type]  # tests


def test_the_table_says_where_everything_is() -> None:
    by_name = {piece.name: piece for piece in RECIPE.pieces()}
    table = StartupTable.decode(by_name["start-up table"].data)
    assert table == RECIPE.table()
    assert table.payload.gpa == by_name["payload"].gpa
    assert table.payload.size == len(RECIPE.payload)
    assert table.stacks.size == 2 * STACK_SIZE
    areas = (table.secret, table.mailbox, table.page_tables, table.stacks, table.payload)
    assert not any(a is not b and a.overlaps(b) for a in areas for b in areas)
    assert all(area.end <= table.free for area in areas)


def test_a_receiver_is_the_same_machine_without_anything_to_run() -> None:
    receiver = RECIPE.receiver()
    assert [piece.name for piece in receiver.pieces()] == ["start-up code", "start-up table"]
    table = receiver.table()
    assert table.entry == 0
    assert (table.layout, table.vcpus, table.handler_digest) == (RAM, 2, b"h" * 32)
    assert receiver.receiver() == receiver


def test_all_vcpus_start_alike_in_the_start_up_code() -> None:
    areas = RECIPE.areas()
    assert {RECIPE.entry(vcpu) for vcpu in range(2)} == {EntryState(rip=areas.entry, cr3=areas.bootstrap_cr3)}
    with pytest.raises(ValueError, match="not 2"):
        RECIPE.entry(2)


def test_a_kernel_may_lie_below_the_start_up_area() -> None:
    table = replace(RECIPE, kernel=elf(Load(0x10_0000, HALT))).table()
    assert table.entry == 0x10_0000
    assert table.page_tables.gpa == table.mailbox.end


def ram(mib: int) -> RamLayout:
    return RamLayout((RamBlock("ram", Gpa(0), mib << 20),))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"layout": ram(8)}, "8192 KiB is too small: the start-up code"),
        ({"layout": RamLayout((RamBlock("ram", Gpa(0), 0x820000),))}, "the start-up mailbox is at 0x820000"),
        ({"layout": ram(10)}, "does not lie in the guest's memory"),
        ({"payload": bytes(6 << 20)}, r"payload of 6,291,456 bytes do not fit .* the guest has 16 MiB"),
        ({"vcpus": 255, "layout": ram(12)}, "page tables, stacks and a payload"),
        ({"kernel": elf(Load(0x81_0000, HALT))}, "overlaps the start-up area 0x810000-0x814000"),
        ({"kernel": elf(Load(0x80_0000, HALT, memsz=0xB001))}, "overlaps the start-up area"),
        ({"kernel": elf(Load(0x3FFF_8000, HALT)), "layout": ram(2048)}, "no longer fit below 0x40000000"),
        ({"kernel": None}, "needs a kernel"),
        ({"kernel": b"not an ELF file" * 10}, "neither an ELF file nor a Linux kernel"),
        ({"startup": startup_blob()[1:]}, "not whole pages below"),
        ({"startup": startup_blob()[4096:]}, "has its page tables below"),
    ],
)
def test_parts_that_do_not_fit_are_named_with_their_sizes(change: dict[str, object], fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        replace(RECIPE, **change)  # type: ignore[arg-type]  # wrong on purpose


def test_start_up_code_without_a_table_is_refused() -> None:
    with pytest.raises(StreamError, match="GUIDed table"):
        replace(RECIPE, startup=bytes(4096))


class _Watched:
    """Zeros, and how many of them were wanted at once."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.largest = 0

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice, /) -> bytes:
        start, stop, _ = part.indices(self._size)
        self.largest = max(self.largest, stop - start)
        return bytes(stop - start)


def test_a_large_payload_is_read_piece_by_piece_and_measured_as_if_it_were_one() -> None:
    size = 5 * PIECE_LIMIT // 2 + 1
    payload = _Watched(size)
    recipe = replace(RECIPE, payload=payload)
    pieces = [piece for piece in recipe.pieces() if piece.name == "payload"]
    assert [piece.gpa - pieces[0].gpa for piece in pieces] == [0, PIECE_LIMIT, 2 * PIECE_LIMIT]
    assert b"".join(piece.data for piece in pieces) == bytes(-(-size // PAGE_SIZE) * PAGE_SIZE)
    assert payload.largest == PIECE_LIMIT
    assert recipe.launch_digest() == replace(RECIPE, payload=bytes(size)).launch_digest()
