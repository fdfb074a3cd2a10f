"""The start-up area and its table survive their encoding, and nothing else decodes."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sevsnpmeasure.ovmf import OVMF

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import StreamError, UserError
from sealift.guest.programs import startup_blob
from sealift.launch import guided
from sealift.launch.areas import (
    ANCHOR,
    BOOT_GUID,
    MAILBOX_GUID,
    TABLE_GUID,
    Area,
    areas_in_memory,
    areas_of,
)
from sealift.launch.startup import MAX_COMMAND_LINE, StartupTable, read_startup_table

TABLE = StartupTable(
    handler_digest=bytes(range(32)),
    vcpus=4,
    layout=RamLayout((RamBlock("low", Gpa(0), 0x800000 * 2), RamBlock("hoch", Gpa(1 << 32), 1 << 20))),
    entry=Gpa(0xA00000),
    secret=Area(Gpa(0x810000), 0x4000),
    mailbox=Area(Gpa(0x820000), 0x2000),
    payload=Area(Gpa(0xB00000), 12345),
    page_tables=Area(Gpa(0xA10000), 0x5000),
    stacks=Area(Gpa(0xA15000), 0x10000),
    free=Gpa(0xB04000),
    boot_params=Gpa(0x10000),
    ghcbs=Area(Gpa(0x900000), 0x4000),
    command_line="ws=4 flip=1",
)


def image(entries: dict[UUID, tuple[int, int]]) -> bytes:
    """The end of a start-up image that names these areas."""
    good = {
        BOOT_GUID: (0x80F000, 0x80B000),
        guided.SECRET_BLOCK_GUID: (0x810000, 0x4000),
        TABLE_GUID: (0x814000, 0x1000),
        MAILBOX_GUID: (0x820000, 0x2000),
    }
    return guided.build({guid: struct.pack("<II", *pair) for guid, pair in (good | entries).items()}) + bytes(32)


class Memory:
    """Guest memory from 8 MiB on."""

    def __init__(self, table: StartupTable) -> None:
        self.bytes = bytearray(0x100000)
        self.put(ANCHOR - len(startup_blob()), startup_blob())
        self.put(areas_of(startup_blob()).table.gpa, table.encode())

    def put(self, gpa: int, data: bytes) -> None:
        """Write `data` at `gpa`."""
        self.bytes[gpa - 0x800000 : gpa - 0x800000 + len(data)] = data

    def read(self, gpa: Gpa, size: int) -> bytes:
        """Read `size` bytes at `gpa`."""
        return bytes(self.bytes[gpa - 0x800000 : gpa - 0x800000 + size])


def test_the_table_decodes_to_what_was_encoded() -> None:
    page = TABLE.encode()
    assert len(page) == PAGE_SIZE
    assert StartupTable.decode(page) == TABLE


@given(st.integers(0, PAGE_SIZE - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_gives_another_table(at: int, change: int) -> None:
    """No byte of the page is ignored."""
    page = bytearray(TABLE.encode())
    page[at] ^= change
    with suppress(StreamError):
        assert StartupTable.decode(bytes(page)) != TABLE


@pytest.mark.parametrize(
    ("at", "data", "fault"),
    [
        (0, b"X", "no start-up table"),
        (8, b"\1", "version 1"),
        (0xC, bytes(4), "makes no sense"),
        (0x90, b"\x11", "17 RAMBlocks"),
        (0x94, struct.pack("<I", 1025), "1025 bytes of command line"),
        (0xB0, b"\1", "must be 0"),
        (0x108, b"\1", "makes no sense"),
        (0x500, b"\xff", "makes no sense"),
        (0x500, b"\n", "makes no sense"),
        (0xFFF, b"\1", "must be 0"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(at: int, data: bytes, fault: str) -> None:
    page = bytearray(TABLE.encode())
    page[at : at + len(data)] = data
    with pytest.raises(StreamError, match=fault):
        StartupTable.decode(bytes(page))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"handler_digest": b"short"}, "32 bytes, not 5"),
        ({"vcpus": 0}, "not 0"),
        ({"vcpus": 256}, "not 256"),
        ({"command_line": "x" * (MAX_COMMAND_LINE + 1)}, "1025 bytes is longer"),
        ({"command_line": "tab\t"}, "printable"),
        ({"command_line": "Umlaut ä"}, "printable"),
        ({"layout": RamLayout((RamBlock("n" * 49, Gpa(0), 4096),))}, "no room in 48"),
        (
            {"layout": RamLayout(tuple(RamBlock(f"b{i}", Gpa(i << 12), 4096) for i in range(17)))},
            "17 RAMBlocks",
        ),
    ],
)
def test_fields_without_room_in_the_page_are_refused(change: dict[str, object], fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        replace(TABLE, **change)  # type: ignore[arg-type]  # wrong on purpose


def test_the_built_start_up_code_names_its_areas() -> None:
    areas = areas_of(startup_blob())
    assert areas.secret.gpa == ANCHOR
    assert areas.mailbox == Area(Gpa(0x820000), 2 * PAGE_SIZE)
    assert ANCHOR - len(startup_blob()) <= areas.bootstrap_cr3 < areas.entry < ANCHOR


def test_an_independent_reader_of_ovmf_finds_the_secret_block(tmp_path: Path) -> None:
    """sev-snp-measure walks the table of our start-up code as if it were OVMF's."""
    image = tmp_path / "startup.bin"
    image.write_bytes(startup_blob())
    found = OVMF(str(image)).table_item(str(guided.SECRET_BLOCK_GUID))
    assert found == struct.pack("<II", 0x810000, 0x4000)


def test_the_table_is_found_through_the_code_at_the_anchor() -> None:
    memory = Memory(TABLE)
    assert areas_in_memory(memory.read) == areas_of(startup_blob())
    assert read_startup_table(memory.read) == TABLE


def test_memory_without_start_up_code_is_refused() -> None:
    with pytest.raises(StreamError, match="does not end with"):
        read_startup_table(lambda _, size: bytes(size))


def test_a_table_that_names_another_mailbox_than_the_code_is_refused() -> None:
    memory = Memory(replace(TABLE, mailbox=Area(Gpa(0x822000), 0x2000)))
    with pytest.raises(StreamError, match="disagree"):
        read_startup_table(memory.read)


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({TABLE_GUID: (0x814000, 0x2000)}, "not one page"),
        ({TABLE_GUID: (0x813000, 0x1000)}, "overlaps"),
        ({MAILBOX_GUID: (0x820000, 0x1000)}, "not two pages"),
        ({MAILBOX_GUID: (0x820010, 0x2000)}, "not made of whole pages"),
        ({guided.SECRET_BLOCK_GUID: (0x810000, 0)}, "not made of whole pages"),
        ({BOOT_GUID: (0x810000, 0x80B000)}, "outside it"),
        ({BOOT_GUID: (0x80F000, 0x80B010)}, "outside it"),
    ],
)
def test_misplaced_areas_are_named(entry: dict[UUID, tuple[int, int]], fault: str) -> None:
    assert areas_of(image({}))
    with pytest.raises(StreamError, match=fault):
        areas_of(image(entry))


def test_an_image_without_one_of_the_entries_is_refused() -> None:
    with pytest.raises(StreamError, match="boot entry of the start-up image is missing"):
        areas_of(guided.build({guided.SECRET_BLOCK_GUID: bytes(8)}) + bytes(32))
