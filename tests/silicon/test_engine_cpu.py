"""Engine contract: instructions that leave guest mode, and what they leave behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sealift.cpu.description import CpuDescription
from sealift.errors import UserError
from sealift.silicon.engines.cpuid import signature, signature_eax
from sealift.silicon.engines.interface import Hypercall, VmShape
from sealift.silicon.memory.guest_memory import GuestMemory
from sealift.wire.obstacle import Code, Obstacle
from sealift.wire.platform import Fault, Halt, Interrupted, PortIn, PortOut

from .board import CODE, DATA, OPEN_DATA, OTHER, Board, EngineKind, Ports
from .code import CPUID, HLT, UD2, VMMCALL, forever, inc, mov, port_in, port_out, store_value, times
from .windows import KEY, LAYOUT

FULL = 0x1122_3344_5566_7788
LEAVES = (0x1, 0x8000_0001, 0x0, 0x4000_0000, 0x4000_0001, 0x8000_0000, 0x8000_0008, 0x8000_001F)


def test_long_mode_with_the_c_bit_in_cr3_and_every_entry(board: Board) -> None:
    outcome = board.execute(mov("r9", 1 << 63) + store_value(DATA, FULL) + HLT)
    assert outcome == Halt()
    assert board.value("r9") == 1 << 63
    assert board.private(DATA) == FULL
    assert board.shared(DATA) == 0


# --- HLT ----------------------------------------------------------------------------------------------------------


def test_after_hlt_the_guest_goes_on_behind_it(board: Board) -> None:
    board.load(0, inc("rax") + HLT + inc("rax") + HLT)
    assert (board.run(), board.value("rax")) == (Halt(), 1)
    assert (board.run(), board.value("rax")) == (Halt(), 2)


def test_a_byte_that_looks_like_hlt_inside_an_instruction_is_none(board: Board) -> None:
    """Long enough for every way a run may be cut into pieces to meet it."""
    code = mov("rdx", 0xF4F4_F4F4_F4F4_F4F4) + b"\x48\x8b\x45\xf4" + inc("rbx")  # mov rax, [rbp - 12]
    board.poke(DATA - 8, 0x55 << 32)
    assert board.execute(times(100_003, code) + HLT, rbp=DATA + 4) == Halt()
    assert board.value("rbx") == 100_003


@pytest.mark.parametrize("alias", [DATA, OPEN_DATA], ids=["executed page", "another address"])
def test_a_hlt_that_the_guest_wrote_itself_halts(board: Board, alias: int) -> None:
    """First a return stands there, then HLT and a jump back to it, written through either mapping of the page."""
    board.poke(DATA, 0xC3)
    call = mov("rbx", DATA) + b"\xff\xd3"
    code = call + store_value(alias, int.from_bytes(b"\xf4\xeb\xfd", "little")) + call + UD2
    board.load(0, code, rsp=OTHER + 0x800)
    assert board.run() == Halt()
    assert board.vcpus[0].registers().rip == DATA + 1


def test_a_vcpu_that_nobody_started_waits_without_executing_anything(board: Board) -> None:
    ports, before = Ports(), board.vcpus[0].registers()
    assert board.run(0, ports) == Halt()
    assert board.vcpus[0].registers() == before
    assert ports.asked == []


# --- CPUID --------------------------------------------------------------------------------------------------------


def cpuid(board: Board, leaf: int, index: int = 0) -> tuple[int, int, int, int]:
    board.load(index, CPUID + HLT, rax=leaf, rbx=FULL, rcx=0, rdx=FULL)
    assert board.run(index) == Halt()
    eax, ebx, ecx, edx = (board.value(name, index) for name in ("rax", "rbx", "rcx", "rdx"))
    return eax, ebx, ecx, edx


def text(*registers: int) -> bytes:
    return b"".join(register.to_bytes(4, "little") for register in registers)


def test_cpuid_tells_the_guest_that_it_is_encrypted_and_by_which_bit(board: Board) -> None:
    eax, ebx, _, _ = cpuid(board, 0x8000_001F)
    assert eax & 0b1111 == 0b0010  # SEV, and neither SME nor page flush nor SEV-ES
    assert (ebx & 0x3F, ebx >> 6 & 0x3F) == (board.engine.cbit, 1)


def test_physical_addresses_end_at_the_c_bit(board: Board) -> None:
    """Below it or, where the processor would take a higher bit of a page-table entry for reserved, with it."""
    assert cpuid(board, 0x8000_0008)[0] & 0xFF == board.engine.cbit + (0 if board.kind.exact else 1)


def test_cpuid_names_a_processor_and_a_hypervisor(board: Board) -> None:
    highest, ebx, ecx, edx = cpuid(board, 0)
    assert highest >= 1
    assert text(ebx, edx, ecx) in {b"AuthenticAMD"} | (set() if board.kind.exact else {b"GenuineIntel"})
    assert cpuid(board, 0x8000_0000)[0] >= 0x8000_001F
    assert cpuid(board, 1)[2] >> 31 == 1
    highest, ebx, ecx, edx = cpuid(board, 0x4000_0000)
    assert (highest >= 0x4000_0001, text(ebx, ecx, edx)) == (True, b"KVMKVMKVM\0\0\0")


def test_kvm_features_have_the_two_hypercalls_of_confidential_guests(board: Board) -> None:
    features = cpuid(board, 0x4000_0001)[0]
    assert features & 0x3_0000 == 0x3_0000
    assert not features & 0x4410, "asynchronous page faults would write to the guest at any time"


def test_each_vcpu_reads_its_own_apic_id(make_board: Callable[[int], Board]) -> None:
    board = make_board(3)
    found = [cpuid(board, 1, index)[1] for index in range(3)]
    assert [ebx >> 24 for ebx in found] == [0, 1, 2]
    assert {ebx >> 16 & 0xFF for ebx in found} == {3}


def less(kind: EngineKind, *features: str) -> CpuDescription:
    """What the engine can give, without some features, and of another model."""
    best = kind.factory().host_cpu()
    return replace(best, name="limited", features=best.features - {*features}, family=0x17, model=0x31, stepping=2)


def test_a_guest_with_a_cpu_of_its_own_sees_no_other_features(
    engine_kind: EngineKind, board: Board, board_with: Callable[..., Board]
) -> None:
    limited = board_with(limit=less(engine_kind, "cx16", "nx"))
    plain = [cpuid(board, leaf) for leaf in LEAVES]
    seen = [cpuid(limited, leaf) for leaf in LEAVES]
    (_, ebx, ecx, edx), (_, *extended) = plain[:2]
    assert seen[0] == (0x0083_0F12, ebx, ecx & ~(1 << 13), edx)
    assert seen[1] == (0x0083_0F12, *extended[:2], extended[2] & ~(1 << 20))
    assert seen[2:] == plain[2:], "what is not the CPU's own stays"


def test_a_guest_that_arrives_sees_the_cpu_that_it_had(
    engine_kind: EngineKind, board_with: Callable[..., Board]
) -> None:
    first = board_with(limit=less(engine_kind, "cx16"))
    second = board_with(cpu=first.engine.cpu)
    assert second.engine.cpu == first.engine.cpu
    assert [cpuid(second, leaf) for leaf in LEAVES] == [cpuid(first, leaf) for leaf in LEAVES]


def test_a_cpu_that_this_host_cannot_give_is_refused_with_what_is_missing_and_what_would_do(
    engine_kind: EngineKind,
) -> None:
    factory = engine_kind.factory()
    best = factory.host_cpu()
    wanted = replace(best, name="m", features=best.features | {"xop", "lwp"})
    memory = GuestMemory(LAYOUT, KEY)
    told = (
        f"the engine {factory.name} cannot give a guest the CPU m here: it lacks lwp, xop (the rest of it would be "
        "--cpu m,-lwp,-xop; `sealift cpu baseline` finds what several hosts can give)"
    )
    with pytest.raises(UserError) as refused:
        factory.make(memory, VmShape(1, limit=wanted))
    assert str(refused.value) == told
    assert factory.judge(VmShape(1, limit=wanted)) == (Obstacle(Code.CPU, told),)


def test_a_cpu_of_another_vendor_is_refused(engine_kind: EngineKind) -> None:
    factory = engine_kind.factory()
    other = replace(factory.host_cpu(), name="m", vendor="CentaurHauls")
    with pytest.raises(UserError, match=r"the CPU m is of CentaurHauls, and guests of the engine \w+ have one of"):
        factory.make(GuestMemory(LAYOUT, KEY), VmShape(1, limit=other))


@given(st.integers(1, 0xF + 0xFF), st.integers(0, 0xFF), st.integers(0, 0xF))
def test_a_signature_is_read_as_it_was_written(family: int, model: int, stepping: int) -> None:
    """Only families 6 and from 15 on have models of more than four bits."""
    model &= 0xFF if family == 6 or family >= 0xF else 0xF
    assert signature(signature_eax(family, model, stepping)) == (family, model, stepping)


def test_an_unknown_leaf_reads_as_zeros_and_every_leaf_clears_upper_halves(board: Board) -> None:
    assert cpuid(board, 0x4000_00FF) == (0, 0, 0, 0)


# --- ports --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4])
def test_port_output_brings_as_many_bytes_as_the_instruction_says(board: Board, size: int) -> None:
    ports = Ports()
    assert board.execute(port_out(size) + HLT, ports, rax=FULL, rdx=0x3F8) == Halt()
    assert ports.asked == [PortOut(0x3F8, size, FULL & (1 << 8 * size) - 1)]
    assert board.value("rax") == FULL


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, 0x1122_3344_5566_77AA), (2, 0x1122_3344_5566_AAAA), (4, 0xAAAA_AAAA)],
)
def test_port_input_changes_as_much_of_rax_as_the_architecture_says(board: Board, size: int, expected: int) -> None:
    """AL and AX leave the rest alone, EAX clears the upper half; what the outside sends too much is cut off."""
    ports = Ports([0xAAAA_AAAA_AAAA_AAAA])
    assert board.execute(port_in(size) + HLT, ports, rax=FULL, rdx=0x3FD) == Halt()
    assert ports.asked == [PortIn(0x3FD, size)]
    assert board.value("rax") == expected


@pytest.mark.parametrize("port", [0, 0xFFFF])
def test_all_ports_can_be_reached(board: Board, port: int) -> None:
    ports = Ports()
    board.execute(port_out(1) + HLT, ports, rdx=port)
    assert ports.asked == [PortOut(port, 1, 0)]


def test_accesses_in_a_row_without_a_branch_each_happen_once_and_in_order(board: Board) -> None:
    code = port_in(1) + port_out(1) + inc("rax") + port_out(2) + port_in(4) + port_out(4) + HLT
    ports = Ports([0x41, 0x1234_5678])
    assert board.execute(code, ports, rdx=0x80) == Halt()
    assert ports.asked == [
        PortIn(0x80, 1),
        PortOut(0x80, 1, 0x41),
        PortOut(0x80, 2, 0x42),
        PortIn(0x80, 4),
        PortOut(0x80, 4, 0x1234_5678),
    ]


def test_a_kick_in_the_middle_of_an_access_leaves_after_the_access_is_complete(board: Board) -> None:
    ports = Ports([0x77], during=board.vcpus[0].kick)
    board.load(0, port_in(1) + forever(inc("rbx")), rdx=0x80)
    assert board.run(0, ports) == Interrupted()
    assert board.value("rax") == 0x77
    assert len(ports.asked) == 1


class OutsideError(Exception):
    """The outside fails."""


def test_an_error_of_the_outside_ends_the_run_and_frees_the_guest_for_others(pair: Board) -> None:
    def fail() -> None:
        raise OutsideError

    pair.load(0, forever(port_out(1)), rdx=0x80)
    with pytest.raises(OutsideError):
        pair.run(0, Ports(during=fail))
    pair.load(1, inc("rax") + HLT)
    assert pair.run(1) == Halt()


# --- VMMCALL ------------------------------------------------------------------------------------------------------


def test_a_hypercall_leaves_with_number_and_arguments_and_comes_back_with_its_result(board: Board) -> None:
    board.load(0, VMMCALL + mov("r9", 5) + HLT, rax=12, rbx=0x8000, rcx=3, rdx=16)
    assert board.run() == Hypercall(12, (0x8000, 3, 16, 0))
    board.vcpus[0].complete_hypercall(0)
    assert board.run() == Halt()
    assert (board.value("rax"), board.value("r9"), board.value("rbx")) == (0, 5, 0x8000)


def test_a_negative_result_is_a_64_bit_number_to_the_guest(board: Board) -> None:
    board.load(0, VMMCALL + HLT, rax=12, rbx=0x8000, rcx=1)
    assert isinstance(board.run(), Hypercall)
    board.vcpus[0].complete_hypercall(-1000)
    board.run()
    assert board.value("rax") == (1 << 64) - 1000


def test_two_hypercalls_in_a_row_are_two(board: Board) -> None:
    board.load(0, VMMCALL + inc("rcx") + VMMCALL + HLT, rax=12, rbx=0x8000, rcx=1)
    assert board.run() == Hypercall(12, (0x8000, 1, 0, 0))
    board.vcpus[0].complete_hypercall(12)
    assert board.run() == Hypercall(12, (0x8000, 2, 0, 0))
    board.vcpus[0].complete_hypercall(3)
    assert board.run() == Halt()
    assert board.value("rax") == 3


def test_registers_between_a_hypercall_and_the_next_run_are_those_behind_it(board: Board) -> None:
    """A guest may be moved there."""
    board.load(0, VMMCALL + HLT, rax=12, rbx=0x8000, rcx=1)
    assert isinstance(board.run(), Hypercall)
    board.vcpus[0].complete_hypercall(7)
    assert (board.value("rax"), board.vcpus[0].registers().rip) == (7, CODE + len(VMMCALL))


# --- what the guest cannot go on after ----------------------------------------------------------------------------


def test_an_invalid_instruction_is_a_fault_at_its_place(board: Board) -> None:
    outcome = board.execute(inc("rax") + UD2 + HLT)
    assert isinstance(outcome, Fault)
    if board.kind.exact:
        assert outcome.rip == CODE + len(inc("rax"))
        assert "invalid instruction" in outcome.reason


@pytest.mark.parametrize(
    ("code", "vector"),
    [(b"\xcc", 3), (b"\x48\x31\xc9\x48\xf7\xf1", 0), (b"\xcd\x80", 128)],
    ids=["int3", "division by zero", "int 0x80"],
)
def test_an_exception_without_a_handler_is_a_fault(board: Board, code: bytes, vector: int) -> None:
    outcome = board.execute(code + HLT)
    assert isinstance(outcome, Fault)
    assert (f"exception {vector}" if board.kind.exact else "triple fault") in outcome.reason
