"""The file a snapshot or a plain guest lies in: written whole or not at all, read to its end, and hashed both times."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sealift.errors import StreamError, UserError
from sealift.vmm.memory import Buffer
from sealift.vmm.migration.streamio import ByteReader, EndedError
from sealift.vmm.wholefile import WholeFile
from sealift.wire.snapshot_file import END_SIZE, decode_end, encode_end

_CHUNK: Final = 1 << 20
"""Bytes hashed at once."""


class SnapshotWriter(WholeFile):
    """Writes a snapshot or a stream (`streamio.Writer`), `spend` (of a `Throttle`) willing.

    Attributes:
        sent: bytes so far.
    """

    def __init__(self, path: Path, spend: Callable[[int], None], what: str = "snapshot") -> None:
        """`what` is written, in messages; raises as a `WholeFile`."""
        super().__init__(path, what)
        self.sent = 0
        self._spend = spend
        self._hash = hashlib.sha256()

    def write(self, *parts: Buffer) -> None:
        """Write the parts one behind the other, without joining them.

        Raises:
            UserError: they do not all fit there, or the medium failed.
        """
        views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        length = sum(view.nbytes for view in views)
        self._spend(length)
        for view in views:
            self._hash.update(view)
        super().write(*views)
        self.sent += length

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
