"""A vCPU whose registers are encrypted: what leaves it, what comes back, and what never does."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealift.address import PAGE_SIZE
from sealift.errors import GuestError, RefusedError, StreamError
from sealift.sev.ghcb import BUFFER_OFFSET, GHCB_MSR, SEV_STATUS_MSR, ExitCode, Ghcb, Refusal
from sealift.sev.vmsa import CPU_SIGNATURES, RESET_EIP, FpuProfile, Vmsa, reset_vmsa
from sealift.silicon.engines.interface import Hypercall
from sealift.wire.platform import Fault, Halt, Interrupted, MmioRead, MmioWrite, PortIn, PortOut

from .board import CODE, OTHER, Ports
from .code import CPUID, HLT, RDMSR, UD2, VMMCALL, WRMSR, forever, inc, mov, port_in, port_out
from .es_board import BOOT_CS, GHCB, HANDLER, STACK, VMGEXIT, EsBoard, by_msr, write_msr

FULL = 0x1122_3344_5566_7788
PLANTED = 0x5EA1_1F7C_0DE0_F00D


@pytest.fixture
def board() -> Iterator[EsBoard]:
    with contextlib.closing(EsBoard()) as made:
        yield made


@pytest.fixture
def there() -> Iterator[EsBoard]:
    """Another guest, into which a vCPU is moved."""
    with contextlib.closing(EsBoard()) as made:
        yield made


# --- #VC ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instruction", "code"),
    [
        (port_in(1), ExitCode.IOIO),
        (port_in(4), ExitCode.IOIO),
        (port_out(2), ExitCode.IOIO),
        (CPUID, ExitCode.CPUID),
        (VMMCALL, ExitCode.VMMCALL),
        (RDMSR, ExitCode.MSR),
        (WRMSR, ExitCode.MSR),
    ],
)
def test_what_would_show_registers_enters_the_guests_own_handler(
    board: EsBoard, instruction: bytes, code: ExitCode
) -> None:
    """As a fault: the instruction has done nothing, and the frame leads back to it."""
    board.handle(29, HLT)
    start = inc("rbx")
    ports = Ports([0xFF])
    board.load(0, start + instruction + HLT, rax=FULL, rcx=0x1B, rdx=0x3F8, rsp=STACK - 4, rflags=0x202)
    assert board.run(0, ports) == Halt()
    assert ports.asked == []
    vmsa = board.vmsa()
    assert vmsa.rip == HANDLER + len(HLT)
    assert (vmsa.rax, vmsa.rbx, vmsa.rcx, vmsa.rdx) == (FULL, 1, 0x1B, 0x3F8)
    assert vmsa.rflags & 0x200 == 0, "an interrupt gate keeps interrupts out"
    assert vmsa.rsp == STACK - 16 - 48, "the frame lies below the aligned stack"
    frame = struct.unpack("<6Q", board.memory.private.data[vmsa.rsp : vmsa.rsp + 48])
    error, rip, cs, flags, rsp, _ = frame
    assert (error, rip, cs) == (code, CODE + len(start), BOOT_CS)
    assert (flags & 0x200, rsp) == (0x200, STACK - 4)


def test_a_handler_leads_back_behind_the_instruction(board: EsBoard) -> None:
    """It adds 2 to the frame's rip, drops the error code, and returns."""
    board.poke(OTHER + BOOT_CS, 0x00AF_9B00_0000_FFFF)
    board.poke(OTHER + 0x18, 0x00CF_9300_0000_FFFF)
    back = b"\x48\x83\xc4\x08" + b"\x48\x83\x04\x24\x02" + b"\x48\xcf"  # add rsp, 8; add qword [rsp], 2; iretq
    board.handle(29, inc("r9") + back)
    board.load(0, (CPUID + inc("rbx")) * 3 + HLT)
    page = board.vmsa()
    page.gdtr.base, page.gdtr.limit = OTHER, 0x1F
    board.memory.place_vmsa(0, bytes(page))
    assert board.run() == Halt()
    assert (board.value("rbx"), board.value("r9"), board.value("rsp")) == (3, 3, STACK)


