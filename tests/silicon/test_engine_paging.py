"""Engine contract: page walks, what they refuse, and what they write into the tables."""

from __future__ import annotations

import pytest

from sealift.wire.platform import Fault, Halt, MmioRead, MmioWrite

from .board import (
    ACCESSED,
    CODE,
    DATA,
    DIRTY,
    LAYOUT,
    NO_EXECUTE,
    OTHER,
    PD,
    PDPT,
    PML4,
    PRESENT,
    PT,
    WRITABLE,
    Board,
    Ports,
)
from .code import HLT, INVLPG_RBX, RELOAD_CR3, inc, jump_to, load, mov, store, store_value

SPARE = 0x60_000
"""An address whose mapping tests change."""

READ, WRITE, FETCH = load("rax", "rbx"), store("rbx", "rax"), jump_to("rbx")


# --- faults -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "access", "code"),
    [
        (0, READ, 0b0_0000),
        (0, WRITE, 0b0_0010),
        (0, FETCH, 0b1_0000),
        (PRESENT, WRITE, 0b0_0011),
        (PRESENT | WRITABLE | NO_EXECUTE, FETCH, 0b1_0001),
    ],
    ids=["read not present", "write not present", "fetch not present", "write read-only", "fetch no-execute"],
)
def test_a_page_fault_is_reported_with_address_and_error_code(
    board: Board, flags: int, access: bytes, code: int
) -> None:
    board.map(SPARE, SPARE, flags=flags)
    outcome = board.execute(inc("rcx") + access + HLT, rbx=SPARE + 0x123)
    assert isinstance(outcome, Fault)
    if not board.kind.exact:
        return
    assert (outcome.error_code, outcome.address & ~0xFFF) == (code, SPARE)
    assert board.vcpus[0].registers().cr2 & ~0xFFF == SPARE
    assert board.value("rcx") == 1, "what came before the faulting instruction is done"
    assert outcome.rip == (SPARE + 0x123 if access == FETCH else CODE + len(inc("rcx")))


@pytest.mark.parametrize("table", [PML4, PDPT, PD], ids=["PML4", "PDPT", "PD"])
def test_an_entry_missing_at_any_level_is_a_fault(board: Board, table: int) -> None:
    """The second entry of each table covers another piece of the address space."""
    address = {PML4: 1 << 39, PDPT: 1 << 30, PD: 1 << 21}[table]
    outcome = board.execute(READ + HLT, rbx=address)
    assert isinstance(outcome, Fault)
    if board.kind.exact:
        assert (outcome.error_code, outcome.address) == (0, address)


@pytest.mark.parametrize(
    ("level", "flag", "access"),
    [(table, flag, access) for table in (PML4, PDPT, PD) for flag, access in (("ro", WRITE), ("nx", FETCH))],
)
def test_a_right_must_be_given_at_every_level(board: Board, level: int, flag: str, access: bytes) -> None:
    """A second path of tables to the same pages, with one right missing at one level."""
    tables = {PML4: PML4, PDPT: 0x14_000, PD: 0x15_000}
    everything = PRESENT | WRITABLE | board.c
    entries = {PML4: tables[PDPT], PDPT: tables[PD], PD: PT}
    for table, below in entries.items():
        without = {"ro": below | PRESENT | board.c, "nx": below | everything | NO_EXECUTE}[flag]
        board.poke(tables[table] + (8 if table == PML4 else 0), without if table == level else below | everything)
    board.poke(DATA, int.from_bytes(HLT, "little"))
    address = (1 << 39) + DATA
    assert board.execute(READ + HLT, rbx=address) == Halt()
    outcome = board.execute(access + HLT, rbx=address)
    assert isinstance(outcome, Fault)
    if board.kind.exact:
        assert outcome.error_code == (3 if flag == "ro" else 17)


@pytest.mark.parametrize("address", [1 << 47, 1 << 63, (1 << 64) - (1 << 47) - 0x1000])
def test_a_non_canonical_address_is_a_fault(board: Board, address: int) -> None:
    outcome = board.execute(READ + HLT, rbx=address)
    assert isinstance(outcome, Fault)
    if board.kind.exact:
        assert outcome.rip == CODE


@pytest.mark.parametrize("where", [LAYOUT.size, 1 << 40, (1 << 46) - 0x1000])
def test_a_table_outside_ram_is_a_fault(board: Board, where: int) -> None:
    board.poke(PDPT + 8, where | board.c | PRESENT | WRITABLE)
    ports = Ports()
    outcome = board.execute(READ + HLT, ports, rbx=1 << 30)
    if board.kind.exact:
        assert isinstance(outcome, Fault)
        assert "outside RAM" in outcome.reason
    else:  # KVM may take the table for a device's registers, which are outside too
        assert isinstance(outcome, Fault) or all(isinstance(access, MmioRead) for access in ports.asked)


def test_a_page_outside_ram_is_a_devices_or_a_fault(board: Board) -> None:
    """The portable engine's guests have no devices there."""
    board.map(SPARE, 1 << 33, encrypted=False)
    ports = Ports([0x1122_3344_5566_7788])
    outcome = board.execute(READ + WRITE + HLT, ports, rbx=SPARE)
    if board.kind.exact:
        assert isinstance(outcome, Fault)
        assert outcome.address == SPARE
    else:
        assert outcome == Halt()
        assert ports.asked == [MmioRead(1 << 33, 8), MmioWrite(1 << 33, 8, 0x1122_3344_5566_7788)]


