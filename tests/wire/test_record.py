"""Sealed records on the wire: every field survives, every limit holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.address import PAGE_SIZE
from sealift.errors import StreamError
from sealift.wire.record import (
    HEADER_SIZE,
    MAX_CHANNELS,
    MAX_PAGES,
    MAX_PAYLOAD,
    MAX_RECORD,
    STATE_HEADER_SIZE,
    TAG_SIZE,
    VERSION,
    ChannelEnd,
    RecordHeader,
    RecordKind,
    StatePiece,
    decode_close,
    encode_close,
    page_record_size,
    pages_fitting,
    state_fitting,
)

headers = st.builds(
    RecordHeader,
    kind=st.just(RecordKind.PAGES),
    leg=st.integers(0, (1 << 32) - 1),
    channel=st.integers(0, MAX_CHANNELS - 1),
    epoch=st.integers(0, (1 << 64) - 1),
    sequence=st.integers(0, (1 << 64) - 1),
    migration=st.binary(min_size=16, max_size=16),
    count=st.just(3),
    length=st.just(3 * PAGE_SIZE),
)


def header(kind: RecordKind, count: int, length: int) -> RecordHeader:
    return RecordHeader(kind, 1, 0, 1, 0, bytes(16), count, length)


@given(headers)
def test_a_header_survives_the_wire(made: RecordHeader) -> None:
    encoded = made.encode()
    assert len(encoded) == HEADER_SIZE
    assert RecordHeader.decode(encoded) == made


@given(st.binary(max_size=2 * HEADER_SIZE))
def test_noise_is_a_stream_error(noise: bytes) -> None:
    with pytest.raises(StreamError):
        RecordHeader.decode(noise)


@pytest.mark.parametrize(
    ("kind", "count", "length"),
    [
        (RecordKind.PAGES, 0, 0),
        (RecordKind.PAGES, MAX_PAGES + 1, (MAX_PAGES + 1) * PAGE_SIZE),
        (RecordKind.PAGES, 2, PAGE_SIZE + 1),
        (RecordKind.PAGES, 2, 3 * PAGE_SIZE),
        (RecordKind.EPOCH, 1, 0),
        (RecordKind.EPOCH, 0, 1),
        (RecordKind.STATE, 0, STATE_HEADER_SIZE),
        (RecordKind.STATE, 0, MAX_PAYLOAD + 1),
        (RecordKind.STATE, 1, 100),
        (RecordKind.CLOSE, 0, 0),
        (RecordKind.CLOSE, 0, 40 * MAX_CHANNELS + 1),
    ],
)
def test_a_shape_its_kind_cannot_have_is_refused(kind: RecordKind, count: int, length: int) -> None:
    with pytest.raises(StreamError, match="cannot hold"):
        RecordHeader.decode(header(kind, count, length).encode())


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (0, 0, "magic"),
        (4, 0, "version 0"),
        (4, VERSION + 1, f"version {VERSION + 1}"),
        (6, 0, "kind 0"),
        (6, 5, "kind 5"),
        (12, 16, "channel"),
    ],
)
def test_another_version_kind_or_channel_is_refused(place: int, value: int, reason: str) -> None:
    encoded = bytearray(header(RecordKind.EPOCH, 0, 0).encode())
    encoded[place] = value
    with pytest.raises(StreamError, match=reason):
        RecordHeader.decode(encoded)


def test_the_limits_add_up() -> None:
    assert page_record_size(MAX_PAGES) == MAX_RECORD
    assert header(RecordKind.STATE, 0, MAX_PAYLOAD).size <= MAX_RECORD
    assert header(RecordKind.PAGES, 2, 2 * PAGE_SIZE).size == page_record_size(2)


@given(st.integers(0, MAX_RECORD + PAGE_SIZE))
def test_what_fits_a_slot_fits_exactly(space: int) -> None:
    pages = pages_fitting(space)
    assert pages == 0 or page_record_size(pages) <= space
    assert pages == MAX_PAGES or page_record_size(pages + 1) > space
    if piece := state_fitting(space):
        assert HEADER_SIZE + STATE_HEADER_SIZE + piece + TAG_SIZE <= space


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1), st.binary())
def test_a_piece_of_state_survives_the_wire(total: int, offset: int, data: bytes) -> None:
    piece = StatePiece(total, offset, data)
    assert StatePiece.decode(piece.encode()) == piece


def test_a_close_record_survives_the_wire_and_must_be_whole() -> None:
    ends = (ChannelEnd(3, b"\1" * 32), ChannelEnd(1 << 40, b"\2" * 32))
    encoded = encode_close(ends)
    assert decode_close(encoded) == ends
    with pytest.raises(StreamError, match="not a list of channels"):
        decode_close(encoded[:-1])
