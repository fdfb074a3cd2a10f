"""The RAM of a machine: which RAMBlocks a guest of a given size has."""

from __future__ import annotations

from typing import Final

from sealift.address import Gpa, RamBlock, RamLayout, page_aligned
from sealift.errors import UserError
from sealift.launch import microvm
from sealift.launch.machine import MachineType

RAM_BLOCK: Final = "pc.ram"
HIGH_RAM_BLOCK: Final = "ram-above-4g"


def ram_layout(memory: int, machine: MachineType) -> RamLayout:
    """The RAM of a guest with `memory` bytes: one RAMBlock, or two where devices are in the way.

    Raises:
        UserError: that is not a whole number of pages.
    """
    if memory <= 0 or not page_aligned(memory):
        raise UserError(f"a guest's memory is made of pages of 4 KiB; {memory:,} bytes are not")
    low = min(memory, microvm.LOW_RAM_LIMIT) if machine is MachineType.MICROVM else memory
    blocks = [RamBlock(RAM_BLOCK, Gpa(0), low)]
    if memory > low:
        blocks.append(RamBlock(HIGH_RAM_BLOCK, Gpa(microvm.HIGH_RAM), memory - low))
    return RamLayout(tuple(blocks))