def test_a_faulting_instruction_can_be_repeated_once_its_page_is_there(board: Board) -> None:
    if not board.kind.exact:
        pytest.skip("hardware ends in a triple fault, behind which nothing is repeated")
    board.map(SPARE, SPARE, flags=0)
    assert isinstance(board.execute(inc("rcx") + WRITE + inc("rcx") + HLT, rbx=SPARE, rax=7), Fault)
    board.map(SPARE, SPARE)
    assert board.run() == Halt()
    assert (board.private(SPARE), board.value("rcx")) == (7, 2)


# --- translations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [21, 30])
def test_large_pages_map_what_they_say(board: Board, shift: int) -> None:
    large = 1 << 7 | PRESENT | WRITABLE | board.c
    board.poke(PDPT + 8, large if shift == 30 else 0x14_000 | PRESENT | WRITABLE | board.c)
    board.poke(0x14_000, large)
    assert board.execute(store_value((1 << 30) + DATA + 8, 0x55) + HLT) == Halt()
    assert board.private(DATA + 8) == 0x55


def test_the_upper_half_of_the_address_space_works_as_the_lower(board: Board) -> None:
    board.poke(PML4 + 511 * 8, PDPT | board.c | PRESENT | WRITABLE)
    address = (1 << 64) - (1 << 39) + DATA
    assert board.execute(store_value(address, 0x66) + HLT) == Halt()
    assert board.private(DATA) == 0x66


def test_a_store_across_two_pages_reaches_both(board: Board) -> None:
    board.map(SPARE + 0x1000, OTHER)
    board.map(SPARE, DATA)
    assert board.execute(store_value(SPARE + 0xFFC, 0x1111_1111_2222_2222) + HLT) == Halt()
    assert board.private(DATA + 0xFF8) >> 32 == 0x2222_2222
    assert board.private(OTHER) & 0xFFFF_FFFF == 0x1111_1111


@pytest.mark.parametrize("flush", [INVLPG_RBX, RELOAD_CR3], ids=["invlpg", "mov cr3"])
def test_a_changed_entry_counts_after_the_guest_flushed(board: Board, flush: bytes) -> None:
    board.poke(DATA, 0xAAAA)
    board.poke(OTHER, 0xBBBB)
    board.map(SPARE, DATA)
    changed = OTHER | board.c | PRESENT | WRITABLE
    code = load("rcx", "rbx") + store_value(board.entry(SPARE), changed) + flush + load("rdx", "rbx") + HLT
    assert board.execute(code, rbx=SPARE) == Halt()
    assert (board.value("rcx"), board.value("rdx")) == (0xAAAA, 0xBBBB)


def test_another_table_root_is_another_address_space(board: Board) -> None:
    """Both roots share the tables of code; the second maps SPARE elsewhere."""
    for offset in range(0, 0x1000, 8):
        board.poke(0x1B_000 + offset, board.private(PT + offset))
    for table, below in ((0x18_000, 0x19_000), (0x19_000, 0x1A_000), (0x1A_000, 0x1B_000)):
        board.poke(table, below | board.c | PRESENT | WRITABLE)
    board.poke(0x1B_000 + SPARE // 0x1000 * 8, OTHER | board.c | PRESENT | WRITABLE)
    board.map(SPARE, DATA)
    board.poke(DATA, 0xAAAA)
    board.poke(OTHER, 0xBBBB)
    switch = mov("rax", 0x18_000 | board.c) + b"\x0f\x22\xd8"  # mov cr3, rax
    assert board.execute(load("rcx", "rbx") + switch + load("rdx", "rbx") + HLT, rbx=SPARE) == Halt()
    assert (board.value("rcx"), board.value("rdx")) == (0xAAAA, 0xBBBB)


# --- accessed and dirty -------------------------------------------------------------------------------------------


def flags_of(board: Board, address: int) -> int:
    return board.private(board.entry(address)) & (ACCESSED | DIRTY)


def test_a_read_sets_accessed_at_every_level_and_dirty_at_none(board: Board) -> None:
    board.execute(READ + HLT, rbx=DATA)
    assert flags_of(board, DATA) == ACCESSED
    for table in (PML4, PDPT, PD):
        assert board.private(table) & (ACCESSED | DIRTY) == ACCESSED


def test_a_write_sets_dirty_in_the_last_level_alone(board: Board) -> None:
    board.execute(WRITE + HLT, rbx=DATA)
    assert flags_of(board, DATA) == ACCESSED | DIRTY
    assert not board.private(PD) & DIRTY
    assert not flags_of(board, OTHER)


def test_a_write_after_a_read_sets_dirty(board: Board) -> None:
    board.execute(READ + WRITE + HLT, rbx=DATA)
    assert flags_of(board, DATA) == ACCESSED | DIRTY


def test_dirty_is_set_again_after_the_guest_cleared_it_though_the_page_was_logged_long_ago(board: Board) -> None:
    """The translation that a read leaves in the TLB must not let the next write pass."""
    clean = DATA | board.c | PRESENT | WRITABLE | ACCESSED
    clear = store_value(board.entry(DATA), clean) + INVLPG_RBX
    assert board.execute(WRITE + clear + READ + WRITE + HLT, rbx=DATA) == Halt()
    assert flags_of(board, DATA) == ACCESSED | DIRTY


def test_a_refused_write_leaves_no_dirty_bit(board: Board) -> None:
    board.map(SPARE, DATA, flags=PRESENT)
    board.execute(WRITE + HLT, rbx=SPARE)
    assert not flags_of(board, SPARE) & DIRTY


def test_the_walkers_own_writes_are_logged_like_the_guests(board: Board) -> None:
    """Tables are private memory: a migration must carry their accessed bits."""
    board.logged()
    board.execute(READ + HLT, rbx=DATA)
    encrypted, plain = board.logged()
    assert {PML4, PDPT, PD, PT} <= encrypted
    assert plain == set()
