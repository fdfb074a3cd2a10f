"""Launch secrets: the table an owner fills, and the packet that carries it to LAUNCH_SECRET.

The table is what EFI guests know as the confidential-computing secret area: a GUID and a length, then entries of
GUID, length and data, all little-endian; lengths include their own headers, padding to 16 bytes does not count::

    1e74f542-71dd-4d66-963e-ef4287ff173b  u32 length  { GUID  u32 length  data } ...  zeros
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from sealift.errors import StreamError, UserError
from sealift.sev import packet
from sealift.sev.measurement import MEASUREMENT_SIZE
from sealift.sev.packet import Context, Header
from sealift.sev.session import TransportKeys

TABLE_GUID: Final = UUID("1e74f542-71dd-4d66-963e-ef4287ff173b")
LUKS_KEY_GUID: Final = UUID("736869e5-84f0-4973-92ec-06879ce3da0b")
"""Entry of a disk passphrase, as libvirt's and AMD's tools name it."""

SIZE_LIMIT: Final = 16 * 1024
"""Bytes of one secret: what the tools assume that firmware has room to work on."""

_ENTRY: Final = struct.Struct("<16sI")


@dataclass(frozen=True, slots=True)
class SecretEntry:
    """One entry: what it is, and the data, which is never shown."""

    guid: UUID
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class EntryPlace:
    """Where an entry's data lies in a table's image, in bytes from its start."""

    guid: UUID
    start: int
    end: int


def build_table(entries: Iterable[SecretEntry]) -> bytes:
    """The table with `entries` in order, padded to a whole number of 16-byte blocks.

    Raises:
        UserError: the table is larger than `SIZE_LIMIT`.
    """
    body = b"".join(_ENTRY.pack(entry.guid.bytes_le, _ENTRY.size + len(entry.data)) + entry.data for entry in entries)
    table = _ENTRY.pack(TABLE_GUID.bytes_le, _ENTRY.size + len(body)) + body
    table += bytes(-len(table) % packet.BLOCK_SIZE)
    if len(table) > SIZE_LIMIT:
        raise UserError(f"the launch secrets take {len(table)} bytes of at most {SIZE_LIMIT}; release fewer")
    return table


def find_entries(image: bytes | bytearray | memoryview) -> list[EntryPlace] | None:
    """The entries of the table at the start of `image`, which may be longer than the table.

    Returns:
        Their places in order, or None if no table begins there.

    Raises:
        StreamError: a table begins there, but a length in it leads out of the table or the image.
    """
    if len(image) < _ENTRY.size or bytes(image[:16]) != TABLE_GUID.bytes_le:
        return None
    (_, end) = _ENTRY.unpack_from(image)
    if not _ENTRY.size <= end <= min(len(image), SIZE_LIMIT):
        raise StreamError(f"a secret table of {end} bytes does not fit its image of {len(image)} bytes")
    places = []
    start = _ENTRY.size
    while start < end:
        places.append(_entry_at(image, start, end))
        start = places[-1].end
    return places


def _entry_at(image: bytes | bytearray | memoryview, start: int, end: int) -> EntryPlace:
    if start + _ENTRY.size > end:
        raise StreamError(f"the secret table ends in the middle of the entry at byte {start}")
    guid, length = _ENTRY.unpack_from(image, start)
    if not _ENTRY.size <= length <= end - start:
        raise StreamError(f"the secret table's entry at byte {start} has the impossible length {length}")
    return EntryPlace(UUID(bytes_le=guid), start + _ENTRY.size, start + length)


def parse_table(image: bytes) -> list[SecretEntry]:
    """The entries of a table, with their data; none if no table begins there.

    Raises:
        StreamError: as `find_entries`.
    """
    return [SecretEntry(place.guid, bytes(image[place.start : place.end])) for place in find_entries(image) or ()]


def make_packet(transport: TransportKeys, launch_measure: bytes, table: bytes) -> tuple[bytes, bytes]:
    """Header and payload for LAUNCH_SECRET, good for the one launch whose LAUNCH_MEASURE output is given."""
    header, payload = packet.seal(transport, Context.SECRET, table, launch_measure[:MEASUREMENT_SIZE])
    return header.encode(), payload


def open_packet(transport: TransportKeys, launch_measure: bytes, header: bytes, payload: bytes) -> bytes:
    """Firmware's side of `make_packet`, lengths already checked.

    Raises:
        FirmwareError: BAD_MEASUREMENT or UNSUPPORTED (compressed).
    """
    decoded = Header.decode(header)
    return packet.unseal(transport, Context.SECRET, decoded, payload, launch_measure[:MEASUREMENT_SIZE])
