"""Engine contract: the whole state of a vCPU moves into a fresh one, and what is no state is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealift.errors import StreamError
from sealift.wire.platform import Halt, Interrupted, Registers, Table

from .board import CODE, DATA, OTHER, Board, timeless
from .code import HLT, INC_AT_RBX, RDMSR, WRMSR, forever, inc, load, mov, times

FS_BASE, GS_BASE = 0xC000_0100, 0xC000_0101
MSRS = {FS_BASE: OTHER, GS_BASE: OTHER + 0x100, 0xC000_0102: 0xFFFF_8000_1234_0000, 0xC000_0082: 0xFFFF_8000_0000_1000}
"""FS base, GS base, kernel GS base, LSTAR."""
ROUNDS = 150_000
ALLOWED = OTHER + 0x400
"""The guest waits here before its next round until more rounds than it has done are allowed."""


def write_msrs() -> bytes:
    return b"".join(
        mov("rcx", number) + mov("rax", value & 0xFFFF_FFFF) + mov("rdx", value >> 32) + WRMSR
        for number, value in MSRS.items()
    )


def work() -> bytes:
    """Every kind of register takes part; at the end all of them are in memory at OTHER + 0x200."""
    setup = (
        write_msrs()
        + b"\x0f\xae\x16"  # ldmxcsr [rsi]: round towards zero
        + b"\xd9\x2f"  # fldcw [rdi]: 53-bit precision, round up
        + b"\xd9\xeb\xd9\xe8"  # fldpi; fld1
        + mov("rax", 0x0123_4567_89AB_CDEF)
        + b"\x66\x48\x0f\x6e\xc0"  # movq xmm0, rax
        + b"\x66\x44\x0f\x6f\xf8"  # movdqa xmm15, xmm0
        + mov("r8", 3)
        + b"\xf2\x4d\x0f\x2a\xc8"  # cvtsi2sd xmm9, r8
    )
    step = (
        b"\x48\x0f\xaf\xc0"  # imul rax, rax
        + inc("rax")
        + b"\x4d\x11\xc1"  # adc r9, r8: the carry of inc's neighbour
        + b"\x66\x44\x0f\xd4\xf8"  # paddq xmm15, xmm0
        + b"\xf2\x45\x0f\x5e\xc9"  # divsd xmm9, xmm9
        + b"\xf2\x4d\x0f\x2a\xd1"  # cvtsi2sd xmm10, r9
        + b"\xf2\x45\x0f\x58\xca"  # addsd xmm9, xmm10
        + b"\xd8\xc1"  # fadd st0, st1
        + b"\x64\x48\xff\x04\x25\x00\x00\x00\x00"  # inc qword fs:[0]
        + b"\x65\x48\xff\x04\x25\x08\x00\x00\x00"  # inc qword gs:[8]
        + b"\x65\x4c\x8b\x14\x25\x08\x00\x00\x00"  # mov r10, gs:[8]
        + b"\x4c\x3b\x14\x25"  # cmp r10, [ALLOWED]
        + struct.pack("<I", ALLOWED)
        + b"\x77\xed"  # ja to the mov
    )
    finish = (
        mov("rbx", OTHER + 0x200)
        + b"\xdd\x1b\xdd\x5b\x08"  # fstp qword [rbx], [rbx+8]
        + b"\xd9\x7b\x10\x0f\xae\x5b\x18"  # fnstcw [rbx+16]; stmxcsr [rbx+24]
        + b"\x44\x0f\x11\x7b\x20"  # movups [rbx+32], xmm15
        + b"\x44\x0f\x11\x4b\x30"  # movups [rbx+48], xmm9
        + b"\x48\x89\x43\x40\x4c\x89\x4b\x48"  # mov [rbx+64], rax; mov [rbx+72], r9
    )
    for place, number in enumerate(MSRS):
        finish += mov("rcx", number) + RDMSR + b"\x89\x43" + bytes((0x50 + 8 * place,))
        finish += b"\x89\x53" + bytes((0x54 + 8 * place,))  # mov [rbx+…], eax; edx
    return setup + times(ROUNDS, step) + finish + HLT


def prepare(board: Board, index: int = 0) -> None:
    board.poke(ALLOWED, ROUNDS)
    board.poke(DATA, 0x7F80)
    board.poke(DATA + 8, 0x0A7F)
    board.load(index, work(), rsi=DATA, rdi=DATA + 8)


def results(board: Board) -> bytes:
    return bytes(board.memory.private.data[OTHER : OTHER + 0x300])


def test_work_that_moves_to_fresh_vcpus_ends_as_if_it_had_stayed(
    make_board: Callable[[int], Board], threads: ThreadPoolExecutor, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """The state is taken in the middle, several times, and each time a vCPU that never ran goes on with it."""
    undisturbed = make_board(1)
    prepare(undisturbed)
    assert undisturbed.run() == Halt()
    expected = results(undisturbed)
    assert struct.unpack_from("<Q", expected)[0] == ROUNDS
    moving = make_board(1)
    prepare(moving)
    for stop in range(1, 5):
        moving.poke(ALLOWED, (stop + 1) * ROUNDS // 8)  # it cannot be done before it is kicked
        running = threads.submit(moving.run)
        eventually(lambda stop=stop: moving.private(OTHER) > stop * ROUNDS // 8)  # type: ignore[misc]
        moving.vcpus[0].kick()
        assert running.result(10) == Interrupted()
        state = moving.vcpus[0].save()
        moving.vcpus[0] = moving.engine.create_vcpu(0)
        moving.vcpus[0].restore(state)
        assert timeless(moving.vcpus[0].save()) == timeless(state)
    moving.poke(ALLOWED, ROUNDS)
    assert moving.run() == Halt()
    assert results(moving) == expected


def test_registers_are_given_back_as_they_were_set(board: Board) -> None:
    registers = Registers(
        general=tuple(0x1111_1111_1111_1111 * number for number in range(16)),
        rip=CODE,
        rflags=0xAD7 & ~0x300 | 2,
        cr0=0x8005_0033,
        cr2=0xDEAD_B000,
        cr3=0x10_000 | board.c,
        cr4=0x620,
        efer=0xD01,
    )
    board.vcpus[0].set_registers(registers)
    assert board.vcpus[0].registers() == registers


def test_flags_move_too(make_board: Callable[[int], Board]) -> None:
    """The carry that one vCPU set is what the other adds."""
    source = make_board(1)
    source.load(0, b"\xf9" + HLT)  # stc
    assert source.run() == Halt()
    target = make_board(1)
    target.load(0, b"\x90\x90" + b"\x48\x83\xd2\x00" + HLT)  # adc rdx, 0
    target.vcpus[0].restore(source.vcpus[0].save())
    assert target.run() == Halt()
    assert target.value("rdx") == 1


def test_descriptor_tables_move_too(make_board: Callable[[int], Board]) -> None:
    table = (0x37, 0x1234_5000)
    source = make_board(1)
    source.memory.write_private(DATA, struct.pack("<HQ", *table))
    source.load(0, b"\x0f\x01\x13\x0f\x01\x1b" + HLT, rbx=DATA)  # lgdt [rbx]; lidt [rbx]
    assert source.run() == Halt()
    target = make_board(1)
    target.load(0, b"\x90" * 7 + b"\x0f\x01\x03\x0f\x01\x4b\x10" + HLT, rbx=DATA)  # sgdt [rbx]; sidt [rbx+16]
    target.vcpus[0].restore(source.vcpus[0].save())
    assert target.run() == Halt()
    stored = target.memory.read_private(DATA, 32)
    assert struct.unpack_from("<HQ", stored) == struct.unpack_from("<HQ", stored, 16) == table


def test_segments_and_descriptor_tables_are_those_that_the_guest_loaded(board: Board) -> None:
    """And code is 64-bit code, whatever selectors an engine gives a vCPU to start with."""
    board.memory.write_private(DATA, struct.pack("<HQ", 0x37, 0x1234_5000))
    tables = b"\x0f\x01\x13\x0f\x01\x1b"  # lgdt [rbx]; lidt [rbx]
    assert board.execute(tables + write_msrs() + HLT, rbx=DATA) == Halt()
    found = board.vcpus[0].system_registers()
    assert (found.fs.base, found.gs.base, found.kernel_gs_base) == tuple(MSRS.values())[:3]
    assert found.gdtr == found.idtr == Table(0x1234_5000, 0x37)
    assert found.cs.attributes & 0x2FF == 0x29B
    assert (found.cs.base, found.ss.base) == (0, 0)


def test_a_restored_vcpu_uses_no_translation_of_its_past(board: Board) -> None:
    board.load(0, forever(INC_AT_RBX + HLT), rbx=DATA)
    assert board.run() == Halt()
    state = board.vcpus[0].save()
    board.map(DATA, OTHER)
    board.vcpus[0].restore(state)
    assert board.run() == Halt()
    assert (board.private(DATA), board.private(OTHER)) == (1, 1)


# --- what is no state ---------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_rubbish_is_no_state(board: Board, data: bytes) -> None:
    with pytest.raises(StreamError):
        board.vcpus[0].restore(data)


def test_half_a_state_is_no_state(board: Board) -> None:
    state = board.vcpus[0].save()
    for length in range(0, len(state), 7):
        with pytest.raises(StreamError):
            board.vcpus[0].restore(state[:length])


def test_a_state_of_another_version_is_refused(board: Board) -> None:
    state = msgspec.msgpack.decode(board.vcpus[0].save())
    for version in (0, state["version"] + 1, -1):
        with pytest.raises(StreamError):
            board.vcpus[0].restore(msgspec.msgpack.encode({**state, "version": version}))


words = st.integers(0, (1 << 64) - 1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(general=st.lists(words, min_size=16, max_size=16), others=st.lists(words, min_size=7, max_size=7))
def test_registers_full_of_rubbish_fault_or_are_refused_and_hurt_nobody_else(
    pair: Board, general: list[int], others: list[int]
) -> None:
    """A VMM may set what it likes on a guest without SEV-ES; the other vCPU goes on."""
    vcpu = pair.vcpus[0] = pair.engine.create_vcpu(0)
    try:
        vcpu.set_registers(Registers(tuple(general), *others))
    except StreamError:
        return
    vcpu.kick()
    pair.run(0)
    pair.load(1, load("rax", "rbx") + HLT, rbx=DATA)
    assert pair.run(1) == Halt()


@pytest.mark.parametrize("count", [0, 15, 17])
def test_there_are_sixteen_general_registers(board: Board, count: int) -> None:
    with pytest.raises(StreamError):
        board.vcpus[0].set_registers(Registers((0,) * count, 0, 2, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("field", ["rip", "rflags", "cr0", "cr2", "cr3", "cr4", "efer"])
@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_a_register_has_64_bits(board: Board, field: str, value: int) -> None:
    registers = msgspec.structs.replace(board.registers(CODE), **{field: value})
    with pytest.raises(StreamError):
        board.vcpus[0].set_registers(registers)
