"""The start-up code brings every vCPU into the kernel, with all RAM private and the mailbox shared."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import x86_const

from launch.bzimages import bzimage
from launch.kernels import HALT, Load, elf
from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.guest.programs import program, startup_blob
from sealift.launch import microvm
from sealift.launch.areas import ANCHOR
from sealift.launch.image import GuestRecipe
from sealift.launch.machine import MachineType
from sealift.launch.startup import STACK_SIZE, read_startup_table

from .machine import Machine

MIB = 1 << 20
KERNEL = elf(Load(0xA0_0000, HALT))


def layout(*ranges: tuple[int, int]) -> RamLayout:
    return RamLayout(tuple(RamBlock(f"ram{gpa:x}", Gpa(gpa), size) for gpa, size in ranges))


def machine(ram: RamLayout, vcpus: int = 1, c_bit: int | None = 51) -> Machine:
    return Machine(GuestRecipe(startup_blob(), ram, vcpus, bytes(32), KERNEL), c_bit=c_bit)


def test_every_vcpu_enters_the_kernel_with_the_table_and_its_number_on_a_stack_of_its_own() -> None:
    guest = machine(layout((0, 16 * MIB)), vcpus=3)
    guest.run_to_the_end()
    table = guest.recipe.table()
    for number, vcpu in enumerate(guest.vcpus):
        assert vcpu.reg("RDI") == guest.recipe.areas().table.gpa
        assert vcpu.reg("RSI") == number
        assert vcpu.reg("RSP") == table.stacks.gpa + (number + 1) * STACK_SIZE - 8
        assert vcpu.reg("CR3") == table.page_tables.gpa | 1 << 51
        assert vcpu.rip == table.entry + 1


def test_the_table_can_be_read_back_from_private_memory() -> None:
    guest = machine(layout((0, 16 * MIB)))
    assert read_startup_table(lambda gpa, size: guest.private_plane[gpa : gpa + size]) == guest.recipe.table()


def test_the_mailbox_and_nothing_else_is_declared_shared_and_mapped_so() -> None:
    guest = machine(layout((0, 16 * MIB)))
    guest.run_to_the_end()
    mailbox = guest.recipe.areas().mailbox
    expected = set(range(mailbox.gpa, mailbox.end, PAGE_SIZE))
    assert guest.shared == expected
    cr3 = guest.vcpus[0].reg("CR3")
    for gpa in range(0, 16 * MIB, PAGE_SIZE):
        assert guest.translate(cr3, gpa) == (gpa, gpa not in expected)


@settings(deadline=None, max_examples=25)  # a guest runs for each example
@given(
    low=st.integers(11 * 256, 14 * 256),
    gap=st.integers(1, 600),
    high=st.integers(1, 1100),
    far=st.sampled_from([0, 1 << 30]),
)
def test_exactly_ram_is_mapped_and_the_room_for_page_tables_is_exactly_used(
    low: int, gap: int, high: int, far: int
) -> None:
    ram = layout((0, low * PAGE_SIZE), ((low + gap) * PAGE_SIZE + far, high * PAGE_SIZE))
    guest = machine(ram)
    guest.run_to_the_end()
    room = guest.recipe.table().page_tables
    assert all(any(guest.page(gpa)) for gpa in range(room.gpa, room.end, PAGE_SIZE))
    cr3 = guest.vcpus[0].reg("CR3")
    mailbox = guest.recipe.areas().mailbox
    for block in ram.blocks:
        for gpa in {block.gpa, block.gpa + block.size // 2, block.gpa + block.size - 1}:
            assert guest.translate(cr3, gpa) == (gpa, not mailbox.gpa <= gpa < mailbox.end)
        assert guest.translate(cr3, block.gpa + block.size) is None
    assert guest.translate(cr3, ram.blocks[1].gpa - 1) is None


def test_a_guest_without_encryption_runs_too_and_declares_nothing() -> None:
    guest = machine(layout((0, 16 * MIB)), vcpus=2, c_bit=None)
    guest.run_to_the_end()
    assert not guest.shared
    assert guest.vcpus[1].reg("CR3") == guest.recipe.table().page_tables.gpa


def test_vcpu_0_of_a_receiver_says_that_it_is_ready_and_changes_nothing() -> None:
    guest = Machine(GuestRecipe(startup_blob(), layout((0, 16 * MIB)), 2, bytes(32), program("ledger")).receiver())
    before = guest.private_plane[:]
    guest.run_to_the_end()
    assert guest.ready == 1
    assert guest.console == ""
    assert guest.private_plane[:] == before


def test_a_platform_that_refuses_the_mailbox_ends_the_guest_in_the_start_up_code() -> None:
    guest = Machine(GuestRecipe(startup_blob(), layout((0, 16 * MIB)), 1, bytes(32), program("idle")), refuses=True)
    guest.run(lambda _: False)
    assert "vCPU 0" in guest.crash
    assert guest.console == ""


def test_idle_says_so_once_and_halts_all_vcpus() -> None:
    guest = Machine(GuestRecipe(startup_blob(), layout((0, 16 * MIB)), 3, bytes(32), program("idle")))
    guest.run_to_the_end()
    assert guest.console == "idle ready\n"


def linux(code: bytes = HALT, vcpus: int = 2) -> Machine:
    """A guest whose kernel is a bzImage with this code at its 64-bit entry point."""
    recipe = GuestRecipe(
        startup=startup_blob(),
        layout=layout((0, 32 * MIB)),
        vcpus=vcpus,
        handler_digest=bytes(32),
        kernel=bzimage(code),
        machine=MachineType.MICROVM,
    )
    return Machine(recipe)


def test_linux_is_entered_as_its_64_bit_boot_protocol_says() -> None:
    guest = linux()
    guest.run_to_the_end()
    vcpu, table = guest.vcpus[0], guest.recipe.table()
    assert vcpu.rip == table.entry + 1
    assert vcpu.reg("RSI") == table.boot_params
    assert vcpu.reg("CS") == 0x10
    assert {vcpu.reg(name) for name in ("DS", "ES", "SS")} == {0x18}
    assert vcpu.reg("RFLAGS") & 0x600 == 0  # interrupts off, strings go up
    assert vcpu.reg("CR3") == table.page_tables.gpa | 1 << 51


def test_linux_enters_with_all_its_memory_private_and_the_mailbox_shared() -> None:
    guest = linux()
    guest.run_to_the_end()
    mailbox = guest.recipe.areas().mailbox
    cr3 = guest.vcpus[0].reg("CR3")
    assert guest.shared == set(range(mailbox.gpa, mailbox.end, PAGE_SIZE))
    for gpa in range(0, 32 * MIB, PAGE_SIZE):
        assert guest.translate(cr3, gpa) == (gpa, gpa not in guest.shared)


def test_the_start_up_code_writes_nowhere_in_linux_memory() -> None:
    """A page written before Linux runs must never be declared shared by it."""
    guest = linux()
    before = guest.private_plane[:]
    guest.run_to_the_end()
    after = guest.private_plane[:]
    changed = {gpa for gpa in range(0, len(after), PAGE_SIZE) if before[gpa : gpa + 4096] != after[gpa : gpa + 4096]}
    assert changed
    assert all(microvm.START_UP <= gpa < microvm.START_UP_END for gpa in changed)


def test_a_vcpu_that_a_vmm_starts_against_the_rules_never_enters_linux() -> None:
    guest = linux()
    start = guest.recipe.entry(0)
    assert start is not None
    stray = guest.vcpus[1]
    stray.halted, stray.rip = False, start.rip
    for name, value in (("CR4", start.cr4), ("CR3", start.cr3), ("CR0", start.cr0)):
        stray.uc.reg_write(getattr(x86_const, f"UC_X86_REG_{name}"), value)
    for _ in range(20):
        for vcpu in guest.vcpus:
            vcpu.run_slice()
    assert guest.vcpus[0].halted
    assert not stray.halted
    assert stray.rip < ANCHOR
