"""vCPUs with interrupt controllers, as Linux has them: what the kernel keeps for them is saved and loaded whole."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sealift.address import PAGE_SIZE
from sealift.silicon.engines.interface import Hypercall
from sealift.silicon.engines.kvm import abi
from sealift.silicon.engines.kvm.engine import KvmEngine
from sealift.silicon.engines.kvm.msrs import MIGRATION_CONTROL, SEV_ENABLED, SEV_STATUS
from sealift.wire.platform import Fault, PortOut
from silicon.board import Board, Ports
from silicon.code import RDMSR, VMMCALL, WRMSR, forever, mov, port_out, store
from silicon.conftest import KVM

LAPIC_GPA, IOAPIC_GPA = 0xFEE0_0000, 0xFEC0_0000
LAPIC, IOAPIC = 0x50_000, 0x51_000
"""Where tests map them."""
TASK_PRIORITY, SPURIOUS, REQUESTED, COMMAND_LOW, COMMAND_HIGH = 0x80, 0xF0, 0x200, 0x300, 0x310
APIC_ON = 0x1FF
INIT, START_UP = 0x4500, 0x4600
TARGET = 0x8000
"""Where the second vCPU is started, in real mode."""
PIC_DATA, PIT_CHANNEL, PIT_MODE = 0x21, 0x40, 0x43

PATIENCE_S = 60

MAP_GPA_RANGE = 12
END = mov("rax", MAP_GPA_RANGE) + mov("rbx", 0) + mov("rcx", 1) + mov("rdx", 0) + VMMCALL + forever(b"")
"""Leave the guest: HLT does not, where KVM has the interrupt controllers."""
ENDED = Hypercall(MAP_GPA_RANGE, (0, 1, 0, 0))

STARTED = bytes.fromhex("b05a e680 66b80c000000 6631db 66b901000000 6631d2 0f01d9 ebfe")
"""16-bit: mov al, 0x5a; out 0x80, al; mov eax, 12; xor ebx, ebx; mov ecx, 1; xor edx, edx; vmmcall; jmp to itself."""


@pytest.fixture
def make() -> Iterator[Callable[..., Board]]:
    """Guests with interrupt controllers, which are mapped."""
    with ExitStack() as ending:

        def board(vcpus: int = 1) -> Board:
            made = Board(KVM, vcpus, irqchip=True)
            ending.callback(made.close)
            made.map(LAPIC, LAPIC_GPA, encrypted=False)
            made.map(IOAPIC, IOAPIC_GPA, encrypted=False)
            made.memory.private.data[TARGET : TARGET + len(STARTED)] = STARTED
            return made

        yield board


def put(address: int, value: int) -> bytes:
    """Write 32 bits."""
    return mov("rbx", address) + mov("rax", value) + b"\x89\x03"  # mov [rbx], eax


def get(address: int) -> bytes:
    """Read 32 bits into rax."""
    return mov("rbx", address) + b"\x8b\x03"  # mov eax, [rbx]


def out(port: int, value: int) -> bytes:
    """Write a byte to a port."""
    return mov("rdx", port) + mov("rax", value) + port_out(1)


def keep(place: int) -> bytes:
    """Store rax as the test's result number `place`."""
    return mov("rbx", 0x20_000 + 8 * place) + store("rbx", "rax")


def kept(board: Board, place: int) -> int:
    """A result."""
    return board.private(0x20_000 + 8 * place)


def run(board: Board, code: bytes, index: int = 0) -> None:
    """To its end, and out of it."""
    board.load(index, code + END)
    assert board.run(index) == ENDED
    board.vcpus[index].complete_hypercall(0)


def engine(board: Board) -> KvmEngine:
    """The engine itself."""
    assert isinstance(board.engine, KvmEngine)
    return board.engine


def decoded(state: bytes) -> dict[str, Any]:
    """A saved state."""
    found: dict[str, Any] = msgspec.msgpack.decode(state)
    return found


