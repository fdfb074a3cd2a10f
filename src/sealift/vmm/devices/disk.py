"""A disk image, and the lock that lets one VMM at a time use it.

::

              lock()                      unlock()
    opened ──────────► locked: I/O ──────────────► opened
       ▲                                             │
       └────────────── a migration's abort: lock() ◄─┘

The source of a migration quiesces the device, calls `flush` and `unlock`, and only then hands over; the target locks
before it starts. The lock is one of the open file description (fcntl's OFD locks), so two VMMs in one process exclude
each other as well, and the kernel lets go of it when a VMM dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from pathlib import Path
from typing import Final

from sealift.errors import InternalError, UserError
from sealift.vmm.memory import Buffer

SECTOR_SIZE: Final = 512
"""What virtio counts in, whatever the medium."""

_FLOCK = struct.Struct("@hhqqi4x")
"""struct flock of 64-bit Linux: type, whence, start, length (0: all), process (0: this description)."""


class DiskImage:
    """A raw image in a file or block device, opened and not yet locked.

    Attributes:
        path: where it is.
        read_only: whether nobody writes; any number of readers may hold the lock together.
        sectors: its size.

    Raises:
        UserError: it cannot be opened, or is no whole number of sectors.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only
        try:
            self._fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"the disk image {path} cannot be opened") from error
        self._io = threading.Lock()  # so that `unlock` comes after whatever I/O began before it
        self._locked = False
        try:
            self.sectors = self._measure()
        except UserError:
            os.close(self._fd)
            raise

    def _measure(self) -> int:
        try:
            size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise UserError(f"{self.path} is nothing that a disk can be kept in") from error
        if size == 0 or size % SECTOR_SIZE:
            raise UserError(
                f"the disk image {self.path} has {size} bytes, which is not a whole number of {SECTOR_SIZE}-byte "
                "sectors; extend it with truncate"
            )
        return size // SECTOR_SIZE

    # --- the lock --------------------------------------------------------------------------------------------------

    def lock(self) -> bool:
        """Take the image for this VMM; again is no mistake.

        Returns:
            Whether it had not been taken before.

        Raises:
            UserError: somebody else has it.
        """
        with self._io:
            self._set_lock(fcntl.F_RDLCK if self.read_only else fcntl.F_WRLCK)
            before, self._locked = self._locked, True
            return not before

    def unlock(self) -> None:
        """Leave the image to others; no I/O reaches it until it is locked again. Call `flush` before."""
        with self._io:
            self._locked = False
            self._set_lock(fcntl.F_UNLCK)

    def _set_lock(self, kind: int) -> None:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise UserError(f"the disk image {self.path} cannot be locked") from error
            how = "written by another guest" if self.read_only else "in use by another guest"
            raise UserError(f"the disk image {self.path} is {how}; stop that guest first") from None

    def close(self) -> None:
        """Let go of the file, and with it of the lock; again does nothing."""
        with self._io:
            self._locked = False
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    # --- I/O -------------------------------------------------------------------------------------------------------

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer from a byte offset.

        Raises:
            OSError: the medium failed, or is shorter than it was.
        """
        with self._io:
            self._require_lock()
            while buffer:
                count = os.preadv(self._fd, [buffer], offset)
                if count == 0:
                    raise OSError(errno.EIO, "the image ends early")
                buffer, offset = buffer[count:], offset + count

    def write(self, offset: int, data: Buffer) -> None:
        """Write at a byte offset; lasting only after `flush`.

        Raises:
            OSError: the medium failed or is full.
        """
        left = memoryview(data)
        with self._io:
            self._require_lock()
            while left:
                count = os.pwrite(self._fd, left, offset)
                left, offset = left[count:], offset + count

    def flush(self) -> None:
        """Return when everything written will last.

        Raises:
            OSError: the medium failed.
        """
        with self._io:
            self._require_lock()
            os.fdatasync(self._fd)

    def _require_lock(self) -> None:
        if not self._locked:
            raise InternalError(f"the disk image {self.path} was to be used without its lock; lock it first")
