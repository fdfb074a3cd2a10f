"""The page Linux is started with: boot_params, with the memory map (e820) in it.

Source: Linux, ``Documentation/arch/x86/zero-page.rst`` and ``boot.rst``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from sealift.address import PAGE_SIZE, Gpa, RamLayout
from sealift.launch.areas import Area
from sealift.launch.bzimage import SETUP_HEADER, BzImage
from sealift.launch.fields import Field

_ACPI_RSDP_ADDR: Final = Field(0x070, 8)
_E820_ENTRIES: Final = Field(0x1E8, 1)
_TYPE_OF_LOADER: Final = Field(0x210, 1)
_RAMDISK_IMAGE: Final = Field(0x218, 4)
_RAMDISK_SIZE: Final = Field(0x21C, 4)
_CMD_LINE_PTR: Final = Field(0x228, 4)
_E820_TABLE: Final = 0x2D0

_UNREGISTERED_LOADER: Final = 0xFF
_E820_ENTRY: Final = struct.Struct("<QQI")


class MemoryKind(IntEnum):
    """Types of e820 entries (ACPI 6.5, table 15.4)."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    """Tables, which an SEV guest maps as private memory; what is only reserved it would map as shared."""


@dataclass(frozen=True, slots=True)
class MemoryRange:
    """One entry of the memory map."""

    area: Area
    kind: MemoryKind


def memory_map(layout: RamLayout, excepted: tuple[MemoryRange, ...]) -> tuple[MemoryRange, ...]:
    """The map of all of `layout` in ascending order: RAM but for what is `excepted`.

    Args:
        layout: the guest's RAM.
        excepted: ascending ranges of RAM, none overlapping.
    """
    return tuple(found for block in layout.blocks for found in _block_map(Area(block.gpa, block.size), excepted))


def _block_map(block: Area, excepted: tuple[MemoryRange, ...]) -> Iterator[MemoryRange]:
    at = block.gpa
    for exception in excepted:
        if not exception.area.overlaps(block):
            continue
        if at < exception.area.gpa:
            yield _ram(at, exception.area.gpa)
        yield exception
        at = exception.area.end
    if at < block.end:
        yield _ram(at, block.end)


def _ram(start: Gpa, end: Gpa) -> MemoryRange:
    return MemoryRange(Area(start, end - start), MemoryKind.RAM)


@dataclass(frozen=True, slots=True)
class BootParams:
    """What the kernel is told.

    Attributes:
        kernel: whose setup header is handed back to it.
        memory: the memory map.
        command_line: where it is, ending with a zero.
        initrd: where it is, in bytes; empty if there is none.
        rsdp: where the ACPI tables begin.
    """

    kernel: BzImage
    memory: tuple[MemoryRange, ...]
    command_line: Gpa
    initrd: Area
    rsdp: Gpa

    def encode(self) -> bytes:
        """The page."""
        page = bytearray(PAGE_SIZE)
        page[SETUP_HEADER : SETUP_HEADER + len(self.kernel.header)] = self.kernel.header
        _TYPE_OF_LOADER.write(page, _UNREGISTERED_LOADER)
        _CMD_LINE_PTR.write(page, self.command_line)
        _RAMDISK_IMAGE.write(page, self.initrd.gpa)
        _RAMDISK_SIZE.write(page, self.initrd.size)
        _ACPI_RSDP_ADDR.write(page, self.rsdp)
        _E820_ENTRIES.write(page, len(self.memory))
        for index, entry in enumerate(self.memory):
            _E820_ENTRY.pack_into(
                page, _E820_TABLE + index * _E820_ENTRY.size, entry.area.gpa, entry.area.size, entry.kind
            )
        return bytes(page)
