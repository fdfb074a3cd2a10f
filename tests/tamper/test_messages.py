"""Connections cut into messages: every byte once, in order, whatever it is and however it comes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import SealError
from sealift.tamper.messages import (
    BYTES,
    FRAME_NAMES,
    INQUIRY_NAMES,
    KINDS,
    PSP_NAMES,
    RECORD_NAMES,
    SEALED_NAMES,
    Side,
    Splitter,
)
from sealift.wire import inquiry, psp, record
from sealift.wire.handover import TAKEN, Frame, FrameKind, Refusal, SealedKind
from sealift.wire.inquiry import InquiryFrame, InquiryKind
from sealift.wire.qemu_stream import (
    END_OF_RAM_PART,
    PAGE_ENTRY,
    RAM,
    RAM_VERSION,
    SEALED,
    SEALED_VERSION,
    ZERO_ENTRY,
    RamFlag,
    Section,
    SectionType,
    encode_block_list,
    encode_description,
    encode_first,
    encode_front,
    encode_piece,
    encode_state,
)
from sealift.wire.side_connection import END, SideFront, encode_length
from sealift.wire.token import TOKEN_SIZE

LAYOUT = RamLayout((RamBlock("pc.ram", Gpa(0), 1 << 20),))


def sealed(kind: record.RecordKind, pages: int = 0, length: int = 0) -> bytes:
    """A record of noise."""
    header = record.RecordHeader(kind, 1, 0, 1, 0, bytes(16), pages, length)
    return header.encode() + os.urandom(header.size - record.HEADER_SIZE)


def ram(zeros: int, pages: int) -> bytes:
    """A part of `ram`: pages of zeros, then pages of noise."""
    empty = np.zeros(zeros, ZERO_ENTRY)
    empty["header"] = RamFlag.ZERO | RamFlag.CONTINUE
    full = np.zeros(pages, PAGE_ENTRY)
    full["header"] = RamFlag.PAGE | RamFlag.CONTINUE
    full["page"] = np.frombuffer(os.urandom(pages * PAGE_SIZE), np.uint64).reshape(pages, -1)
    first = encode_first("pc.ram", 4096, RamFlag.PAGE) + os.urandom(PAGE_SIZE)
    return first + empty.tobytes() + full.tobytes() + END_OF_RAM_PART


def section(section: Section, content: bytes) -> bytes:
    return section.encode() + content + section.footer()


def piece(kind: SealedKind, content: bytes, number: int = 1) -> bytes:
    return section(
        Section(SectionType.START, number, SEALED, number, SEALED_VERSION), encode_piece(kind, len(content)) + content
    )


def stream() -> list[tuple[str, bytes, bytes]]:
    """Names, messages and contents of a whole source's side."""
    blocks, pages, state = encode_block_list(LAYOUT), ram(30, 12), encode_state(b"serial port")
    end = bytes([SectionType.EOF]) + encode_description([])
    contents = {
        "record": sealed(record.RecordKind.PAGES, 3, 3 * PAGE_SIZE),
        "epoch": sealed(record.RecordKind.EPOCH),
        "state": sealed(record.RecordKind.STATE, length=100),
        "close": sealed(record.RecordKind.CLOSE, length=40),
        "vcpu": psp.RecordFront(psp.RecordKind.VCPU, 0).encode() + b"registers",
    }
    return [
        ("front", encode_front(), encode_front()),
        ("blocks", section(Section(SectionType.START, 0, RAM, 0, RAM_VERSION), blocks), blocks),
        ("hello", piece(SealedKind.HELLO, b"hello"), b"hello"),
        ("confirm", piece(SealedKind.CONFIRM, b"confirm"), b"confirm"),
        *((name, piece(SealedKind.RECORD, content), content) for name, content in contents.items()),
        ("ram", section(Section(SectionType.PART, 0), pages), pages),
        ("device", section(Section(SectionType.FULL, 9, "serial", 0, 1), state), b"serial port"),
        ("description", end, end),
        ("final", Frame(FrameKind.FINAL, bytes(TOKEN_SIZE)).encode(), bytes(TOKEN_SIZE)),
        ("taken", TAKEN.encode(), b""),
    ]


def beside() -> list[tuple[str, bytes, bytes]]:
    """The same of a connection beside it."""
    front, token = SideFront(3, bytes(16)).encode(), sealed(record.RecordKind.EPOCH)
    return [("side", front, front), ("epoch", encode_length(len(token)) + token, token), ("side-end", END, b"")]


