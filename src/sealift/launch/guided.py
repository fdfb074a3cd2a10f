"""The GUIDed table at the end of a firmware image (OVMF's, and our start-up code's).

A reader finds it from the end of the image and walks it backwards, so a builder may prepend entries::

    ... entry n ... entry 1 | footer | 32 bytes (reset vector; not part of the table) | end of image
    entry  = data | u16 length (data + 18) | GUID, 16 bytes
    footer =        u16 length of everything incl. the footer | GUID 96b582de-...

GUIDs are stored mixed-endian, as EFI does; integers are little-endian.
Source: EDK2 ``OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType
from uuid import UUID

from sealift.errors import StreamError

FOOTER_GUID = UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
SECRET_BLOCK_GUID = UUID("4c2eb361-7d9b-4cc3-8081-127c90d3d294")
"""Data: u32 base, u32 size of the area LAUNCH_SECRET fills."""

TAIL_SIZE = 32
"""Bytes between the footer and the end of the image: the x86 reset vector's room."""

MAX_TABLE_SIZE = 4096
"""Longest table a reader copies; the tables of released OVMF images are under 300 bytes."""

_LENGTH = struct.Struct("<H")
_HEAD_SIZE = _LENGTH.size + 16
FOOTER_SPAN = _HEAD_SIZE + TAIL_SIZE
"""Bytes from the start of the footer to the end of the image: what `span` needs to see."""


def build(entries: Mapping[UUID, bytes]) -> bytes:
    """The table, footer included and the 32 bytes after it not; the first entry ends up next to the footer.

    Raises:
        ValueError: the table would be longer than `MAX_TABLE_SIZE`.
    """
    body = b"".join(
        data + _LENGTH.pack(len(data) + _HEAD_SIZE) + guid.bytes_le for guid, data in reversed(tuple(entries.items()))
    )
    total = len(body) + _HEAD_SIZE
    if total > MAX_TABLE_SIZE:
        raise ValueError(f"a GUIDed table of {total} bytes is longer than {MAX_TABLE_SIZE}")
    return body + _LENGTH.pack(total) + FOOTER_GUID.bytes_le


def span(end: bytes) -> int:
    """Bytes from the start of the table to the end of the image, read from the image's last bytes.

    Args:
        end: the last `FOOTER_SPAN` bytes of the image, or more.

    Raises:
        StreamError: there is no table, or its length is out of bounds.
    """
    if len(end) < FOOTER_SPAN:
        raise StreamError(f"an image of {len(end)} bytes is too short for a GUIDed table")
    footer = end[-FOOTER_SPAN:-TAIL_SIZE]
    if footer[_LENGTH.size :] != FOOTER_GUID.bytes_le:
        raise StreamError("the image does not end with a GUIDed table")
    (total,) = _LENGTH.unpack_from(footer)
    if not _HEAD_SIZE <= total <= MAX_TABLE_SIZE:
        raise StreamError(f"the GUIDed table claims {total} bytes; {_HEAD_SIZE} to {MAX_TABLE_SIZE} make sense")
    return int(total) + TAIL_SIZE


def parse(image: bytes) -> Mapping[UUID, bytes]:
    """The entries of the table at the end of `image`, nearest to the footer first.

    Raises:
        StreamError: no table, an entry that leaves it, or the same GUID twice.
    """
    length = span(image)
    if length > len(image):
        raise StreamError(f"the GUIDed table needs {length} bytes, the image has {len(image)}")
    body = image[len(image) - length : len(image) - FOOTER_SPAN]
    entries: dict[UUID, bytes] = {}
    while body:
        if len(body) < _HEAD_SIZE:
            raise StreamError(f"{len(body)} stray bytes at the start of the GUIDed table")
        guid = UUID(bytes_le=body[-16:])
        (size,) = _LENGTH.unpack_from(body, len(body) - _HEAD_SIZE)
        if not _HEAD_SIZE <= size <= len(body):
            raise StreamError(f"entry {guid} of the GUIDed table claims {size} bytes of {len(body)} left")
        if guid in entries:
            raise StreamError(f"the GUIDed table holds {guid} twice")
        entries[guid] = body[len(body) - size : len(body) - _HEAD_SIZE]
        body = body[: len(body) - size]
    return MappingProxyType(entries)
