"""Both windows on guest RAM as KVM memslots, the mosaic behind one of them, and their write logs.

::

    GPA with C-bit     slot 2n+1 ──► private plane
    GPA without C-bit  slot 2n   ──► mosaic: one mapping in which every page is the private plane's or the shared one's
                                     by its state

A page-state change maps the other plane's page over the mosaic; KVM's MMU notifier makes the guest follow. KVM logs
writes by slot, so what was written with C-bit and without is known apart. Logs are read and then cleared by hand,
only where somebody looks (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2), so a flip of a few pages does not protect all others
anew.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from dataclasses import dataclass
from typing import Final

import numpy as np

from sealift.address import PAGE_SHIFT, RamBlock
from sealift.errors import InternalError, UserError
from sealift.pageset import PageSet, Span, Words
from sealift.silicon.engines.kvm import abi
from sealift.silicon.engines.kvm.kernel import enable, give
from sealift.silicon.memory.guest_memory import GuestMemory, WriteLogs
from sealift.silicon.memory.plane import Plane

RUNS_LIMIT: Final = 16_384
"""Runs of shared pages: each takes two mappings of the 65,530 a process may have (vm.max_map_count)."""

_MAP_FIXED: Final = 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_FAILED: Final = ctypes.c_void_p(-1).value


class Mosaic:
    """What the guest sees without C-bit: a mapping of the size of RAM, private pages first of all."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._size = memory.layout.size
        # Python's mmap cannot map over a part of itself, which is what a mosaic is made by.
        self.address = _map(None, self._size, mmap.MAP_SHARED, memory.private, 0)

    def show(self, plane: Plane, first: int, count: int) -> None:
        """From now on these pages are those of `plane`."""
        offset = first << PAGE_SHIFT
        _map(self.address + offset, count << PAGE_SHIFT, mmap.MAP_SHARED | _MAP_FIXED, plane, offset)

    def close(self) -> None:
        """Unmap it; no vCPU may use it any more."""
        _libc.munmap(ctypes.c_void_p(self.address), ctypes.c_size_t(self._size))


def _map(address: int | None, length: int, flags: int, plane: Plane, offset: int) -> int:
    found = _libc.mmap(address, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, plane.fd, offset)
    if found is None or found == _FAILED:
        code = ctypes.get_errno()
        raise InternalError(f"cannot map {length} bytes of guest memory: {os.strerror(code)}")
    return int(found)


@dataclass(frozen=True, slots=True)
class _Slot:
    """One memslot with its log's buffer; `first` is the block's first RAM page."""

    number: int
    first: int
    pages: int
    log: Words


class Slots:
    """The memslots of a VM.

    Raises:
        UserError: KVM does not take them.
    """

    def __init__(self, vm: int, memory: GuestMemory, cbit: int) -> None:
        self._vm = vm
        self._memory = memory
        enable(vm, abi.CAP_MANUAL_DIRTY_LOG_PROTECT2, abi.DIRTY_LOG_MANUAL_PROTECT_ENABLE)
        self.mosaic = Mosaic(memory)
        self._plain: list[_Slot] = []
        self._encrypted: list[_Slot] = []
        for index, (block, offset) in enumerate(memory.layout.ranges()):
            self._plain.append(self._add(2 * index, block, block.gpa, self.mosaic.address + offset, offset))
            place = memory.private.address + offset
            self._encrypted.append(self._add(2 * index + 1, block, block.gpa | 1 << cbit, place, offset))

    def _add(self, number: int, block: RamBlock, gpa: int, address: int, offset: int) -> _Slot:
        region = abi.UserspaceMemoryRegion(
            slot=number,
            flags=abi.MEM_LOG_DIRTY_PAGES,
            guest_phys_addr=gpa,
            memory_size=block.size,
            userspace_addr=address,
        )
        try:
            give(self._vm, abi.SET_USER_MEMORY_REGION, region)
        except OSError as error:
            raise UserError(f"KVM does not take RAMBlock {block.name} at {gpa:#x}") from error
        pages = block.size >> PAGE_SHIFT
        return _Slot(number, offset >> PAGE_SHIFT, pages, np.zeros((pages + 63) >> 6, np.uint64))

    def remap(self, span: Span, changed: PageSet, shared: PageSet) -> None:
        """Make the mosaic follow the states of `changed`; parts, numbered from `span.base`."""
        hidden = PageSet(changed.pages, changed.words & ~shared.words)
        visible = PageSet(changed.pages, changed.words & shared.words)
        for plane, pages in ((self._memory.private, hidden), (self._memory.shared, visible)):
            for first, count in pages.runs():
                self.mosaic.show(plane, span.base + first, count)

    def take_logs(self, span: Span) -> WriteLogs:
        """Get and clear what was written through either window; vCPUs are out of guest mode."""
        return WriteLogs(self._take(self._encrypted, span), self._take(self._plain, span))

    def _take(self, slots: list[_Slot], span: Span) -> PageSet:
        found = PageSet(span.pages)
        for slot in slots:
            first = max(span.base, slot.first)
            end = min(span.base + span.pages, slot.first + slot.pages)
            if first < end:
                self._take_slot(slot, span, first, end, found)
        return found

    def _take_slot(self, slot: _Slot, span: Span, first: int, end: int, found: PageSet) -> None:
        """Pages `first` up to `end`, which lie in both."""
        give(self._vm, abi.GET_DIRTY_LOG, abi.DirtyLog(slot=slot.number, dirty_bitmap=slot.log.ctypes.data))
        words = Span.covering(first - slot.first, end - first)
        written = PageSet(words.pages, slot.log[words.start : words.stop])
        # Words may reach beyond what was asked for, where a block does not begin at a multiple of 64 pages.
        wanted = words.of_range(first - slot.first, end - first)
        written &= wanted
        if not written:
            return
        clear = abi.ClearDirtyLog(
            slot=slot.number,
            first_page=words.base,
            num_pages=min(words.pages, slot.pages - words.base),
            dirty_bitmap=written.words.ctypes.data,
        )
        give(self._vm, abi.CLEAR_DIRTY_LOG, clear)
        place = slot.first + words.base - span.base
        if place & 63:
            found.add((written.numbers().astype(np.int64) + place).astype(np.uint64))
        else:
            found.add_part(Span.covering(place, words.pages), written)
