"""One plane of guest RAM: a memfd, its mapping, and bulk access to pages.

Page content is never copied page by page in Python: numpy gathers and scatters, and contiguous runs are plain views.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import weakref
from typing import Final

import numpy as np
import numpy.typing as npt

from sealift.address import PAGE_SHIFT, PAGE_SIZE
from sealift.errors import InternalError, UserError
from sealift.pageset import PageNumbers, PageSet, Span

F_SEAL_FUTURE_WRITE: Final = 0x10
"""linux/fcntl.h; Python 3.11 does not name it."""

_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Plane:
    """A memfd of `size` bytes (a multiple of the page size), mapped read-write here.

    Attributes:
        fd: the memfd; stays owned by the plane, and goes with it at the latest.
        words: the content as (pages, 512) little-endian 64-bit words.
        data: the content as a flat writable view.

    Raises:
        UserError: the machine has not enough memory for the mapping.
    """

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        self.pages = size >> PAGE_SHIFT
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self._map = mmap.mmap(self.fd, size)
        except OSError as error:
            os.close(self.fd)
            raise UserError(f"this machine cannot map {size >> 20} MiB of guest memory") from error
        self._let_go = weakref.finalize(self, os.close, self.fd)
        self.data = memoryview(self._map)
        self.words: npt.NDArray[np.uint64] = np.frombuffer(self._map, np.uint64).reshape(self.pages, PAGE_SIZE // 8)
        self.address: Final = self.words.ctypes.data

    def close(self) -> None:
        """Let go of the memfd; the mapping goes with the last view of it."""
        self._let_go()

    def window(self, first: int, count: int) -> memoryview:
        """A writable view of `count` contiguous pages."""
        return self.data[first << PAGE_SHIFT : (first + count) << PAGE_SHIFT]

    def read_into(self, offset: int, destination: memoryview) -> None:
        """Fill `destination` from byte `offset` on; through the memfd, so that looking at a hole does not fill it."""
        done = 0
        while done < len(destination):
            done += os.preadv(self.fd, [destination[done:]], offset + done)

    def gather(self, numbers: PageNumbers, out: memoryview) -> None:
        """Copy pages to `out` (len(numbers) * 4096 bytes)."""
        target = np.frombuffer(out, np.uint64).reshape(-1, PAGE_SIZE // 8)
        # mode="clip" lets numpy write straight to `out`; the numbers were checked against the layout before.
        np.take(self.words, numbers.astype(np.int64), axis=0, out=target, mode="clip")

    def scatter(self, numbers: PageNumbers, data: memoryview) -> None:
        """Overwrite pages with `data` (len(numbers) * 4096 bytes)."""
        self.words[numbers.astype(np.int64)] = np.frombuffer(data, np.uint64).reshape(-1, PAGE_SIZE // 8)

    def populated(self, span: Span | None = None) -> PageSet:
        """The pages that were ever touched: the memfd's data, without its holes; of all pages, or a part."""
        wanted = span or Span.covering(0, self.pages)
        found = PageSet(self.pages if span is None else span.pages)
        end = wanted.base << PAGE_SHIFT
        limit = min(end + (wanted.pages << PAGE_SHIFT), self.size)
        while end < limit:
            try:
                start = os.lseek(self.fd, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break  # nothing but a hole up to the end
                raise
            if start >= limit:
                break
            end = min(os.lseek(self.fd, start, os.SEEK_HOLE), limit)
            found.add_range((start >> PAGE_SHIFT) - wanted.base, (end - start) >> PAGE_SHIFT)
        return found

    def touch(self) -> None:
        """Have the machine give us all of an empty plane now, so that later writes need not wait for it."""
        self.words[:, 0] = 0

    def punch(self, pages: PageSet) -> None:
        """Give pages back to the machine; they read as zeros."""
        for first, count in pages.runs():
            offset, length = first << PAGE_SHIFT, count << PAGE_SHIFT
            if _libc.fallocate(self.fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length) != 0:
                code = ctypes.get_errno()
                raise InternalError(f"cannot punch a hole of {length} bytes: {os.strerror(code)}")


def seal_against_writers(fd: int) -> None:
    """Let nobody who maps the memfd from now on write to it; mappings that exist keep their rights."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