def test_the_frame_is_written_to_private_memory_and_logged(board: EsBoard) -> None:
    board.handle(29, HLT)
    board.load(0, CPUID)
    board.logged()
    board.run()
    encrypted, plain = board.logged()
    assert (STACK - 1) & -PAGE_SIZE in encrypted
    assert not plain
    assert not any(board.memory.shared.data[STACK - 48 : STACK])


@pytest.mark.parametrize(
    "gate",
    [{"kind": 0}, {"kind": 0x8C}, {"selector": 8}, {"ist": 1}],
    ids=["none", "call gate", "another segment", "another stack"],
)
def test_a_guest_without_a_handler_shuts_down_and_says_nothing_of_itself(board: EsBoard, gate: dict[str, int]) -> None:
    board.handle(29, HLT, **gate)
    assert_shut_down(board, CPUID)


def test_no_stack_is_a_shutdown_too(board: EsBoard) -> None:
    board.handle(29, HLT)
    assert_shut_down(board, CPUID, rsp=1 << 40)


@pytest.mark.parametrize("code", [UD2, b"\xcc", mov("rbx", PLANTED) + b"\x48\x8b\x03"], ids=["ud2", "int3", "no page"])
def test_any_other_exception_is_a_shutdown(board: EsBoard, code: bytes) -> None:
    assert_shut_down(board, code)


def assert_shut_down(board: EsBoard, code: bytes, **general: int) -> None:
    outcome = board.execute(code, None, **{"rax": PLANTED, **general})
    assert outcome == Fault(
        "the guest shut down; what it was doing stays its own, since its registers are encrypted", 0, 0, 0
    )


def test_hlt_leaves_by_itself(board: EsBoard) -> None:
    board.load(0, inc("rax") + HLT + inc("rax") + HLT)
    assert (board.run(), board.value("rax")) == (Halt(), 1)
    assert (board.run(), board.value("rax")) == (Halt(), 2)


# --- MSRs ---------------------------------------------------------------------------------------------------------


def read_msr(board: EsBoard, number: int) -> int:
    board.load(0, mov("rcx", number) + RDMSR + HLT, rax=FULL, rdx=FULL)
    assert board.run() == Halt()
    return board.value("rdx") << 32 | board.value("rax")


def test_sev_status_says_sev_and_sev_es(board: EsBoard) -> None:
    assert read_msr(board, SEV_STATUS_MSR) == 0b11


def test_the_ghcb_msr_keeps_what_is_written_to_it(board: EsBoard) -> None:
    board.load(0, write_msr(GHCB_MSR, FULL & -PAGE_SIZE) + mov("rcx", GHCB_MSR) + RDMSR + HLT)
    board.run()
    assert board.value("rdx") << 32 | board.value("rax") == FULL & -PAGE_SIZE


@pytest.mark.parametrize("number", [0xC000_0081, 0xC000_0082, 0xC000_0100, 0xC000_0102, 0x277])
def test_msrs_of_the_vcpu_are_reached_without_an_exit(board: EsBoard, number: int) -> None:
    value = 0x0007_0406_0007_0406 if number == 0x277 else 0x1234_5678
    board.load(0, write_msr(number, value) + mov("rcx", number) + RDMSR + HLT)
    assert board.run() == Halt()
    assert board.value("rdx") << 32 | board.value("rax") == value


# --- VMGEXIT by MSR -----------------------------------------------------------------------------------------------


def asked_by_msr(board: EsBoard, value: int) -> int:
    board.load(0, by_msr(value) + RDMSR + HLT)
    assert board.run() == Halt()
    return board.value("rdx") << 32 | board.value("rax")


def test_versions_and_c_bit_by_msr(board: EsBoard) -> None:
    assert asked_by_msr(board, 0x002) == 2 << 48 | 1 << 32 | board.engine.cbit << 24 | 0x001
    assert asked_by_msr(board, 0x080) == 0x081


