"""Firmware images for tests: one made here with the blocks of EDK2's AmdSev build, and Debian's."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sealift.launch import guided
from sealift.launch.flash import HASHES_BLOCK_GUID, RESET_BLOCK_GUID

OVMF = Path("/usr/share/OVMF/OVMF_CODE.fd")

BLOCKS = {
    RESET_BLOCK_GUID: struct.pack("<I", 0x0080B004),
    guided.SECRET_BLOCK_GUID: struct.pack("<II", 0x810000, 0xC00),
    HASHES_BLOCK_GUID: struct.pack("<II", 0x810C00, 0x400),
}


def firmware_image(changes: Mapping[Any, bytes] = {}) -> bytes:
    """An image of 64 KiB with AmdSev's blocks; `changes` replaces some."""
    return with_blocks(b"\x90" * (64 << 10), {**BLOCKS, **changes})


def with_blocks(image: bytes, blocks: Mapping[Any, bytes]) -> bytes:
    """An image whose GUIDed table is replaced by one with `blocks`; its size stays."""
    table = guided.build(blocks) + image[-guided.TAIL_SIZE :]
    return image[: len(image) - len(table)] + table
