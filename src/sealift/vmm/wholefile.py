"""Files that the VMM writes for its user: whole or not at all, and never over one that is there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from sealift.errors import UserError
from sealift.vmm.memory import Buffer


class WholeFile:
    """A file that nobody but the user can read; it has its name only once it is `publish`ed.

    Raises:
        UserError: there is such a file already, or none can be made there.
    """

    def __init__(self, path: Path, what: str) -> None:
        """`what` is written, in messages."""
        self._what = what
        self._path = path
        self._refuse_existing()
        try:
            self._fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        except OSError as error:
            raise UserError(f"no {what} can be written in {path.parent}") from error
        self._fresh: Path | None = Path(name)

    def write(self, *parts: Buffer) -> None:
        """Write the parts one behind the other, without joining them.

        Raises:
            UserError: they do not all fit there, or the medium failed.
        """
        left = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        try:
            while left:
                done = os.writev(self._fd, left)
                while left and done >= left[0].nbytes:
                    done -= left.pop(0).nbytes
                if left:
                    left[0] = left[0][done:]
        except OSError as error:
            raise self._unwritten() from error

    def skip(self, offset: int) -> None:
        """Go on so many bytes into the file; what is skipped is a hole, which reads as zeros.

        Raises:
            UserError: there can be no such file.
        """
        try:
            if os.fstat(self._fd).st_size < offset:
                os.ftruncate(self._fd, offset)
            os.lseek(self._fd, offset, os.SEEK_SET)
        except OSError as error:
            raise self._unwritten() from error

    def sync(self) -> None:
        """Return when all of it will last.

        Raises:
            UserError: see `write`.
        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._unwritten() from error

    def publish(self) -> None:
        """Give it its name.

        Raises:
            UserError: it has been taken meanwhile, or the directory failed.
        """
        self._refuse_existing()
        if self._fresh is not None:
            try:
                self._fresh.rename(self._path)
                self._fresh = None
                _sync_directory(self._path.parent)
            except OSError as error:
                raise self._unwritten() from error
        self.discard()

    def discard(self) -> None:
        """Remove what was not published, and close the file; again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._fresh is not None:
            with contextlib.suppress(OSError):  # somebody else removed it
                self._fresh.unlink()
            self._fresh = None

    def _refuse_existing(self) -> None:
        if os.path.lexists(self._path):
            raise UserError(f"{self._path} exists already; choose another name, or remove it first")

    def _unwritten(self) -> UserError:
        return UserError(f"the {self._what} cannot be written to {self._path}")


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