def test_cpuid_by_msr_says_sev_es(board: EsBoard) -> None:
    eax, ebx = (asked_by_msr(board, 0x8000_001F << 32 | number << 30 | 0x004) >> 32 for number in (0, 1))
    assert eax & 0b1111 == 0b1010, "SEV and SEV-ES"
    assert ebx & 0x3F == board.engine.cbit


@pytest.mark.parametrize(("operation", "attributes"), [(1, 0x10), (2, 0)], ids=["private", "shared"])
@pytest.mark.parametrize(("result", "response"), [(0, 0x015), (-12, 0xC_0000_0015)], ids=["done", "refused"])
def test_a_page_state_change_by_msr_is_the_hypercall(
    board: EsBoard, operation: int, attributes: int, result: int, response: int
) -> None:
    board.load(0, by_msr(operation << 52 | OTHER | 0x014) + RDMSR + HLT)
    assert board.run() == Hypercall(12, (OTHER, 1, attributes, 0))
    board.vcpu.complete_hypercall(result)
    assert board.run() == Halt()
    assert board.value("rdx") << 32 | board.value("rax") == response


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0x0003_2100, r"asked for its end .*2:3"),
        (0x006, "not known"),
        (0xFFF, "not known"),
        (0x0F0_0000_0000_0014, "not known"),
    ],
)
def test_what_ends_a_guest_by_msr_ends_it_with_a_sentence(board: EsBoard, value: int, words: str) -> None:
    board.load(0, by_msr(value) + HLT)
    outcome = board.run()
    assert isinstance(outcome, Fault)
    assert re.search(words, outcome.reason)
    assert (outcome.rip, outcome.address, outcome.error_code) == (0, 0, 0)


# --- VMGEXIT by page ----------------------------------------------------------------------------------------------


def ghcb(code: int, info1: int = 0, info2: int = 0, **fields: int) -> Ghcb:
    page = Ghcb(protocol_version=2)
    for name, value in {"sw_exitcode": code, "sw_exitinfo1": info1, "sw_exitinfo2": info2, **fields}.items():
        page.put(name, value)
    return page


def exchanged(board: EsBoard, page: Ghcb, ports: Ports | None = None) -> Ghcb:
    """VMGEXIT with that page, up to the HLT behind it."""
    board.ask(page)
    board.load(0, by_msr(GHCB) + HLT)
    assert board.run(0, ports) == Halt()
    return board.answer()


def test_port_output_leaves_as_it_does_without_es(board: EsBoard) -> None:
    ports = Ports()
    answer = exchanged(board, ghcb(ExitCode.IOIO, 0x3F8_0010, rax=0x41), ports)
    assert ports.asked == [PortOut(0x3F8, 1, 0x41)]
    assert answer.valid("sw_exitinfo1")
    assert answer.sw_exitinfo1 == 0


def test_port_input_brings_no_more_than_its_size(board: EsBoard) -> None:
    ports = Ports([FULL])
    answer = exchanged(board, ghcb(ExitCode.IOIO, 0x3FD_0021), ports)
    assert ports.asked == [PortIn(0x3FD, 2)]
    assert (answer.valid("rax"), answer.rax) == (True, FULL & 0xFFFF)


def test_device_memory_is_read_and_written_through_the_shared_buffer(board: EsBoard) -> None:
    where = {"sw_scratch": GHCB + BUFFER_OFFSET}
    ports = Ports([FULL])
    answer = exchanged(board, ghcb(ExitCode.MMIO_READ, 0xD000_0000, 4, **where), ports)
    assert bytes(answer.shared_buffer)[:5] == (FULL & 0xFFFF_FFFF).to_bytes(5, "little")
    page = ghcb(ExitCode.MMIO_WRITE, 0xD000_0008, 2, **where)
    page.shared_buffer[0], page.shared_buffer[1] = 0xCD, 0xAB
    exchanged(board, page, ports)
    assert ports.asked == [MmioRead(0xD000_0000, 4), MmioWrite(0xD000_0008, 2, 0xABCD)]