def descriptors() -> set[str]:
    """Of this process."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def start_second(board: Board) -> None:
    """VCPU 0 sends what starts vCPU 1."""
    message = (
        put(LAPIC + SPURIOUS, APIC_ON)
        + put(LAPIC + COMMAND_HIGH, 1 << 24)
        + put(LAPIC + COMMAND_LOW, INIT)
        + put(LAPIC + COMMAND_HIGH, 1 << 24)
        + put(LAPIC + COMMAND_LOW, START_UP | TARGET // PAGE_SIZE)
    )
    run(board, message)


def test_a_vcpu_is_saved_as_a_start_up_message_that_waits_for_it_makes_it(make: Callable[..., Board]) -> None:
    """It has not run since; asked for its run state, KVM acts on the message, and its registers are others."""
    source = make(2)
    start_second(source)
    state = source.vcpus[1].save()
    parts = decoded(state)
    assert abi.Sregs.from_buffer_copy(parts["sregs"]).cs.base == TARGET
    assert abi.Regs.from_buffer_copy(parts["regs"]).rip == 0
    assert abi.MpState.from_buffer_copy(parts["mp_state"]).mp_state == abi.MP_STATE_RUNNABLE

    target = make(2)
    target.vcpus[1].restore(state)
    ports = Ports()
    assert target.run(1, ports) == ENDED
    assert ports.asked == [PortOut(0x80, 1, 0x5A)]


def test_a_vcpu_is_started_by_another(make: Callable[..., Board]) -> None:
    board = make(2)
    start_second(board)
    ports = Ports()
    assert board.run(1, ports) == ENDED
    assert ports.asked == [PortOut(0x80, 1, 0x5A)]


def test_a_local_apic_moves_with_its_vcpu(make: Callable[..., Board]) -> None:
    source, target = make(), make()
    run(source, put(LAPIC + SPURIOUS, APIC_ON) + put(LAPIC + TASK_PRIORITY, 0x30))
    target.vcpus[0].restore(source.vcpus[0].save())
    run(target, get(LAPIC + TASK_PRIORITY) + keep(0) + get(LAPIC + SPURIOUS) + keep(1))
    assert (kept(target, 0), kept(target, 1)) == (0x30, APIC_ON)


def test_interrupt_controllers_and_timer_move_and_the_clock_goes_on(make: Callable[..., Board]) -> None:
    source, target = make(), make()
    redirect = 0x10 + 2 * 5
    run(
        source,
        out(PIC_DATA, 0xA5)
        + out(PIT_MODE, 0x34)
        + out(PIT_CHANNEL, 0x21)
        + out(PIT_CHANNEL, 0x43)
        + put(IOAPIC, redirect)
        + put(IOAPIC + 0x10, 0x31),
    )
    saved = engine(source).save_chips()
    before = decoded(engine(target).save_chips())
    engine(target).restore_chips(saved)
    there, here = decoded(engine(target).save_chips()), decoded(saved)
    assert there["irqchips"] == here["irqchips"] != before["irqchips"]
    assert [int.from_bytes(each["pit"][:4], "little") for each in (here, there)] == [0x4321, 0x4321]
    clocks = [abi.ClockData.from_buffer_copy(each["clock"]).clock for each in (here, there)]
    assert clocks[0] <= clocks[1]


def test_a_line_that_is_raised_reaches_the_vcpu(make: Callable[..., Board]) -> None:
    """A device's eventfd, through the I/O APIC to the local one, where it waits for the guest to take interrupts.

    The kernel carries it there in a worker of its own, some time after the write.
    """
    board = make()
    gsi, vector = 5, 0x31
    run(board, put(LAPIC + SPURIOUS, APIC_ON) + put(IOAPIC, 0x10 + 2 * gsi) + put(IOAPIC + 0x10, vector))
    line = engine(board).interrupt(gsi)
    assert line == engine(board).interrupt(gsi)
    os.eventfd_write(line, 1)
    word = REQUESTED + vector // 32 * 0x10
    deadline = time.monotonic() + PATIENCE_S
    while kept(board, 0) != 1 << vector % 32:
        assert time.monotonic() < deadline
        run(board, get(LAPIC + word) + keep(0))


# --- MSRs of a confidential guest -----------------------------------------------------------------------------------


def read_msr(index: int) -> bytes:
    """Into rax."""
    return mov("rcx", index) + RDMSR


def write_msr(index: int, value: int) -> bytes:
    """All 64 bits."""
    return mov("rcx", index) + mov("rax", value & 0xFFFF_FFFF) + mov("rdx", value >> 32) + WRMSR


def test_a_guest_that_asks_whether_it_is_encrypted_is_aware(make: Callable[..., Board]) -> None:
    board = make()
    assert not engine(board).says.aware
    run(board, read_msr(SEV_STATUS) + keep(0))
    assert kept(board, 0) == SEV_ENABLED
    assert engine(board).says.aware


def test_a_guest_is_ready_while_it_says_so(make: Callable[..., Board]) -> None:
    board = make()
    assert not engine(board).says.ready
    run(board, write_msr(MIGRATION_CONTROL, 1) + read_msr(MIGRATION_CONTROL) + keep(0))
    assert engine(board).says.ready
    assert kept(board, 0) == 1
    moved = make()
    engine(moved).restore(engine(board).save())
    assert engine(moved).says.ready
    run(board, write_msr(MIGRATION_CONTROL, 0))
    assert not engine(board).says.ready


@pytest.mark.parametrize(
    "code", [write_msr(MIGRATION_CONTROL, 2), write_msr(SEV_STATUS, 0)], ids=["a reserved bit", "a status"]
)
def test_what_may_not_be_written_is_a_general_protection_fault(make: Callable[..., Board], code: bytes) -> None:
    """The guest has no handler for it: a triple fault."""
    board = make()
    board.load(0, code + END)
    outcome = board.run()
    assert isinstance(outcome, Fault)
    assert not outcome.registers_kept
    assert not engine(board).says.ready


def test_an_engine_that_is_closed_leaves_no_descriptor() -> None:
    board = Board(KVM, 2, irqchip=True)
    engine(board).interrupt(5)
    before = descriptors()
    board.close()
    assert len(before - descriptors()) == len(("VM", "vCPU", "its run area", "another", "its run area", "line"))
