"""The kernel hashes table: how QEMU has kernel, initrd and command line measured along with a firmware image.

QEMU puts it where the firmware's GUIDed table says and measures it behind the image; the firmware then takes only
files with these hashes. 168 bytes, little-endian, and zeros up to a multiple of 16::

    9438d606-...  u16 168   { GUID  u16 50  SHA-256 } of command line, initrd, kernel, in this order

The command line is hashed with its terminating NUL, and a missing initrd as an empty one. The kernel's bytes are those
of the file: QEMU leaves its header as it is when memory is encrypted (QEMU ``target/i386/sev.c``).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sealift.launch.pieces import PIECE_LIMIT, Content

HEADER_GUID: Final = UUID("9438d606-4f22-4cc9-b479-a793d411fd21")
COMMAND_LINE_GUID: Final = UUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
INITRD_GUID: Final = UUID("44baf731-3a2f-4bd7-9af1-41e29169781d")
KERNEL_GUID: Final = UUID("4de79437-abd2-427f-b835-d5b172d2045b")

SIZE: Final = 176
"""Bytes of the table with its padding, which is measured too."""

_HEAD: Final = struct.Struct("<16sH")
_ENTRY: Final = struct.Struct("<16sH32s")


@dataclass(frozen=True, slots=True)
class KernelHashes:
    """The three hashes, SHA-256 each."""

    command_line: bytes
    initrd: bytes
    kernel: bytes

    @classmethod
    def of(cls, kernel: Content, initrd: Content, command_line: bytes) -> KernelHashes:
        """The hashes of files and of a command line without its NUL."""
        return cls(hashlib.sha256(command_line + b"\0").digest(), _sha256(initrd), _sha256(kernel))

    def encode(self) -> bytes:
        """The table, 176 bytes."""
        named = ((COMMAND_LINE_GUID, self.command_line), (INITRD_GUID, self.initrd), (KERNEL_GUID, self.kernel))
        entries = b"".join(_ENTRY.pack(guid.bytes_le, _ENTRY.size, digest) for guid, digest in named)
        table = _HEAD.pack(HEADER_GUID.bytes_le, _HEAD.size + len(entries)) + entries
        return table.ljust(SIZE, b"\0")


def _sha256(content: Content) -> bytes:
    digest = hashlib.sha256()
    for start in range(0, len(content), PIECE_LIMIT):
        digest.update(content[start : start + PIECE_LIMIT])
    return digest.digest()