def test_ram_is_no_device_memory(board: EsBoard) -> None:
    answer = exchanged(board, ghcb(ExitCode.MMIO_READ, OTHER, 4, sw_scratch=GHCB + BUFFER_OFFSET))
    assert (answer.sw_exitinfo1, answer.sw_exitinfo2) == (2, Refusal.INVALID_INPUT)


def test_cpuid_by_page(board: EsBoard) -> None:
    answer = exchanged(board, ghcb(ExitCode.CPUID, rax=0x8000_001F, rcx=0))
    assert answer.valid("rax", "rbx", "rcx", "rdx")
    assert answer.rax & 0b1111 == 0b1010


def test_an_msr_that_is_not_the_vcpus_own_is_a_protection_fault(board: EsBoard) -> None:
    answer = exchanged(board, ghcb(ExitCode.MSR, rcx=0x1B))
    assert (answer.sw_exitinfo1, answer.sw_exitinfo2) == (1, 0x8000_0B0D)


def test_a_hypercall_takes_its_result_through_the_page(board: EsBoard) -> None:
    board.ask(ghcb(ExitCode.VMMCALL, rax=9, cpl=0, rbx=OTHER, rcx=1, rdx=16))
    board.load(0, by_msr(GHCB) + HLT, rax=FULL)
    assert board.run() == Hypercall(9, (OTHER, 1, 16, 0))
    board.vcpu.complete_hypercall(-22)
    assert board.run() == Halt()
    assert board.answer().rax == (1 << 64) - 22
    assert board.value("rax") == GHCB, "the register is the guest's own"


@pytest.mark.attack("page states", "changes page states through a GHCB that it wrote", gains="nothing")
def test_nobody_changes_page_states_by_a_page_that_a_vmm_can_write_to(board: EsBoard) -> None:
    answer = exchanged(board, ghcb(ExitCode.VMMCALL, rax=12, cpl=0, rbx=OTHER, rcx=1, rdx=0))
    assert answer.rax == (1 << 64) - 1
    assert OTHER // PAGE_SIZE not in board.memory.states


def test_what_is_malformed_is_answered_and_the_guest_goes_on(board: EsBoard) -> None:
    page = ghcb(ExitCode.IOIO, 0x3F8_0010)
    answer = exchanged(board, page)
    assert (answer.sw_exitinfo1, answer.sw_exitinfo2) == (2, Refusal.MISSING_INPUT)


@pytest.mark.parametrize("gpa", [OTHER, 1 << 40, 0], ids=["private", "no RAM", "never set"])
def test_a_ghcb_that_is_no_shared_page_ends_the_guest_and_is_not_read(board: EsBoard, gpa: int) -> None:
    board.load(0, (by_msr(gpa) if gpa else VMGEXIT) + HLT)
    assert board.run() == Fault("the guest's GHCB is no shared page of its memory", 0, 0, 0)


def test_an_answer_is_a_write_that_a_migration_brings_along(board: EsBoard) -> None:
    board.ask(ghcb(ExitCode.IOIO, 0x3FD_0011))
    board.memory.take_shared_dirty()
    board.load(0, by_msr(GHCB) + HLT)
    board.run(0, Ports([5]))
    assert GHCB // PAGE_SIZE in board.memory.take_shared_dirty()


def test_a_page_that_is_taken_back_meanwhile_is_not_written(board: EsBoard) -> None:
    board.ask(ghcb(ExitCode.IOIO, 0x3FD_0011))
    before: list[bytes] = []

    def take_back() -> None:
        board.hide(GHCB)
        before.append(bytes(board.memory.private.data[GHCB : GHCB + PAGE_SIZE]))

    board.load(0, by_msr(GHCB) + HLT)
    assert board.run(0, Ports([5], during=take_back)) == Halt()
    assert bytes(board.memory.private.data[GHCB : GHCB + PAGE_SIZE]) == before[0]


