"""Guest memory by virtual address, as one vCPU sees it now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sealift.vmm.debug.memory import DebugMemory
from sealift.vmm.debug.walker import Paging, Translation, Walker
from sealift.vmm.memory import Buffer


@dataclass(frozen=True, slots=True)
class _Run:
    """Bytes `start` to `end` of an access, physically contiguous."""

    found: Translation
    start: int
    end: int


class VirtualMemory:
    """What virtual addresses lead to; tables are remembered, so each command makes its own.

    Args:
        memory: the guest's.
        paging: of the vCPU whose addresses are meant.
    """

    def __init__(self, memory: DebugMemory, paging: Paging) -> None:
        self._memory = memory
        self.walker = Walker(memory, paging)

    def read(self, address: int, length: int) -> bytes:
        """`length` bytes at `address`, which is as long as a register; addresses wrap around as the vCPU's do.

        Raises:
            NotMappedError: part of it is not mapped; nothing was read.
            UserError: it is mapped to what is no RAM, or the policy forbids it.
        """
        data = bytearray(length)
        self.read_into(address, memoryview(data))
        return bytes(data)

    def read_into(self, address: int, destination: memoryview) -> None:
        """Fill `destination` (bytes); raises as `read`."""
        for run in tuple(self._runs(address, len(destination))):
            self._memory.read_into(run.found.gpa, destination[run.start : run.end], run.found.view)

    def write(self, address: int, data: Buffer) -> None:
        """Put `data` to `address`, writable to the guest or not.

        Raises:
            NotMappedError: part of it is not mapped; nothing was written.
            UserError: it is mapped to what is no RAM, or the policy forbids it.
        """
        for run in tuple(self._runs(address, len(data))):
            self._memory.write(run.found.gpa, memoryview(data)[run.start : run.end], run.found.view)

    def _runs(self, address: int, length: int) -> Iterator[_Run]:
        """An access in physically contiguous parts."""
        run: _Run | None = None
        done = 0
        while done < length:
            found = self.walker.translate((address + done) & self.walker.highest_address)
            count = min(found.page_size - found.gpa % found.page_size, length - done)
            if run is not None and _continues(run, found):
                run = _Run(run.found, run.start, done + count)
            else:
                if run is not None:
                    yield run
                run = _Run(found, done, done + count)
            done += count
        if run is not None:
            yield run


def _continues(run: _Run, found: Translation) -> bool:
    return found.gpa == run.found.gpa + run.end - run.start and found.encrypted == run.found.encrypted
