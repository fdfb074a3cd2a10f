"""What the VMM can see of guest memory: the shared plane, and the rings."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from typing import TypeAlias

from sealift.address import PAGE_SHIFT, RamLayout, pages_spanned
from sealift.errors import GuestError
from sealift.pageset import PageSet

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes that are only read."""


class Mapping:
    """A memfd mapped here; takes over the descriptor and keeps it (for people who want to look into it)."""

    def __init__(self, fd: int, size: int, *, writable: bool = True) -> None:
        self.fd = fd
        self.size = size
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map: mmap.mmap | None = mmap.mmap(fd, size, prot=protection)
        self.view = memoryview(self._map)

    def forget(self, offset: int, length: int) -> None:
        """Take pages out of this process's memory until they are touched again; their content stays in the memfd."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED, offset, length)

    def remove(self, offset: int, length: int) -> None:
        """Give pages of the memfd back to the machine; they read as zeros from now on."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_REMOVE, offset, length)

    def close(self) -> None:
        """Let go of the memory: it is unmapped when the last view of it, wherever that may be, has gone as well."""
        with contextlib.suppress(BufferError):  # someone still reads through a view of this view
            self.view.release()
        self.view = memoryview(b"")
        self._map = None
        fd, self.fd = self.fd, -1
        os.close(fd)


class SharedMemory:
    """The shared plane by GPA. Devices write through here, so that what they write is marked dirty.

    The platform logs what the guest writes, and cannot see what the VMM's own devices write: that is kept here, where
    it costs no request. Devices write first, mark second, signal third; `write` does the first two.
    """

    def __init__(self, fd: int, layout: RamLayout) -> None:
        self.mapping = Mapping(fd, layout.size)
        self.layout = layout
        self._device_dirty = PageSet(layout.pages)
        self._device_meter: PageSet | None = None
        self._dirty_lock = threading.Lock()

    def place(self, gpa: int, data: bytes) -> None:
        """Put bytes there without marking them: the launch image, before LAUNCH_UPDATE_DATA takes it."""
        offset = self._offset(gpa, len(data))
        self.mapping.view[offset : offset + len(data)] = data

    def forget(self, gpa: int, length: int) -> None:
        """Let go of whole pages that are not needed here any more; whoever touches them again finds them unchanged."""
        self.mapping.forget(self._offset(gpa, length), length)

    def write(self, gpa: int, data: Buffer) -> None:
        """A device writes; the pages are marked dirty."""
        offset = self._offset(gpa, len(data))
        self.mapping.view[offset : offset + len(data)] = data
        first, count = offset >> PAGE_SHIFT, pages_spanned(offset, len(data))
        with self._dirty_lock:
            if count == 1:
                self._device_dirty.mark(first)
            else:
                self._device_dirty.add_range(first, count)
            if self._device_meter is not None:
                self._device_meter.add_range(first, count)

    def take_device_dirty(self) -> PageSet:
        """Move the set of pages that devices wrote since the last call here; their content must be read after this."""
        with self._dirty_lock:
            return self._device_dirty.take()

    def start_device_meter(self) -> None:
        """Count from now on which pages devices write, beside the dirty set."""
        with self._dirty_lock:
            self._device_meter = PageSet(self.layout.pages)

    def device_metered(self) -> int:
        """Different pages that devices wrote since the meter was started."""
        with self._dirty_lock:
            return 0 if self._device_meter is None else len(self._device_meter)

    def stop_device_meter(self) -> None:
        """Count no more."""
        with self._dirty_lock:
            self._device_meter = None

    def pages_of(self, gpa: int, length: int) -> tuple[int, int]:
        """RAM pages that a range touches, as (first, count).

        Raises:
            GuestError: not all of it is guest RAM.
        """
        offset = self._offset(gpa, length)
        return offset >> PAGE_SHIFT, pages_spanned(offset, length)

    def read(self, gpa: int, length: int) -> bytes:
        """A device reads."""
        offset = self._offset(gpa, length)
        return bytes(self.mapping.view[offset : offset + length])

    def read_into(self, gpa: int, destination: memoryview) -> None:
        """Fill `destination`; through the memfd, so that looking at memory that nobody has used does not fill it."""
        offset, done = self._offset(gpa, len(destination)), 0
        while done < len(destination):
            done += os.preadv(self.mapping.fd, [destination[done:]], offset + done)

    def view(self, gpa: int, length: int) -> memoryview:
        """A window for a device that marks by itself."""
        offset = self._offset(gpa, length)
        return self.mapping.view[offset : offset + length]

    def _offset(self, gpa: int, length: int) -> int:
        offset = self.layout.offset(gpa, length)
        if offset is None:
            raise GuestError(f"{length} bytes at GPA {gpa:#x} are not all guest RAM")
        return offset
