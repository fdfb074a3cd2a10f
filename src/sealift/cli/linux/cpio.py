"""Root file systems as Linux takes them at boot: cpio archives in the "new ASCII" format, compressed.

Documentation/driver-api/early-userspace/buffer-format.rst. The bytes depend on names, modes and contents alone (no
dates, owners or inode numbers of this machine), since a guest's initial file system is measured at its launch.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from typing import Final

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"
_DIRECTORY: Final = 0o040755
_FILE: Final = 0o100644
_PROGRAM: Final = 0o100755


@dataclass(slots=True)
class Archive:
    """An archive that grows; names have no leading slash."""

    _parts: list[bytes] = field(default_factory=list)

    def directory(self, name: str) -> None:
        """Add an empty directory; its parents must be there."""
        self._add(name, _DIRECTORY, b"")

    def file(self, name: str, content: bytes) -> None:
        """Add a file to read."""
        self._add(name, _FILE, content)

    def program(self, name: str, content: bytes) -> None:
        """Add a file to execute."""
        self._add(name, _PROGRAM, content)

    def compressed(self) -> bytes:
        """The archive so far; several, one after the other, are one file system."""
        return gzip.compress(b"".join([*self._parts, _entry(0, _TRAILER, 0, b"")]), compresslevel=6, mtime=0)

    def _add(self, name: str, mode: int, content: bytes) -> None:
        self._parts.append(_entry(len(self._parts) + 1, name, mode, content))


def _entry(inode: int, name: str, mode: int, content: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    # Inode, mode, uid, gid, links, mtime, size, device and rdevice (major, minor), length of the name, checksum.
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    head = _MAGIC + b"".join(b"%08x" % value for value in fields) + encoded
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