def asking() -> list[tuple[str, bytes, bytes]]:
    """The same of an inquiry."""
    front, noise = inquiry.encode_front(), os.urandom(70_000)
    return [
        ("inquiry", front, front),
        ("question", InquiryFrame(InquiryKind.QUESTION, b"may I?").encode(), b"may I?"),
        ("probe", InquiryFrame(InquiryKind.PROBE, noise).encode(), noise),
    ]


def answers() -> list[tuple[str, bytes, bytes]]:
    """What a target might say, in no order that it would say it in."""
    abort, refusal = Refusal.of(SealError("no"), bytes(TOKEN_SIZE)).frame(), Refusal.of(SealError("no")).frame()
    frames = {
        name: Frame(kind, bytes(TOKEN_SIZE))
        for kind, name in FRAME_NAMES.items()
        if name in {"answer", "prepared", "started"}
    }
    return [
        *((name, frame.encode(), frame.payload) for name, frame in frames.items()),
        ("aborted", abort.encode(), abort.payload),
        ("refused", refusal.encode(), refusal.payload),
        ("verdict", InquiryFrame(InquiryKind.ANSWER, b"yes").encode(), b"yes"),
        ("echo", InquiryFrame(InquiryKind.ECHO).encode(), b""),
    ]


def arriving(data: bytes, chunk: Callable[[], int]) -> Callable[[memoryview], int]:
    """A connection that brings so much at a time."""
    left = memoryview(data)

    def receive(view: memoryview) -> int:
        nonlocal left
        length = min(len(view), len(left), chunk())
        view[:length] = left[:length]
        left = left[length:]
        return length

    return receive


def cut(side: Side, data: bytes, chunk: Callable[[], int] = lambda: 1 << 20) -> Iterator[tuple[str, bytes, bytes]]:
    """Names, messages and contents."""
    for message in Splitter(side, arriving(data, chunk)).messages():
        yield message.name, bytes(message.data), bytes(message.data[message.start : message.end])


@pytest.mark.parametrize(
    ("side", "made"), [(Side.SOURCE, stream), (Side.SOURCE, beside), (Side.SOURCE, asking), (Side.TARGET, answers)]
)
@settings(max_examples=15)
@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=20))
def test_messages_are_found_however_they_come(
    side: Side, made: Callable[[], list[tuple[str, bytes, bytes]]], sizes: list[int]
) -> None:
    expected = made()
    turns = itertools.cycle(sizes)
    found = list(cut(side, b"".join(data for _, data, _ in expected), lambda: next(turns)))
    assert found == expected


def test_what_is_cut_off_in_the_middle_is_passed_on_to_its_last_byte() -> None:
    expected = stream()
    whole = b"".join(data for _, data, _ in expected)
    for length in (0, 1, 3, 100, len(whole) - 1):
        found = list(cut(Side.SOURCE, whole[:length]))
        assert b"".join(data for _, data, _ in found) == whole[:length]
        assert [name for name, _, _ in found[:-1]] == [name for name, _, _ in expected][: max(0, len(found) - 1)]


@settings(max_examples=60)
@given(side=st.sampled_from(Side), noise=st.binary(max_size=400), whole=st.booleans())
def test_what_is_not_understood_passes_byte_for_byte(side: Side, noise: bytes, whole: bool) -> None:  # noqa: FBT001
    begun = b"".join(data for _, data, _ in (stream()[:5] if side is Side.SOURCE else answers()[:2])) if whole else b""
    assert b"".join(data for _, data, _ in cut(side, begun + noise)) == begun + noise


def test_tls_is_bytes_from_the_first_one_on() -> None:
    hello = b"\x16\x03\x01\x00\x2a" + os.urandom(42)
    for side in Side:
        assert [(name, data) for name, data, _ in cut(side, hello)] == [(BYTES, hello)]


def test_a_message_without_end_is_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealift.tamper.messages.MESSAGE_LIMIT", 2 << 20)
    endless = b"".join(data for _, data, _ in stream()[:4]) + ram(0, 1000)[:-8] * 2
    found = list(cut(Side.SOURCE, endless))
    assert b"".join(data for _, data, _ in found) == endless
    assert found[-1][0] == BYTES


def test_every_kind_of_message_on_the_wire_has_a_name_and_every_name_is_explained() -> None:
    assert set(SEALED_NAMES) == set(SealedKind)
    assert set(RECORD_NAMES) == set(record.RecordKind)
    assert set(PSP_NAMES) == set(psp.RecordKind)
    assert set(FRAME_NAMES) == set(FrameKind)
    assert set(INQUIRY_NAMES) == set(InquiryKind)
    named = {*RECORD_NAMES.values(), *PSP_NAMES.values(), *FRAME_NAMES.values(), *INQUIRY_NAMES.values()}
    assert named | {"hello", "confirm"} <= set(KINDS)
