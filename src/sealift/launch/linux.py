"""Where an unmodified Linux kernel goes, and what it is told, on the machine `microvm`.

Loaded, and so measured, in this order::

    kernel | boot_params | command line | ACPI tables | initrd

`sealift.launch.microvm` draws the map; the initrd ends as high as kernel and memory allow. Page tables and stack of
the start-up code lie behind the mailbox, in the MiB that the memory map reserves: Linux must never be given a page
whose state it does not know.

Source: Linux, ``Documentation/arch/x86/boot.rst``, "64-bit Boot Protocol".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from sealift.address import PAGE_SIZE, Gpa, RamLayout
from sealift.errors import UserError
from sealift.launch import acpi, microvm
from sealift.launch.areas import Area
from sealift.launch.bootparams import BootParams, MemoryKind, MemoryRange, memory_map
from sealift.launch.bzimage import ENTRY_64, BzImage, parse
from sealift.launch.paging import page_table_pages
from sealift.launch.pieces import Content, Load, Plan, whole_pages
from sealift.launch.startup import STACK_SIZE, StartupTable, check_command_line

RESERVED: Final = tuple(
    MemoryRange(Area(Gpa(start), end - start), kind)
    for start, end, kind in (
        (microvm.LOW_MEMORY_END, microvm.ACPI_TABLES, MemoryKind.RESERVED),
        (microvm.ACPI_TABLES, microvm.ACPI_TABLES_END, MemoryKind.ACPI),
        (microvm.ACPI_TABLES_END, microvm.HIGH_MEMORY, MemoryKind.RESERVED),
        (microvm.START_UP, microvm.START_UP_END, MemoryKind.RESERVED),
    )
)
"""RAM that is not for the kernel."""

_COMMAND_LINE_ROOM: Final = microvm.LOW_MEMORY_END - microvm.COMMAND_LINE
_STARTED: Final = 1
"""VCPUs that run the start-up code, and need a stack for it."""


def plan(base: StartupTable, start_up: tuple[Area, ...], image: bytes, initrd: Content, command_line: str) -> Plan:
    """Lay out the bzImage `image`.

    Args:
        base: the table as far as it does not depend on the kernel.
        start_up: what start-up code and platform use.
        image: the kernel.
        initrd: its first file system, or nothing.
        command_line: printable ASCII; Linux finds it through boot_params, not in the table.

    Raises:
        UserError: the kernel cannot be loaded, or something does not fit; the message gives the sizes.
    """
    kernel = parse(image)
    _check_start_up(start_up)
    _check_layout(base.layout)
    _check_kernel(kernel, base.layout)
    check_command_line(command_line, min(kernel.command_line_limit, _COMMAND_LINE_ROOM - 1))
    initrd_gpa = _place_initrd(kernel, base.layout, len(initrd))
    params = BootParams(
        kernel=kernel,
        memory=memory_map(base.layout, RESERVED),
        command_line=Gpa(microvm.COMMAND_LINE),
        initrd=Area(initrd_gpa, len(initrd)),
        rsdp=Gpa(microvm.ACPI_TABLES),
    )
    loads = (
        Load("kernel", Gpa(microvm.KERNEL), kernel.kernel),
        Load("boot parameters", Gpa(microvm.BOOT_PARAMS), params.encode()),
        Load("command line", Gpa(microvm.COMMAND_LINE), command_line.encode("ascii") + b"\0"),
        Load("ACPI tables", Gpa(microvm.ACPI_TABLES), acpi.tables(Gpa(microvm.ACPI_TABLES), base.vcpus)),
        Load("initrd", initrd_gpa, initrd),
    )
    return Plan(_place_start_up(base, start_up), loads)


def _check_start_up(start_up: tuple[Area, ...]) -> None:
    for area in start_up:
        if area.gpa < microvm.START_UP or area.end > microvm.START_UP_END:
            raise UserError(
                f"the start-up code uses {area}; on the machine microvm it must stay within "
                f"{microvm.START_UP:#x}-{microvm.START_UP_END:#x}"
            )


def _check_layout(layout: RamLayout) -> None:
    for block in layout.blocks:
        if block.gpa < microvm.HIGH_RAM and block.gpa + block.size > microvm.LOW_RAM_LIMIT:
            raise UserError(
                f"the machine microvm has its devices above {microvm.LOW_RAM_LIMIT:#x}, where RAM is asked for"
            )


def _check_kernel(kernel: BzImage, layout: RamLayout) -> None:
    """The kernel must run where it is loaded, and have room to unpack itself there."""
    if kernel.fixed not in (None, microvm.KERNEL):
        raise UserError(f"{kernel} runs at {kernel.fixed:#x} only; build it with CONFIG_RELOCATABLE")
    if microvm.KERNEL % kernel.alignment:
        raise UserError(f"{kernel} must be aligned to {kernel.alignment:#x}; it is loaded at {microvm.KERNEL:#x}")
    if layout.offset(microvm.KERNEL, kernel.init_size) is None:
        raise UserError(
            f"{kernel} takes {kernel.init_size:,} bytes from {microvm.KERNEL:#x} on; "
            f"the guest has {layout.size >> 20} MiB of memory"
        )


def _place_initrd(kernel: BzImage, layout: RamLayout, size: int) -> Gpa:
    """As high as possible, behind all that the kernel takes to unpack itself; 0 if there is none."""
    if not size:
        return Gpa(0)
    first = layout.blocks[0]
    end = min(first.gpa + first.size, kernel.initrd_end)
    gpa = (end - size) // PAGE_SIZE * PAGE_SIZE
    free = whole_pages(microvm.KERNEL + kernel.init_size)
    if gpa < free:
        raise UserError(
            f"an initrd of {size:,} bytes does not fit between {kernel}, which takes memory up to {free:#x}, "
            f"and {end:#x}; the guest has {layout.size >> 20} MiB of memory"
        )
    return Gpa(gpa)


def _place_start_up(base: StartupTable, start_up: tuple[Area, ...]) -> StartupTable:
    """Page tables and stack of the start-up code, behind what else it has."""
    start = max(area.end for area in start_up)
    page_tables = Area(start, page_table_pages(base.layout, base.mailbox) * PAGE_SIZE)
    stacks = Area(page_tables.end, _STARTED * STACK_SIZE)
    if stacks.end > microvm.START_UP_END:
        raise UserError(
            f"memory of {base.layout.size >> 20:,} MiB needs {page_tables.size >> 10:,} KiB of page tables to start "
            f"with, of which {microvm.START_UP_END - start - stacks.size >> 10:,} KiB fit"
        )
    return replace(
        base,
        entry=Gpa(microvm.KERNEL + ENTRY_64),
        boot_params=Gpa(microvm.BOOT_PARAMS),
        page_tables=page_tables,
        stacks=stacks,
    )
