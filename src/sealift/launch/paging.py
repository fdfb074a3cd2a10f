"""How many page-table pages the start-up code will need.

The start-up code maps all RAM one to one, as private memory, with 2 MiB pages; 4 KiB pages where a 2 MiB region
is not wholly RAM, and around the mailbox, whose two pages have another C-bit. Its room is reserved in the
start-up table, so both sides must count alike: see ``map_memory`` in ``guest/programs/startup.c``.
"""

from __future__ import annotations

from sealift.address import RamLayout
from sealift.launch.areas import Area

LARGE_SHIFT = 21
_DIRECTORY_SHIFT = 30
_POINTER_SHIFT = 39


def page_table_pages(layout: RamLayout, mailbox: Area) -> int:
    """Pages of all four levels for `layout`."""
    pointers: set[int] = set()
    directories: set[int] = set()
    tables = {mailbox.gpa >> LARGE_SHIFT, (mailbox.end - 1) >> LARGE_SHIFT}
    for block in layout.blocks:
        first, last = block.gpa, block.gpa + block.size - 1
        pointers.update(range(first >> _POINTER_SHIFT, (last >> _POINTER_SHIFT) + 1))
        directories.update(range(first >> _DIRECTORY_SHIFT, (last >> _DIRECTORY_SHIFT) + 1))
        large = (1 << LARGE_SHIFT) - 1
        if first & large:
            tables.add(first >> LARGE_SHIFT)
        if (last + 1) & large:
            tables.add(last >> LARGE_SHIFT)
    return 1 + len(pointers) + len(directories) + len(tables)
