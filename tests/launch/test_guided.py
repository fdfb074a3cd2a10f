"""GUIDed tables: what is built parses, and nothing malformed does."""

from __future__ import annotations

import struct
from contextlib import suppress
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.errors import StreamError
from sealift.launch import guided

A, B = UUID(int=0xA), UUID(int=0xB)
TAIL = bytes(guided.TAIL_SIZE)

tables = st.dictionaries(st.uuids(), st.binary(max_size=40), max_size=6)


@given(tables, st.binary(max_size=100))
def test_a_built_table_parses_whatever_precedes_it(entries: dict[UUID, bytes], before: bytes) -> None:
    parsed = guided.parse(before + guided.build(entries) + TAIL)
    assert dict(parsed) == entries
    assert list(parsed) == list(entries)


def test_the_table_is_laid_out_as_ovmf_does() -> None:
    """The bytes of an OVMF secret block entry, written out by hand."""
    entry = struct.pack("<IIH", 0x810000, 0xC00, 26) + bytes.fromhex("61b32e4c9b7dc34c8081127c90d3d294")
    footer = struct.pack("<H", 44) + bytes.fromhex("de82b596b21ff745baeaa366c55a082d")
    assert guided.build({guided.SECRET_BLOCK_GUID: struct.pack("<II", 0x810000, 0xC00)}) == entry + footer


@given(tables, st.data())
def test_a_damaged_table_ends_in_no_other_error_than_a_stream_error(
    entries: dict[UUID, bytes], data: st.DataObject
) -> None:
    image = bytearray(guided.build(entries) + TAIL)
    image[data.draw(st.integers(0, len(image) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(StreamError):
        guided.parse(bytes(image))


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (b"", "too short"),
        (bytes(100), "does not end with"),
        (bytes(64) + struct.pack("<H", 17) + guided.FOOTER_GUID.bytes_le + TAIL, "claims 17 bytes"),
        (bytes(64) + struct.pack("<H", 4097) + guided.FOOTER_GUID.bytes_le + TAIL, "claims 4097 bytes"),
        (struct.pack("<H", 30) + guided.FOOTER_GUID.bytes_le + TAIL, "needs 62 bytes"),
        (bytes(9) + struct.pack("<H", 27) + guided.FOOTER_GUID.bytes_le + TAIL, "9 stray bytes"),
        (guided.build({A: b"x"})[1:-18] + struct.pack("<H", 36) + guided.FOOTER_GUID.bytes_le + TAIL, "19 bytes of 18"),
        (bytes(18) + struct.pack("<H", 36) + guided.FOOTER_GUID.bytes_le + TAIL, "claims 0 bytes"),
    ],
)
def test_malformed_tables_are_named(image: bytes, fault: str) -> None:
    with pytest.raises(StreamError, match=fault):
        guided.parse(image)


def test_the_same_guid_twice_is_refused() -> None:
    doubled = guided.build({A: b"one", B: b"two"}).replace(B.bytes_le, A.bytes_le)
    with pytest.raises(StreamError, match="twice"):
        guided.parse(doubled + TAIL)


def test_a_table_no_reader_would_copy_is_not_built() -> None:
    with pytest.raises(ValueError, match="longer than"):
        guided.build({A: bytes(guided.MAX_TABLE_SIZE)})
