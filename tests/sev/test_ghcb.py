"""The GHCB protocol's end in the platform: what a page or an MSR asks for, and that nothing malformed gets through."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sealift.address import PAGE_SIZE
from sealift.sev import ghcb
from sealift.sev.ghcb import BUFFER_OFFSET, BUFFER_SIZE, ExitCode, Ghcb, Refusal

GPA = 0x12_3000
MASK_64 = (1 << 64) - 1

OFFSETS = {
    "cpl": 0xCB,
    "rax": 0x1F8,
    "rcx": 0x308,
    "rdx": 0x310,
    "rbx": 0x318,
    "rsi": 0x330,
    "sw_exitcode": 0x390,
    "sw_exitinfo1": 0x398,
    "sw_exitinfo2": 0x3A0,
    "sw_scratch": 0x3A8,
    "xcr0": 0x3E8,
    "valid_bitmap": 0x3F0,
    "shared_buffer": 0x800,
    "protocol_version": 0xFFA,
    "ghcb_usage": 0xFFC,
}


def request(code: int, info1: int = 0, info2: int = 0, **fields: int) -> Ghcb:
    """A page that asks for something."""
    page = Ghcb(protocol_version=2)
    for name, value in {"sw_exitcode": code, "sw_exitinfo1": info1, "sw_exitinfo2": info2, **fields}.items():
        page.put(name, value)
    return page


def without(page: Ghcb, name: str) -> Ghcb:
    """The same with a field that is not valid."""
    copy = Ghcb.from_buffer_copy(page)
    word = OFFSETS[name] // 8
    copy.valid_bitmap[word // 8] &= ~(1 << word % 8)
    return copy


@pytest.mark.parametrize(("field", "offset"), OFFSETS.items())
def test_fields_lie_where_guests_have_them(field: str, offset: int) -> None:
    assert getattr(Ghcb, field).offset == offset


def test_the_valid_bitmap_has_a_bit_for_each_8_bytes() -> None:
    page = Ghcb()
    page.put("rax", 7)
    assert bytes(page)[0x3F0:0x400] == (1 << 0x1F8 // 8).to_bytes(16, "little")
    assert page.valid("rax")
    assert not page.valid("rax", "rcx")
    assert (page.read("rax"), page.read("rcx")) == (7, 0)


GOOD = [
    (request(ExitCode.CPUID, rax=0x8000_001F, rcx=0), ghcb.CpuidExit(0x8000_001F, 0), ("rax", "rcx")),
    (request(ExitCode.CPUID, rax=0xD, rcx=1, xcr0=1), ghcb.CpuidExit(0xD, 1), ("rax", "rcx", "xcr0")),
    (request(ExitCode.IOIO, 0x3F8_0010, rax=0x1141), ghcb.PortExit(0x3F8, 1, 0x41), ("rax",)),
    (request(ExitCode.IOIO, 0x5EA0_0040, rax=MASK_64), ghcb.PortExit(0x5EA0, 4, 0xFFFF_FFFF), ("rax",)),
    (request(ExitCode.IOIO, 0x3FD_0021), ghcb.PortExit(0x3FD, 2, None), ()),
    (request(ExitCode.MSR, rcx=0x1B), ghcb.MsrExit(0x1B, None), ("rcx",)),
    (request(ExitCode.MSR, 1, rcx=0x1B, rax=5, rdx=6), ghcb.MsrExit(0x1B, 6 << 32 | 5), ("rcx", "rax", "rdx")),
    (
        request(ExitCode.VMMCALL, rax=12, cpl=0, rbx=1, rcx=2, rdx=3, rsi=4),
        ghcb.HypercallExit(12, (1, 2, 3, 4)),
        ("rax", "cpl"),
    ),
    (
        request(ExitCode.MMIO_READ, 0xD000_0000, 4, sw_scratch=GPA + BUFFER_OFFSET),
        ghcb.MmioExit(0xD000_0000, 4, BUFFER_OFFSET, None),
        ("sw_scratch",),
    ),
    (
        request(ExitCode.MMIO_WRITE, 0xD000_0000, 8, sw_scratch=GPA + BUFFER_OFFSET + BUFFER_SIZE - 8),
        ghcb.MmioExit(0xD000_0000, 8, BUFFER_OFFSET + BUFFER_SIZE - 8, 0),
        ("sw_scratch",),
    ),
]


@pytest.mark.parametrize(("page", "meant", "needed"), GOOD)
def test_a_request_is_taken_as_it_is_meant_and_only_if_nothing_lacks(
    page: Ghcb, meant: object, needed: tuple[str, ...]
) -> None:
    assert ghcb.decode(page, GPA) == meant
    for name in ("sw_exitcode", "sw_exitinfo1", "sw_exitinfo2", *needed):
        assert ghcb.decode(without(page, name), GPA) is Refusal.MISSING_INPUT, name


BAD = [
    (Ghcb(protocol_version=0), Refusal.INVALID_USAGE),
    (Ghcb(protocol_version=3), Refusal.INVALID_USAGE),
    (Ghcb(protocol_version=2, ghcb_usage=1), Refusal.INVALID_USAGE),
    (request(0x8000_FFFF), Refusal.INVALID_EVENT),
    (request(ExitCode.IOIO, 0x3F8_0000, rax=0), Refusal.INVALID_INPUT),  # no size
    (request(ExitCode.IOIO, 0x3F8_0030, rax=0), Refusal.INVALID_INPUT),  # two sizes
    (request(ExitCode.IOIO, 0x3F8_0014, rax=0), Refusal.INVALID_INPUT),  # a string
    (request(ExitCode.IOIO, 0x3F8_0018, rax=0), Refusal.INVALID_INPUT),  # repeated
    (request(ExitCode.IOIO, 0x3F8_0012, rax=0), Refusal.INVALID_INPUT),  # reserved bits
    (request(ExitCode.IOIO, 1 << 32 | 0x3F8_0010, rax=0), Refusal.INVALID_INPUT),
    (request(ExitCode.MSR, 2, rcx=0), Refusal.INVALID_INPUT),
    (request(ExitCode.VMMCALL, rax=12, cpl=3), Refusal.INVALID_INPUT),
    (request(ExitCode.MMIO_READ, 0, 3, sw_scratch=GPA + BUFFER_OFFSET), Refusal.INVALID_INPUT),
    (request(ExitCode.MMIO_READ, 0, 4, sw_scratch=GPA + BUFFER_OFFSET - 1), Refusal.INVALID_SCRATCH_AREA),
    (
        request(ExitCode.MMIO_READ, 0, 4, sw_scratch=GPA + BUFFER_OFFSET + BUFFER_SIZE - 3),
        Refusal.INVALID_SCRATCH_AREA,
    ),
    (request(ExitCode.MMIO_READ, 0, 4, sw_scratch=MASK_64), Refusal.INVALID_SCRATCH_AREA),
    (request(ExitCode.MMIO_READ, 0, 4, sw_scratch=0), Refusal.INVALID_SCRATCH_AREA),
]


@pytest.mark.parametrize(("page", "reason"), BAD)
def test_what_is_malformed_is_refused_for_its_reason(page: Ghcb, reason: Refusal) -> None:
    assert ghcb.decode(page, GPA) is reason


def test_data_for_mmio_comes_from_the_shared_buffer() -> None:
    page = request(ExitCode.MMIO_WRITE, 0xD000_0000, 2, sw_scratch=GPA + BUFFER_OFFSET + 6)
    page.shared_buffer[6], page.shared_buffer[7], page.shared_buffer[8] = 0x34, 0x12, 0xFF
    assert ghcb.decode(page, GPA) == ghcb.MmioExit(0xD000_0000, 2, BUFFER_OFFSET + 6, 0x1234)


@given(data=st.binary(max_size=PAGE_SIZE), code=st.sampled_from([*ExitCode, 0, MASK_64]), valid=st.booleans())
@example(data=b"\xff" * PAGE_SIZE, code=ExitCode.MMIO_WRITE, valid=True)
def test_any_page_at_all_is_a_request_or_refused(data: bytes, code: int, *, valid: bool) -> None:
    page = Ghcb.from_buffer_copy(data.ljust(PAGE_SIZE, b"\0"))
    page.protocol_version, page.ghcb_usage, page.sw_exitcode = 2, 0, code
    if valid:
        page.valid_bitmap = (type(page.valid_bitmap))(*[0xFF] * 16)
    match ghcb.decode(page, GPA):
        case ghcb.PortExit(port, size, value):
            assert port < 1 << 16
            assert size in (1, 2, 4)
            assert value is None or value < 1 << 8 * size
        case ghcb.MmioExit(_, size, buffer, value):
            assert BUFFER_OFFSET <= buffer <= buffer + size <= BUFFER_OFFSET + BUFFER_SIZE
            assert value is None or value < 1 << 8 * size
        case other:
            assert isinstance(other, ghcb.CpuidExit | ghcb.MsrExit | ghcb.HypercallExit | Refusal)


def test_an_answer_marks_nothing_but_what_it_brings() -> None:
    page = request(ExitCode.CPUID, rax=1, rcx=2, rdx=3)
    ghcb.answer(page, rax=-1)
    assert page.valid("sw_exitinfo1", "sw_exitinfo2", "rax")
    assert not any(page.valid(name) for name in ("rcx", "rdx", "sw_exitcode"))
    assert (page.sw_exitinfo1, page.rax) == (0, MASK_64)
    ghcb.refuse(page, Refusal.MISSING_INPUT)
    assert not page.valid("rax")
    assert (page.sw_exitinfo1, page.sw_exitinfo2) == (2, 4)
    ghcb.raise_protection(page)
    assert (page.sw_exitinfo1, page.sw_exitinfo2) == (1, 0x8000_0B0D)


def test_requests_by_msr_and_their_responses() -> None:
    assert ghcb.msr_request(0x002) == ghcb.SevInfoRequest()
    assert ghcb.sev_info_response(47) == 0x0002_0001_2F00_0001
    assert ghcb.msr_request(0x8000_001F_4000_0004) == ghcb.CpuidRequest(0x8000_001F, 1)
    assert ghcb.cpuid_response(0xABCD) == 0xABCD_0000_0005
    assert ghcb.msr_request(0x0020_0000_0012_3014) == ghcb.PageStateRequest(0x12_3000, private=False)
    assert ghcb.msr_request(0x0010_0000_0012_3014) == ghcb.PageStateRequest(0x12_3000, private=True)
    assert ghcb.msr_request(0x0030_0000_0012_3014) is None
    assert (ghcb.page_state_response(0), ghcb.page_state_response(1)) == (0x015, 0x1_0000_0015)
    assert ghcb.msr_request(0x080) == ghcb.FeaturesRequest()
    assert ghcb.features_response() == 0x081
    assert ghcb.msr_request(0x0002_1100) == ghcb.TerminationRequest(1, 2)


@given(st.integers(0, MASK_64))
def test_any_msr_value_is_a_known_request_or_none(value: int) -> None:
    known = ghcb.msr_request(value)
    assert known is None or value & 0xFFF in {0x002, 0x004, 0x014, 0x080, 0x100}
