"""The file a snapshot or a plain guest lies in: written whole or not at all, read to its end, and hashed both times."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sealift.errors import StreamError, UserError
from sealift.vmm.memory import Buffer
from sealift.vmm.migration.streamio import ByteReader, EndedError
from sealift.wire.snapshot_file import END_SIZE, decode_end, encode_end

_CHUNK: Final = 1 << 20
"""Bytes hashed at once."""


class SnapshotWriter:
    """Writes a file that nobody but the user can read (`streamio.Writer`), `spend` (of a `Throttle`) willing.

    Attributes:
        sent: bytes so far.

    Raises:
        UserError: there is such a file already, or none can be made there.
    """

    def __init__(self, path: Path, spend: Callable[[int], None], what: str = "snapshot") -> None:
        """`what` is written, in messages."""
        self.sent = 0
        self._what = what
        self._path = path
        self._spend = spend
        self._hash = hashlib.sha256()
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
        length = sum(part.nbytes for part in left)
        self._spend(length)
        for part in left:
            self._hash.update(part)
        try:
            while left:
                done = os.writev(self._fd, left)
                while left and done >= left[0].nbytes:
                    done -= left.pop(0).nbytes
                if left:
                    left[0] = left[0][done:]
        except OSError as error:
            raise self._unwritten() from error
        self.sent += length

    def skip(self, offset: int) -> None:
        """Begin so many bytes into the file, behind a hole.

        Raises:
            UserError: there can be no such file.
        """
        try:
            os.lseek(self._fd, offset, os.SEEK_SET)
        except OSError as error:
            raise self._unwritten() from error

    def digest(self) -> bytes:
        """SHA-256 of everything so far."""
        return self._hash.digest()

    def finish(self, end: bytes) -> None:
        """Write the last line, around the snapshot's end, and return when all of it will last.

        Raises:
            UserError: see `write`.
        """
        self.write(encode_end(end))
        self.sync()

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


class FileReader(ByteReader):
    """Reads a stream that a file holds from `offset` (bytes) to its end.

    Raises:
        UserError: it cannot be read.
        StreamError: it is no file.
    """

    def __init__(self, path: Path, offset: int) -> None:
        super().__init__()
        self._offset = offset
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            found = os.fstat(self._fd)
        except OSError as error:
            raise UserError(f"{path} cannot be read") from error
        self._size = found.st_size
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise StreamError("it is no file")
        os.lseek(self._fd, offset, os.SEEK_SET)

    def digest(self, length: int) -> bytes:
        """SHA-256 of the stream's first `length` bytes, which are read again.

        Raises:
            EndedError: it has fewer.
        """
        digest = hashlib.sha256()
        at, end = self._offset, self._offset + length
        while at < end:
            data = os.pread(self._fd, min(end - at, _CHUNK), at)
            if not data:
                raise EndedError("the file ends")
            digest.update(data)
            at += len(data)
        return digest.digest()

    def at_end(self) -> bool:
        """Whether everything was taken."""
        return self._offset + self.received == self._size

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _receive(self, view: memoryview, *, whole: bool) -> int:  # noqa: ARG002  # a file gives what it has
        try:
            got = os.readv(self._fd, [view])
        except OSError as error:
            raise EndedError("the file cannot be read any further") from error
        if not got:
            raise EndedError("the file ends")
        return got


class SnapshotReader(ByteReader):
    """Reads such a file, and hashes what lies before its last line.

    Raises:
        UserError: it cannot be read.
        StreamError: it is no file, or too short to be a snapshot.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._hash = hashlib.sha256()
        self._read = 0
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            found = os.fstat(self._fd)
        except OSError as error:
            raise UserError(f"the snapshot {path} cannot be read") from error
        self._size = found.st_size
        if not stat.S_ISREG(found.st_mode) or self._size < END_SIZE:
            self.close()
            raise StreamError("it is no file, or too short to be a snapshot")

    def end(self) -> tuple[bytes, bytes]:
        """The snapshot's end, which must be due now, and the SHA-256 of everything before its line.

        Raises:
            StreamError: the stream and the file do not end together.
        """
        if self.received != self._size - END_SIZE:
            raise StreamError("the snapshot's stream and its file do not end together")
        return decode_end(self.take(END_SIZE)), self._hash.digest()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _receive(self, view: memoryview, *, whole: bool) -> int:  # noqa: ARG002  # a file gives what it has
        try:
            got = os.readv(self._fd, [view])
        except OSError as error:
            raise EndedError("the file cannot be read any further") from error
        if not got:
            raise EndedError("the file ends")
        spoken_for = self._size - END_SIZE - self._read
        self._hash.update(view[: max(0, min(got, spoken_for))])
        self._read += got
        return got
