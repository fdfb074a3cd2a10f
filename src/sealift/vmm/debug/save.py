"""memsave and pmemsave: guest memory as it is, into a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from sealift.errors import UserError
from sealift.vmm.debug.cpu import read_cpu
from sealift.vmm.debug.memory import debug_memory
from sealift.vmm.debug.virtual import VirtualMemory
from sealift.vmm.machine import Machine
from sealift.vmm.wholefile import WholeFile

_CHUNK: Final = 1 << 20
"""Bytes read and written at once."""


def save_physical(machine: Machine, gpa: int, length: int, path: Path) -> None:
    """Write `length` bytes of physical memory from `gpa` on to a file, which must not exist; the guest runs on.

    Raises:
        SealiftError: part of it is no RAM, the policy forbids it, or the file cannot be written; none is left.
    """
    _save(debug_memory(machine).read_into, gpa, length, path)


def save_virtual(machine: Machine, index: int, address: int, length: int, path: Path) -> None:
    """The same from a virtual address on, as vCPU `index` has it now; raises as `save_physical`."""
    with machine.stilled():
        paging = read_cpu(machine, index).paging
    _save(VirtualMemory(debug_memory(machine), paging).read_into, address, length, path)


def _save(read_into: Callable[[int, memoryview], None], address: int, length: int, path: Path) -> None:
    if not path.is_absolute():
        raise UserError(f"{path} is no absolute path, and the VMM does not know what it is relative to")
    file = WholeFile(path, "memory")
    try:
        chunk = memoryview(bytearray(_CHUNK))
        for done in range(0, length, _CHUNK):
            part = chunk[: min(_CHUNK, length - done)]
            read_into(address + done, part)
            file.write(part)
        file.publish()
    finally:
        file.discard()
