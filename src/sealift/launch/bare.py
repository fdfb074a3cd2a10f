"""Where one of our own kernels goes, and what follows it on the machine `bare`.

::

    kernel | page tables | stacks, one a vCPU | payload | free

The page tables start behind the kernel or behind the start-up area, whichever ends higher.
"""

from __future__ import annotations

from dataclasses import replace

from sealift.address import PAGE_SIZE, Gpa
from sealift.errors import UserError
from sealift.launch.areas import ANCHOR, Area
from sealift.launch.elf import Kernel, load
from sealift.launch.paging import page_table_pages
from sealift.launch.pieces import Content, Load, Plan, whole_pages
from sealift.launch.startup import STACK_SIZE, StartupTable

BOOTSTRAP_LIMIT = 1 << 30
"""The bootstrap page tables map this much; page tables and stacks must be made below it."""


def plan(base: StartupTable, start_up: tuple[Area, ...], image: bytes, payload: Content) -> Plan:
    """Lay out the ELF file `image` and its payload.

    Args:
        base: the table as far as it does not depend on the kernel.
        start_up: what the kernel must leave alone.
        image: the kernel.
        payload: what it finds through the table.

    Raises:
        UserError: the kernel cannot be loaded, or something does not fit; the message gives the sizes.
    """
    kernel = load(image, base.layout)
    _check_kernel(kernel, start_up)
    table = _place(base, start_up, kernel, len(payload))
    segments = tuple(Load(f"kernel segment {at}", found.gpa, found.data) for at, found in enumerate(kernel.segments))
    return Plan(table, (*segments, Load("payload", table.payload.gpa, payload)))


def _place(base: StartupTable, start_up: tuple[Area, ...], kernel: Kernel, payload_size: int) -> StartupTable:
    start = max(whole_pages(kernel.end), ANCHOR, *(area.end for area in start_up))
    page_tables = Area(Gpa(start), page_table_pages(base.layout, base.mailbox) * PAGE_SIZE)
    stacks = Area(page_tables.end, base.vcpus * STACK_SIZE)
    payload = Area(stacks.end, payload_size)
    if stacks.end > BOOTSTRAP_LIMIT:
        raise UserError(
            f"the kernel ends at {kernel.end:#x}; page tables and {base.vcpus} stacks of {STACK_SIZE >> 10} KiB "
            f"no longer fit below {BOOTSTRAP_LIMIT:#x}"
        )
    if base.layout.offset(start, payload.end - start) is None:
        raise UserError(
            f"{payload.end - start:,} bytes for page tables, stacks and a payload of {payload.size:,} bytes do not "
            f"fit after the kernel at {start:#x}; the guest has {base.layout.size >> 20} MiB of memory"
        )
    return replace(
        base,
        entry=kernel.entry,
        payload=payload,
        page_tables=page_tables,
        stacks=stacks,
        free=Gpa(whole_pages(payload.end)),
    )


def _check_kernel(kernel: Kernel, start_up: tuple[Area, ...]) -> None:
    """The kernel must leave the start-up area alone, to the last byte of its last page."""
    for segment in kernel.segments:
        whole = Area(segment.gpa, whole_pages(segment.memsz))
        for area in start_up:
            if whole.overlaps(area):
                raise UserError(f"the kernel's segment {segment.area} overlaps the start-up area {area}")
