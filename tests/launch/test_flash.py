"""Firmware images and the table of kernel hashes, judged by sev-snp-measure and by Debian's images."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sevsnpmeasure.sev_hashes import SevHashes

import judges
from launch.flashes import OVMF, firmware_image
from sealift.address import Gpa
from sealift.errors import SealiftError, StreamError, UserError
from sealift.launch import guided
from sealift.launch.areas import Area
from sealift.launch.flash import HASHES_BLOCK_GUID, RESET_BLOCK_GUID, FlashImage
from sealift.launch.guided import SECRET_BLOCK_GUID
from sealift.launch.kernelhashes import KernelHashes


@pytest.mark.parametrize("initrd", [b"", b"initrd" * 1000])
@pytest.mark.parametrize("line", ["", "console=ttyS0 quiet"])
def test_the_table_of_hashes_is_the_one_others_build(tmp_path: Path, initrd: bytes, line: str) -> None:
    kernel_file, initrd_file = tmp_path / "kernel", tmp_path / "initrd"
    kernel_file.write_bytes(b"kernel" * 500_000)
    initrd_file.write_bytes(initrd)
    theirs = SevHashes(str(kernel_file), str(initrd_file) if initrd else None, line).construct_table()
    assert KernelHashes.of(kernel_file.read_bytes(), initrd, line.encode()).encode() == theirs
    assert len(theirs) == 176


def test_hashes_of_nothing() -> None:
    hashes = KernelHashes.of(b"", b"", b"")
    assert hashes.command_line == hashlib.sha256(b"\0").digest()
    assert hashes.initrd == hashlib.sha256(b"").digest()


def test_what_an_image_says_of_itself() -> None:
    """Test the blocks of EDK2's AmdSev build, at the addresses it has them."""
    image = FlashImage.decode(firmware_image())
    assert image.hashes_area() == Area(Gpa(0x810C00), 0x400)
    assert image.secret == Area(Gpa(0x810000), 0xC00)
    assert image.reset_eip() == 0x0080B004
    assert image.gpa == (1 << 32) - len(image.data)


def test_debians_images_have_no_place_for_hashes_and_say_where_vcpus_begin() -> None:
    image = FlashImage.decode(judges.file(OVMF, "ovmf").read_bytes())
    assert image.reset_eip() == 0x0080B004
    assert image.secret is None
    with pytest.raises(UserError, match="no place for kernel hashes"):
        image.hashes_area()


def test_an_image_without_a_table_is_an_image() -> None:
    image = FlashImage.decode(bytes(4096))
    assert image.entries == {}
    with pytest.raises(UserError, match="no SEV-ES reset block"):
        image.reset_eip()


@pytest.mark.parametrize("data", [b"", bytes(15), bytes(17), bytes((64 << 20) + 16)], ids=len)
def test_what_no_launch_command_takes_is_refused(data: bytes) -> None:
    with pytest.raises(StreamError, match="no firmware image"):
        FlashImage.decode(data)


@pytest.mark.parametrize(
    ("guid", "data", "reason"),
    [
        (HASHES_BLOCK_GUID, bytes(7), "has 7 bytes, not 8"),
        (HASHES_BLOCK_GUID, struct.pack("<II", 0x1000, 175), "has 175 bytes of 176"),
        (RESET_BLOCK_GUID, bytes(8), "has 8 bytes, not 4"),
        (SECRET_BLOCK_GUID, bytes(9), "has 9 bytes, not 8"),
    ],
)
def test_a_damaged_entry_is_named(guid: object, data: bytes, reason: str) -> None:
    image = FlashImage.decode(firmware_image({guid: data}))
    with pytest.raises(StreamError, match=reason):  # noqa: PT012  # whichever of them meets it
        image.hashes_area()
        image.reset_eip()
        assert image.secret


@given(st.binary(max_size=300))
def test_arbitrary_tables(table: bytes) -> None:
    data = bytes(-(len(table) + 50) % 16) + table
    total = struct.pack("<H", len(table) + 18)
    image = data + total + guided.FOOTER_GUID.bytes_le + bytes(32)
    with contextlib.suppress(SealiftError):
        decoded = FlashImage.decode(image)
        for ask in (decoded.hashes_area, decoded.reset_eip, lambda: decoded.secret):
            with contextlib.suppress(SealiftError):
                ask()