@pytest.mark.attack("memory under way", "writes rubbish into a GHCB at any time", gains="denial of service")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.binary(min_size=8, max_size=64), code=st.sampled_from([*ExitCode, 0x42]), scratch=st.integers(0, PAGE_SIZE)
)
def test_rubbish_that_a_vmm_writes_to_the_page_harms_nobody_else(seed: bytes, code: int, scratch: int) -> None:
    """Before a request and in its middle: the guest gets some answer, and private memory stays as it was."""
    with contextlib.closing(EsBoard()) as board:
        scribbled_over(board, seed, code, scratch)


def scribbled_over(board: EsBoard, seed: bytes, code: int, scratch: int) -> None:
    page = Ghcb.from_buffer_copy((seed * PAGE_SIZE)[:PAGE_SIZE])
    page.protocol_version, page.ghcb_usage = 2, 0
    page.put("sw_exitcode", code)
    page.put("sw_scratch", GHCB + scratch)
    board.ask(page)
    board.load(0, by_msr(GHCB) + HLT)
    before = bytes(board.memory.private.data[GHCB:])

    def scribble() -> None:
        board.memory.shared.data[GHCB : GHCB + PAGE_SIZE] = b"\xff" * PAGE_SIZE

    outcome = board.run(0, Ports([(1 << 64) - 1], during=scribble))
    if isinstance(outcome, Hypercall):
        board.vcpu.complete_hypercall(-1000)
        outcome = board.run()
    assert outcome == Halt()
    assert board.answer().valid("sw_exitinfo1", "sw_exitinfo2")
    assert bytes(board.memory.private.data[GHCB:]) == before


# --- registers ----------------------------------------------------------------------------------------------------


def test_registers_can_be_neither_had_nor_given(board: EsBoard) -> None:
    with pytest.raises(RefusedError, match="encrypted"):
        board.vcpu.registers()
    with pytest.raises(RefusedError, match="LAUNCH_UPDATE_VMSA"):
        board.vcpu.set_registers(board.registers(CODE))


def test_a_vcpu_without_a_vmsa_waits(board: EsBoard) -> None:
    assert board.run() == Halt()
    assert board.memory.vmsa(0) is None


def test_the_vmsa_holds_the_registers_whenever_the_vcpu_is_out(board: EsBoard) -> None:
    code = mov("rbx", PLANTED) + mov("r15", 15) + b"\xf3\x48\x0f\x2a\xc3" + b"\xd9\xe8" + HLT  # cvtsi2ss; fld1
    board.load(0, code)
    first = board.vmsa()
    assert board.run() == Halt()
    vmsa = board.vmsa()
    assert (vmsa.rbx, vmsa.r15, vmsa.rip) == (PLANTED, 15, CODE + len(code))
    assert any(vmsa.fpreg_xmm)
    assert any(vmsa.fpreg_x87)
    assert (vmsa.efer, vmsa.cr4, vmsa.g_pat, vmsa.dr6) == (first.efer, first.cr4, first.g_pat, first.dr6)


def test_an_unchanged_vcpu_has_an_unchanged_vmsa(board: EsBoard) -> None:
    """What is not emulated stays as it was loaded, and what is comes back as it went in."""
    board.load(0, HLT)
    page = board.vmsa()
    page.xcr0, page.sev_features, page.tsc_aux = 7, 0x20, 3
    page.fs.base, page.gs.base, page.kernel_gs_base = 0x7000, 0x8000, 0x9000
    page.star, page.lstar, page.cr2 = 1 << 40, 2 << 40, 0x1234
    page.fpreg_xmm[5], page.fpreg_x87[3] = 5, 3
    page.x87_ftw = 0x5556  # the first is special, the others are zeros: Unicorn derives tags from contents
    board.memory.place_vmsa(0, bytes(page))
    assert board.run() == Halt()
    page.rip += len(HLT)
    assert bytes(board.vmsa()) == bytes(page)


def test_whoever_changes_the_vmsa_changes_the_vcpu(board: EsBoard) -> None:
    """RECEIVE_UPDATE_VMSA does."""
    board.load(0, inc("rbx") + HLT)
    board.run()
    board.load(0, inc("rbx") + HLT, rbx=100)
    assert board.run() == Halt()
    assert board.value("rbx") == 101


@pytest.mark.parametrize(
    "page",
    [reset_vmsa(RESET_EIP, CPU_SIGNATURES["EPYC"], FpuProfile.LEGACY), bytes(PAGE_SIZE)],
    ids=["reset", "zeros"],
)
def test_a_mode_this_engine_does_not_run_ends_the_guest_with_a_sentence(board: EsBoard, page: bytes) -> None:
    board.memory.place_vmsa(0, page)
    outcome = board.run()
    assert isinstance(outcome, Fault)
    assert "64-bit mode" in outcome.reason


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.integers(0, 0x66F), st.integers(0, 255), max_size=40))
def test_any_page_that_a_vmm_supplies_is_entered_or_refused_with_a_sentence(
    board: EsBoard, changes: dict[int, int]
) -> None:
    """Entered, and left again at once, since it was kicked."""
    page = bytearray(board.vmsa_for(CODE))
    for at, value in changes.items():
        page[at] = value
    board.memory.place_vmsa(0, bytes(page))
    board.vcpu.kick()
    match board.run():
        case Interrupted():
            assert len(bytes(board.vmsa())) == PAGE_SIZE
        case Fault(reason, 0, 0, 0):
            assert "VMSA" in reason
        case other:
            pytest.fail(f"a vCPU that was kicked left with {other}")


def test_a_vcpu_goes_on_elsewhere_where_it_was(board: EsBoard, there: EsBoard) -> None:
    board.load(0, by_msr(GHCB) + inc("rbx") + HLT + inc("rbx") + mov("rcx", GHCB_MSR) + RDMSR + HLT)
    board.ask(ghcb(ExitCode.CPUID, rax=1, rcx=0))
    assert board.run() == Halt()
    there.memory.private.data[:] = board.memory.private.data
    there.vcpu.restore(board.vcpu.save())
    assert there.run() == Halt()
    assert (there.value("rbx"), there.value("rax")) == (2, GHCB)


def test_a_vcpu_that_never_started_does_not_start_elsewhere(board: EsBoard, there: EsBoard) -> None:
    """Also where a receiver's own had started."""
    there.load(0, inc("rbx") + HLT)
    there.vcpu.restore(board.vcpu.save())
    assert there.run() == Halt()
    assert there.memory.vmsa(0) is None


def test_state_that_does_not_fit_is_refused(board: EsBoard, there: EsBoard) -> None:
    board.load(0, HLT)
    board.run()
    good = msgspec.msgpack.decode(board.vcpu.save())
    other = msgspec.msgpack.encode
    for wrong in (
        {**good, "version": 2},
        {**good, "ghcb": -1},
        {**good, "vmsa": good["vmsa"][:-1]},
        {**good, "vmsa": bytes(PAGE_SIZE)},
        {"version": 1},
    ):
        with pytest.raises(StreamError):
            there.vcpu.restore(other(wrong))
    there.vcpu.restore(other(good))


def test_segments_that_this_engine_could_not_load_again_are_not_moved(board: EsBoard) -> None:
    page = Vmsa.from_buffer_copy(board.vmsa_for(CODE))
    page.fs.selector = 0x18
    board.memory.place_vmsa(0, bytes(page))
    with pytest.raises(GuestError, match="flat segments"):
        board.vcpu.save()


def test_a_kick_ends_a_loop_and_the_registers_are_put_away(board: EsBoard) -> None:
    board.load(0, forever(inc("rbx")))
    board.vcpu.kick()
    board.run()
    board.vcpu.kick()
    board.run()
    assert board.value("rip") in range(CODE, CODE + PAGE_SIZE)
